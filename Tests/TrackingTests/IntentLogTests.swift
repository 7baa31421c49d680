import Testing

@testable import Tracking

@Suite("Write-intent log as bytes")
struct IntentLogTests {
    private let shape = IntentLogShape(regionCount: 130, regionBytes: 128 << 20)

    private func fault(_ bytes: [UInt8]) -> IntentLogFault? {
        do throws(IntentLogFault) {
            _ = try IntentLogCodec.decode(bytes)
            return nil
        } catch {
            return error
        }
    }

    /// A log after each of these contents was written in turn, from generation 2 on.
    private func log(_ contents: [[UInt64]]) -> [UInt8] {
        var bytes = IntentLogCodec.encodeEmpty(shape: shape)
        for (index, words) in contents.enumerated() { write(words, UInt64(index) + 2, to: &bytes) }
        return bytes
    }

    private func write(_ words: [UInt64], _ generation: UInt64, to bytes: inout [UInt8]) {
        let slot = IntentLogCodec.encodeSlot(words, shape: shape, generation: generation)
        let offset = IntentLogCodec.slotOffset(generation: generation, regionCount: 130)
        bytes.replaceSubrange(offset..<(offset + slot.count), with: slot)
    }

    @Test("an empty log marks nothing")
    func empty() throws {
        for generation in 0...3 as ClosedRange<UInt64> {
            let bytes = IntentLogCodec.encodeEmpty(shape: shape, generation: generation)
            #expect(
                try IntentLogCodec.decode(bytes)
                    == IntentLog(
                        shape: shape, generation: generation + 1, words: [0, 0, 0], wholeSlots: 2))
        }
    }

    @Test("both slots count")
    func union() throws {
        let log = try IntentLogCodec.decode(log([[1, 0, 0], [2, 0, 1], [4, 8, 0]]))
        #expect(log == IntentLog(shape: shape, generation: 4, words: [6, 8, 1], wholeSlots: 2))
    }

    @Test("a write torn at any byte leaves at least the log before it")
    func torn() throws {
        let before = log([[1, 0, 0], [2, 0, 1]])
        var after = before
        write([.max, .max, 3], 4, to: &after)
        let size = IntentLogCodec.slotBytes(regionCount: 130)
        for cut in 0...size {
            let bytes = Array(after[..<cut]) + Array(before[cut...])
            let found = try IntentLogCodec.decode(bytes)
            #expect(found.words[0] & 2 == 2 && found.words[2] & 1 == 1, "cut at \(cut)")
            #expect(found.shape == shape && found.generation >= 3, "cut at \(cut)")
        }
    }

    @Test("a flipped bit spoils one slot, in both it spoils the log")
    func flips() throws {
        let size = IntentLogCodec.slotBytes(regionCount: 130)
        let bytes = log([[1, 0, 0], [2, 0, 1]])
        for index in [0, 7, 8, 12, 15, 16, 23, 24, 31, 32, 39, 40, 63, 64, 100, size - 1] {
            for bit in 0..<8 {
                var damaged = bytes
                damaged[index] ^= 1 << UInt8(bit)
                let found = try IntentLogCodec.decode(damaged)
                #expect(found.words == [2, 0, 1] && found.wholeSlots == 1)
                damaged[size + index] ^= 1 << UInt8(bit)
                #expect(fault(damaged) == .noWholeSlot)
            }
        }
    }

    @Test("other lengths, swapped slots and other shapes are refused")
    func refused() {
        let bytes = log([[1, 0, 0]])
        let size = bytes.count / 2
        for count in [0, 1, size, bytes.count - 1, bytes.count + 1, 3 * size] {
            let other = (bytes + bytes)[..<count]
            #expect(fault(Array(other)) != nil, "\(count) bytes")
        }
        #expect(fault(Array(bytes[size...] + bytes[..<size])) == .noWholeSlot)
        let other = IntentLogShape(regionCount: 129, regionBytes: 128 << 20)
        let mixed = bytes[..<size] + IntentLogCodec.encodeEmpty(shape: other)[size...]
        #expect(fault(Array(mixed)) == .slotsDisagree(shape, other))
    }
}
