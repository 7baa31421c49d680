import CLinux
import Disk
import Foundation
import Glibc
import SystemLayer
import Testing
import UnitSupport

/// A file with an oracle: what its bytes are, whatever was done to it.
private final class ChangingFile {
    static let block = 4096
    let path: String
    private(set) var content: [UInt8]
    private let buffered: OwnedDescriptor
    private let direct: OwnedDescriptor

    init(_ path: String, bytes: Int) throws {
        self.path = path
        content = [UInt8](repeating: 0, count: bytes)
        buffered = try FileCalls.open(path, [.write, .createNew])
        direct = try FileCalls.open(path, [.write, .direct])
        try FileCalls.setSize(buffered.raw, bytes: UInt64(bytes))
    }

    /// One change that a guest, a tool or another program may make.
    func change(_ random: inout SplitMix64) throws {
        let blocks = content.count / Self.block
        let first = random.below(blocks)
        let most = random.below(8) == 0 ? 200 : 6
        let count = 1 + random.below(min(most, blocks - first))
        let range = (first * Self.block)..<((first + count) * Self.block)
        switch random.below(10) {
        case 0, 1: try write(range, random.next(), to: buffered.raw)
        case 2: try write(range, random.next(), to: direct.raw)
        case 3:
            let start = random.below(content.count - 1)
            let length = 1 + random.below(min(5000, content.count - start))
            try write(start..<(start + length), random.next(), to: buffered.raw)
        case 4: try allocate(0, range)
        case 5: try allocate(nbdpull_FALLOC_FL_PUNCH_HOLE | nbdpull_FALLOC_FL_KEEP_SIZE, range)
        case 6: try allocate(nbdpull_FALLOC_FL_ZERO_RANGE, range)
        case 7: try FileCalls.sync(buffered.raw)
        case 8:
            // Writing back is begun and not waited for.
            try #require(sync_file_range(buffered.raw, 0, 0, 2) == 0)
        default:
            // Cut short, and as long as before again.
            let size = content.count - random.below(content.count / 4)
            try FileCalls.setSize(buffered.raw, bytes: UInt64(size))
            try FileCalls.setSize(buffered.raw, bytes: UInt64(content.count))
            clear(size..<content.count)
        }
    }

    /// Whether a range holds zeros only.
    func isZero(_ range: Range<Int>) -> Bool { Data(content[range]) == Data(count: range.count) }

    private func clear(_ range: Range<Int>) {
        content.replaceSubrange(range, with: repeatElement(0, count: range.count))
    }

    private func allocate(_ mode: Int32, _ range: Range<Int>) throws {
        guard fallocate(buffered.raw, mode, range.lowerBound, range.count) == 0 else {
            // Not every file system can do everything.
            return try #require(errno == EOPNOTSUPP)
        }
        if mode != 0 { clear(range) }
    }

    private func write(_ range: Range<Int>, _ salt: UInt64, to descriptor: Int32) throws {
        // SAFETY: the memory holds `range.count` bytes until it is freed below.
        let memory = UnsafeMutableRawBufferPointer.allocate(
            byteCount: range.count, alignment: Self.block)
        defer { unsafe memory.deallocate() }
        let byte = UInt8(truncatingIfNeeded: salt) | 1
        unsafe memory.initializeMemory(as: UInt8.self, repeating: byte)
        content.replaceSubrange(range, with: repeatElement(byte, count: range.count))
        let written = unsafe pwrite(
            descriptor, memory.baseAddress, range.count, range.lowerBound)
        try #require(written == range.count)
    }
}

/// A run of a file: data, or a hole.
private struct Run: Equatable, CustomStringConvertible {
    var range: Range<UInt64>
    var isData: Bool
    var description: String { "\(range)\(isData ? " data" : " hole")" }
}

/// Neighbours that are the same as one run.
private func merged(_ runs: [Run]) -> [Run] {
    var result: [Run] = []
    for run in runs {
        if let last = result.last, last.isData == run.isData {
            result[result.count - 1].range = last.range.lowerBound..<run.range.upperBound
        } else {
            result.append(run)
        }
    }
    return result
}

