import VhostClient
import VhostFrontEnd

/// Shows that a disk is one: what was written is read, through every kind of request.
struct Verification {
    private let disk: VhostDisk
    private var oracle: [UInt8]
    private var generator: SplitMix
    private(set) var requests = 0

    private struct SplitMix {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var mixed = state
            mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
            mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
            return mixed ^ (mixed >> 31)
        }
        mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
    }

    struct Outcome: Encodable {
        let verified = true
        let identity: String
        let requests: Int
    }

    private static let largest = 1 << 18

    /// `span` bytes from the disk's start on are written over.
    init(_ path: String, queues: Int, span: Int, hasEventIndex: Bool, seed: UInt64) throws {
        var options = FrontEndOptions()
        options.queues = queues
        options.queueSize = 256
        options.hasEventIndex = hasEventIndex
        disk = try VhostDisk(path, options, largest: Self.largest, depth: 32)
        guard !disk.isReadOnly else { throw ClientViolation("the disk is read-only") }
        let bytes = min(span == 0 ? 4 << 20 : span, disk.sizeBytes) / 512 * 512
        generator = SplitMix(state: seed)
        oracle = Array(repeating: 0, count: bytes)
        for start in stride(from: 0, to: bytes, by: Self.largest) {
            let count = min(Self.largest, bytes - start)
            let content = try disk.perform(.read, start, count)
            oracle.replaceSubrange(start..<start + count, with: content)
        }
    }

    mutating func run() throws -> Outcome {
        let identity = try disk.perform(.identify)
        for round in 1...4 {
            for _ in 0..<100 { try step() }
            try disk.perform(.flush)
            try compareAll(round)
        }
        try refusals()
        requests += 5
        return Outcome(
            identity: String(decoding: identity.prefix { $0 != 0 }, as: UTF8.self),
            requests: requests)
    }

    private mutating func range() -> (offset: Int, count: Int) {
        let largest = min(Self.largest, oracle.count) / 512
        let sectors = 1 + generator.below(generator.below(2) == 0 ? largest : min(largest, 16))
        return (512 * generator.below(oracle.count / 512 - sectors + 1), 512 * sectors)
    }

    private mutating func step() throws {
        let (offset, count) = range()
        requests += 1
        switch generator.below(8) {
        case 0, 1: try compare(offset, count, "read")
        case 2 where disk.canDiscard:
            try disk.perform(.discard, offset, count)
            // Discarded bytes hold what they held, or zero.
            let content = try disk.perform(.read, offset, count)
            let old = Array(oracle[offset..<offset + count])
            if content != old, content != [UInt8](repeating: 0, count: count) {
                for (index, byte) in content.enumerated() where byte != 0 && byte != old[index] {
                    throw ClientViolation("a discard left a foreign byte at \(offset + index)")
                }
            }
            oracle.replaceSubrange(offset..<offset + count, with: content)
        case 3 where disk.canWriteZeroes:
            try disk.perform(
                .writeZeroes(mayUnmap: generator.below(2) == 0), offset, count)
            oracle.replaceSubrange(
                offset..<offset + count, with: repeatElement(0, count: count))
            try compare(offset, count, "zeroing")
        default:
            let first = UInt8(truncatingIfNeeded: generator.next())
            var content = [UInt8](repeating: first, count: count)
            // Each sector knows its place.
            for place in stride(from: 0, to: count, by: 512) {
                content[place] = UInt8(truncatingIfNeeded: (offset + place) / 512)
                content[place + 1] = UInt8(truncatingIfNeeded: (offset + place) / 131_072)
            }
            try disk.perform(.write(content), offset, count)
            oracle.replaceSubrange(offset..<offset + count, with: content)
        }
    }

    private func compare(_ offset: Int, _ count: Int, _ what: String) throws {
        let content = try disk.perform(.read, offset, count)
        guard content == Array(oracle[offset..<offset + count]) else {
            let index = content.indices.first { content[$0] != oracle[offset + $0] } ?? 0
            throw ClientViolation("\(what): a wrong byte at \(offset + index)")
        }
    }

    /// Reads all of it with many requests in flight.
    private mutating func compareAll(_ round: Int) throws {
        for start in stride(from: 0, to: oracle.count, by: Self.largest) {
            try compare(start, min(Self.largest, oracle.count - start), "round \(round)")
            requests += 1
        }
    }

    /// What does not lie on the disk is refused, and changes nothing.
    private func refusals() throws {
        let end = disk.sizeBytes
        for (command, offset, count) in [
            (DiskCommand.read, end, 512), (.read, end - 512, 1024),
            (.write([UInt8](repeating: 1, count: 1024)), end - 512, 1024),
        ] {
            do { try disk.perform(command, offset, count) } catch let refusal as ClientViolation {
                guard refusal.description.contains("I/O error") else { throw refusal }
                continue
            }
            throw ClientViolation("a request past the end is carried out")
        }
    }
}
