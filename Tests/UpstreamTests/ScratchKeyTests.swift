import Testing
import Upstream

/// By what is read back from scratch being what was written.
@Suite struct ScratchKeyTests {
    private static func sum(_ key: ScratchKey, _ bytes: [UInt8]) -> UInt64 {
        // SAFETY: the bytes are a slot's, and live until the sum is there.
        unsafe bytes.withUnsafeBytes { key.sum(at: UInt(bitPattern: $0.baseAddress)) }
    }

    @Test("any other byte, bit, order or length of zeros has another sum")
    func differences() {
        let key = ScratchKey(slotBytes: 512)
        let bytes = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        var seen: Set<UInt64> = [Self.sum(key, bytes)]
        #expect(seen.contains(Self.sum(key, bytes)))
        var others = (0..<512 * 8).map { bit in
            var other = bytes
            other[bit / 8] ^= 1 << UInt8(bit % 8)
            return other
        }
        for word in 0..<63 {
            var other = bytes
            for byte in 0..<8 { other.swapAt(word * 8 + byte, word * 8 + 8 + byte) }
            others.append(other)
        }
        others.append([UInt8](repeating: 0, count: 512))
        others.append([UInt8](repeating: 0xFF, count: 512))
        for other in others { #expect(seen.insert(Self.sum(key, other)).inserted) }
    }

    @Test("each job has a key of its own")
    func keys() {
        let bytes = [UInt8](repeating: 0, count: 16)
        #expect(
            Self.sum(ScratchKey(slotBytes: 16), bytes) != Self.sum(ScratchKey(slotBytes: 16), bytes)
        )
    }
}