extension RawSource {
    /// A range told with maps, and how many lookups and answers that took.
    fileprivate func told(
        _ range: Range<UInt64>, map: inout AllocationMap
    ) -> (runs: [Run], lookups: Int, answers: Int) {
        var runs: [Run] = []
        var lookups = 0
        var position = range.lowerBound
        while position < range.upperBound {
            let run = allocation(
                at: position, end: range.upperBound, endsHole: false, ahead: true, map: &map)
            guard run.end > position, run.end <= range.upperBound else {
                Issue.record("a run at \(position) of \(range) ends at \(run.end)")
                return ([], lookups, runs.count)
            }
            runs.append(Run(range: position..<run.end, isData: run.isData))
            lookups += run.lookups
            position = run.end
        }
        return (merged(runs), lookups, runs.count)
    }

    /// The same by a lookup for each place.
    fileprivate func lookedUp(_ range: Range<UInt64>) -> [Run] {
        var runs: [Run] = []
        var position = range.lowerBound
        while position < range.upperBound {
            let found = allocation(at: position, end: range.upperBound)
            runs.append(Run(range: position..<found.end, isData: found.isData))
            position = found.end
        }
        return merged(runs)
    }
}

@Suite("Allocation told ahead")
struct AllocationMapTests {
    private func open(_ path: String) throws(SourceFault) -> RawSource {
        try RawSource(path: path, expected: .regular, readOnly: true, direct: false)
    }

    private static var hasExtents: Bool {
        guard let directory = try? TemporaryDirectory(),
            let path = try? directory.file("probe", [1]), let file = try? FileCalls.open(path, [])
        else { return false }
        return FileCalls.holeKnowledge(file.raw) == .extents
    }

    @Test("flags of extents mean data or reserved space; anything else is not understood")
    func flags() {
        // Names and values of linux/fiemap.h.
        let (last, unknown, delalloc, encoded): (UInt32, UInt32, UInt32, UInt32) = (1, 2, 4, 8)
        let (encrypted, unaligned, inline, tail): (UInt32, UInt32, UInt32, UInt32) = (
            0x80, 0x100, 0x200, 0x400
        )
        let (unwritten, merged, shared): (UInt32, UInt32, UInt32) = (0x800, 0x1000, 0x2000)
        for more in [0, last, merged, last | merged] {
            #expect(FileExtent.State(flags: more) == .data)
            #expect(FileExtent.State(flags: delalloc | unknown | more) == .data)
            #expect(FileExtent.State(flags: unwritten | more) == .unwritten)
            for odd in [unknown, delalloc, encoded, encrypted, unaligned, inline, tail, shared] {
                #expect(FileExtent.State(flags: odd | more) == nil, "\(odd)")
                #expect(FileExtent.State(flags: odd | unwritten | more) == nil, "\(odd)")
            }
            for bit in 14..<32 {
                #expect(FileExtent.State(flags: 1 << UInt32(bit) | more) == nil)
            }
        }
    }

