/// A secret of one job's scratch, by which what comes back is known to be what was written.
///
/// The hash is NH, as in UMAC (RFC 4418), with words of 64 bits and a key as long as a slot. Key and
/// sums never leave the process: whoever has the bytes cannot make others that fit.
package struct ScratchKey: Sendable {
    /// What has a sum of its own, in bytes.
    package let slotBytes: Int
    private let words: [UInt64]

    package init(slotBytes: Int) {
        precondition(slotBytes > 0 && slotBytes.isMultiple(of: 16))
        self.slotBytes = slotBytes
        var random = SystemRandomNumberGenerator()
        words = (0..<slotBytes / 8 + 2).map { _ in random.next() }
    }

    /// The sum of a slot's bytes at an address, all of which are there.
    package func sum(at address: UInt) -> UInt64 {
        guard let start = unsafe UnsafeRawPointer(bitPattern: address) else { return 0 }
        let count = slotBytes / 8
        return unsafe words.withUnsafeBufferPointer { key in
            var (low, high) = (UInt64(0), UInt64(0))
            var word = 0
            while word < count {
                // SAFETY: the caller has a slot's bytes there; the key is longer than a slot.
                let first =
                    unsafe start.loadUnaligned(fromByteOffset: word * 8, as: UInt64.self)
                    &+ key[word]
                let second =
                    unsafe start.loadUnaligned(fromByteOffset: word * 8 + 8, as: UInt64.self)
                    &+ key[word + 1]
                let product = first.multipliedFullWidth(by: second)
                let (sum, carries) = low.addingReportingOverflow(product.low)
                low = sum
                high = high &+ product.high &+ (carries ? 1 : 0)
                word += 2
            }
            // SAFETY: two words of the key lie behind those of the slot.
            let folded = unsafe (low ^ key[count]).multipliedFullWidth(by: high ^ key[count + 1])
            return folded.high ^ folded.low
        }
    }
}

/// What was written last to each slot of a job's scratch, as far as it was used; for one ring.
///
/// Grows by small chunks, so that no machine waits for a large one to be moved.
struct ScratchSums {
    private var chunks: [[UInt64]] = []

    private static let chunkSlots = 4096

    subscript(slot: Int) -> UInt64 {
        get {
            let chunk = slot / Self.chunkSlots
            return chunk < chunks.count ? chunks[chunk][slot % Self.chunkSlots] : 0
        }
        set {
            let chunk = slot / Self.chunkSlots
            while chunks.count <= chunk {
                chunks.append([UInt64](repeating: 0, count: Self.chunkSlots))
            }
            chunks[chunk][slot % Self.chunkSlots] = newValue
        }
    }
}
