import CZlib

/// What the module needs of zlib, over arrays and spans: the only place here with pointers.
package enum Zlib {
    /// The largest factor by which deflate shrinks anything: 258 bytes in two bits.
    static let ratioMax = 1032

    /// The CRC-32 of bytes (the polynomial of IEEE 802.3, as in RFC 1952).
    package static func crc32(_ bytes: Span<UInt8>) -> UInt32 {
        // SAFETY: the span keeps the bytes alive for the call, and its count is their number.
        let sum = unsafe bytes.withUnsafeBufferPointer { buffer in
            unsafe crc32_z(0, buffer.baseAddress, buffer.count)
        }
        return UInt32(truncatingIfNeeded: sum)
    }

    /// The words, little-endian, as one zlib stream (RFC 1950).
    static func compress(_ words: [UInt64]) -> [UInt8] {
        let ordered = littleEndian(words)
        let inputCount = UInt(ordered.count * MemoryLayout<UInt64>.size)
        let bound = Int(compressBound(inputCount))
        // SAFETY: both buffers live for the call; zlib reads `inputCount` bytes, which is all of
        // the words, and writes at most `length` bytes, which is what it was given room for.
        return unsafe [UInt8](unsafeUninitializedCapacity: bound) { output, count in
            var length = UInt(bound)
            let status = unsafe ordered.withUnsafeBytes { input in
                unsafe compress2(
                    output.baseAddress, &length,
                    input.baseAddress?.assumingMemoryBound(to: UInt8.self), inputCount,
                    Z_BEST_SPEED)
            }
            // With room for the bound only memory can run out, which ends the process anywhere.
            precondition(status == Z_OK, "zlib found no memory")
            count = Int(length)
        }
    }

    /// The words of one whole zlib stream, or nil when the bytes are not exactly that.
    ///
    /// Allocates `wordCount` words, whatever the stream says.
    static func decompress(_ bytes: Span<UInt8>, wordCount: Int) -> [UInt64]? {
        var isWhole = false
        let outputCount = UInt(wordCount * MemoryLayout<UInt64>.size)
        // SAFETY: both buffers live for the call; zlib reads at most `consumed` bytes and writes at
        // most `produced` bytes, which are the sizes of the two. Words are counted as initialised
        // only when zlib wrote all of them.
        let words = unsafe [UInt64](unsafeUninitializedCapacity: wordCount) { output, count in
            var produced = outputCount
            var consumed = UInt(bytes.count)
            let status = unsafe bytes.withUnsafeBufferPointer { input in
                unsafe uncompress2(
                    UnsafeMutableRawPointer(output.baseAddress)?
                        .assumingMemoryBound(to: UInt8.self),
                    &produced, input.baseAddress, &consumed)
            }
            isWhole =
                status == Z_OK && produced == outputCount && consumed == UInt(bytes.count)
            count = isWhole ? wordCount : 0
        }
        return isWhole ? littleEndian(words) : nil
    }

    /// The words in little-endian order, or back: nothing is copied where that is the machine's.
    private static func littleEndian(_ words: [UInt64]) -> [UInt64] {
        UInt64(1).littleEndian == 1 ? words : words.map(\.littleEndian)
    }
}