    @Test("P1, P6: of a source that is stalled nothing is asked, and all of it is data")
    func stalled() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("sparse", [])
        let file = try FileCalls.open(path, [.write])
        try FileCalls.setSize(file.raw, bytes: 1 << 20)
        let source = try open(path)
        let range: Range<UInt64> = 0..<(1 << 20)
        let plain = source.allocation(at: 0, end: range.upperBound)
        for (isStalled, mayWait) in [(true, true), (true, false), (false, true), (false, false)] {
            source.isStalled = isStalled
            var map = AllocationMap()
            let found = source.allocation(at: 0, end: range.upperBound, mayWait: mayWait)
            let run = source.allocation(
                at: 0, end: range.upperBound, endsHole: false, ahead: true, mayWait: mayWait,
                map: &map)
            #expect(found.end == range.upperBound && run.end == range.upperBound)
            let isData = isStalled && !mayWait || plain.isData
            #expect(found.isData == isData && run.isData == isData)
        }
    }

    @Test(
        "P1, P5: by seed: what is told ahead is what lookups say, and holes hold zeros",
        arguments: Seeds.all)
    func againstLookups(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let directory = try TemporaryDirectory()
        // No multiple of a block, so that the last extent reaches past the end.
        let bytes = (3 << 20) + 700
        let file = try ChangingFile(directory.path("file"), bytes: bytes)
        var map = AllocationMap()
        for step in 0..<60 {
            for _ in 0..<(1 + random.below(12)) { try file.change(&random) }
            let source = try open(file.path)
            for part in 0..<4 {
                let start = part == 0 ? 0 : random.below(bytes - 1)
                let end = part == 0 ? bytes : start + 1 + random.below(bytes - start)
                let range = UInt64(start)..<UInt64(end)
                map.removeAll()
                let told = source.told(range, map: &map).runs
                let expected = source.lookedUp(range)
                guard told == expected else {
                    Issue.record("seed=\(seed) step=\(step): \(told) instead of \(expected)")
                    return
                }
                for run in told where !run.isData {
                    let hole = Int(run.range.lowerBound)..<Int(run.range.upperBound)
                    guard file.isZero(hole) else {
                        Issue.record("seed=\(seed) step=\(step): data in the hole \(run)")
                        return
                    }
                }
            }
        }
        #expect(try Data(contentsOf: URL(filePath: file.path)) == Data(file.content))
    }

    @Test(
        "many extents take few calls, and calls end where room for extents does",
        .enabled(if: hasExtents, "the temporary directory is not on ext4 with extents"))
    func fewCalls() throws {
        let directory = try TemporaryDirectory()
        let room = FileExtents.countMax
        for extents in [1, room - 1, room, room + 1, 2 * room, 5 * room + 3] {
            let path = directory.path("file-\(extents)")
            let size = UInt64(extents) * 8192 + 4096
            do {
                let file = try FileCalls.open(path, [.write, .createNew])
                try FileCalls.setSize(file.raw, bytes: size)
                for index in 0..<extents {
                    try FileCalls.write(file.raw, [1], at: UInt64(index) * 8192 + 4096)
                }
                try FileCalls.sync(file.raw)
            }
            let source = try open(path)
            var map = AllocationMap()
            let told = source.told(0..<size, map: &map)
            #expect(told.runs == source.lookedUp(0..<size))
            #expect(told.runs.count == 2 * extents + 1)
            #expect(told.lookups == (extents / room + 1) * AllocationMap.lookupsPerCall)
            // What is told once comes from memory, but for a position before the last one.
            let again = source.told(0..<size, map: &map)
            #expect(again.runs == told.runs && again.lookups >= AllocationMap.lookupsPerCall)
        }
    }

    @Test("a map that is emptied sees what was written since")
    func emptied() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("file")
        let size: UInt64 = 1 << 20
        let file = try FileCalls.open(path, [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: size)
        let source = try open(path)
        var map = AllocationMap()
        for block in stride(from: size - 8192, through: 0, by: -16_384) {
            map.removeAll()
            // All of the file is told, and only the first answer taken.
            let first = source.allocation(
                at: 0, end: size, endsHole: false, ahead: true, map: &map)
            #expect(!first.isData)
            try FileCalls.write(file.raw, [7], at: block)
            map.removeAll()
            let runs = source.told(block..<size, map: &map).runs
            #expect(runs.first == Run(range: block..<(block + 4096), isData: true))
        }
    }

    @Test(
        "P5: behind the end of a file that was cut short there is data, which cannot be read",
        .enabled(if: hasExtents, "the temporary directory is not on ext4 with extents"),
        arguments: [false, true])
    func cutShort(ahead: Bool) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("file")
        let size: UInt64 = 1 << 20
        let file = try FileCalls.open(path, [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: size)
        try FileCalls.write(file.raw, [7], at: 8192)
        let source = try open(path)
        // A hole within the file, the data, a hole up to the new end, and what is lost.
        let end: UInt64 = 65_536
        try FileCalls.setSize(file.raw, bytes: end)
        var map = AllocationMap()
        let runs = ahead ? source.told(0..<size, map: &map).runs : source.lookedUp(0..<size)
        let expected = [
            Run(range: 0..<8192, isData: false), Run(range: 8192..<12_288, isData: true),
            Run(range: 12_288..<end, isData: false), Run(range: end..<size, isData: true),
        ]
        #expect(runs == expected)
        map.removeAll()
        let lost = source.allocation(
            at: size / 2, end: size, endsHole: true, ahead: ahead, map: &map)
        #expect(lost.isData && lost.end == size)
    }
}
