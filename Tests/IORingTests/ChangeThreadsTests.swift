import Foundation
import SystemLayer
import Testing
import UnitSupport

@testable import IORing

@Suite("Changes by a file's own thread, on the real kernel")
struct ChangeThreadsTests {
    /// A ring, its threads, and what it does with both.
    private final class Loop {
        var ring: Ring
        var changes: ChangeThreads
        private var listens = false

        init() throws {
            ring = try Ring(entries: 8, completionEntries: 64)
            changes = try ChangeThreads()
        }

        /// Sleeps until all that is in flight is done: the results by tag.
        func results(atOnce: Int = 64) -> [UInt64: Int32] {
            var results: [UInt64: Int32] = [:]
            var completions: [Completion] = []
            while changes.inFlight > 0 {
                if !listens { ring.preparePoll(changes.raw, writable: false, tag: .max) }
                listens = true
                ring.submit(waiting: changes.mayWait())
                changes.haveWaited()
                ring.drain(into: &completions)
                for wakeUp in completions where wakeUp.tag == .max {
                    listens = false
                    changes.consume()
                }
                completions = []
                completions.reserveCapacity(atOnce)
                changes.drain(into: &completions)
                for completion in completions {
                    #expect(results.updateValue(completion.result, forKey: completion.tag) == nil)
                }
            }
            return results
        }
    }

    /// An open file, for lists of them.
    private final class Open {
        private let descriptor: OwnedDescriptor
        var raw: Int32 { descriptor.raw }

        init(_ path: String, _ options: FileCalls.OpenOptions) throws {
            descriptor = try FileCalls.open(path, options)
        }
    }

    private static let page = BufferArena.pageBytes

    @Test(
        "by seed: every change is made, the last one of a place stays, the ring is woken",
        arguments: Seeds.all)
    func changes(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let directory = try TemporaryDirectory()
        let pages = 16
        var arena = try BufferArena(capacityBytes: 64 * Self.page)
        var table = try VectorTable(lanes: 64)
        let loop = try Loop()
        let files = try (0..<3).map {
            try Open(directory.path("file\($0)"), [.write, .createNew])
        }
        var expected = [[UInt8]](
            repeating: [UInt8](repeating: 0, count: pages * Self.page), count: files.count)
        for file in files {
            #expect(ftruncate(file.raw, off_t(pages * Self.page)) == 0)
            loop.changes.enter(file.raw, takesWrites: true)
        }
        for round in 0..<30 {
            var wanted: [UInt64: Int32] = [:]
            var lanes: [Int] = []
            for step in 0..<(1 + random.below(40)) {
                let (file, place) = (random.below(files.count), random.below(pages) * Self.page)
                let tag = UInt64(round * 100 + step)
                let bytes = place..<(place + Self.page)
                arena.fill(step * Self.page, count: Self.page, salt: Int(tag))
                let isTaken: Bool
                switch random.below(3) {
                case 0:
                    isTaken = loop.changes.write(
                        files[file].raw, from: arena, at: step * Self.page, count: Self.page,
                        filePosition: UInt64(place), durable: random.below(8) == 0, tag: tag)
                case 1:
                    let taken = table.take()
                    let lane = try #require(taken)
                    let start = UInt64(arena.address(step * Self.page, count: Self.page))
                    table.append(lane, address: start, byteCount: 1000)
                    table.append(lane, address: start + 1000, byteCount: Self.page - 1000)
                    isTaken = loop.changes.write(
                        files[file].raw, from: table, lane: lane, filePosition: UInt64(place),
                        durable: false, tag: tag)
                    lanes.append(lane)
                default:
                    isTaken = loop.changes.allocate(
                        files[file].raw, mode: .punchHole, filePosition: UInt64(place),
                        count: UInt64(Self.page), tag: tag)
                    expected[file].replaceSubrange(bytes, with: repeatElement(0, count: Self.page))
                    wanted[tag] = 0
                }
                #expect(isTaken)
                guard wanted[tag] == nil else { continue }
                wanted[tag] = Int32(Self.page)
                expected[file].replaceSubrange(
                    bytes, with: arena.contents(step * Self.page, count: Self.page))
            }
            #expect(loop.results(atOnce: 1 + random.below(8)) == wanted, "seed=\(seed)")
            for lane in lanes { table.giveBack(lane) }
        }
        for file in files.indices {
            let found = [UInt8](
                try Data(contentsOf: URL(filePath: directory.path("file\(file)"))))
            #expect(found == expected[file], "seed=\(seed) file \(file)")
        }
    }

    @Test("a change that fails says so, and the next is made")
    func failures() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [1])
        let forReading = try FileCalls.open(path, [])
        let forWriting = try FileCalls.open(path, [.write])
        let arena = try BufferArena(capacityBytes: Self.page)
        let loop = try Loop()
        for file in [forReading.raw, forWriting.raw] {
            loop.changes.enter(file, takesWrites: true)
        }
        for tag in [1, 2] as [UInt64] {
            let isTaken = loop.changes.write(
                forReading.raw, from: arena, at: 0, count: 1, filePosition: 0, durable: false,
                tag: tag)
            #expect(isTaken)
        }
        let isTaken = loop.changes.allocate(
            forWriting.raw, mode: .punchHole, filePosition: 1 << 62, count: 1 << 61, tag: 3)
        #expect(isTaken)
        _ = loop.changes.write(
            forWriting.raw, from: arena, at: 0, count: 1, filePosition: 0, durable: true, tag: 4)
        let results = loop.results()
        #expect(results[1] == -EBADF && results[2] == -EBADF)
        #expect((results[3] ?? 0) < 0 && results[4] == 1)
    }

    @Test("only what was entered is changed here, and past the page cache only its allocation")
    func entering() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [UInt8](repeating: 1, count: Self.page))
        let file = try FileCalls.open(path, [.write])
        let arena = try BufferArena(capacityBytes: Self.page)
        let loop = try Loop()
        let wants = [(false, false), (false, true), (true, true)]
        for (step, (isWritten, isAllocated)) in wants.enumerated() {
            if step > 0 { loop.changes.enter(file.raw, takesWrites: step == 2) }
            let hadThread = loop.changes.hasThread(file.raw)
            let first = loop.changes.write(
                file.raw, from: arena, at: 0, count: Self.page, filePosition: 0, durable: false,
                tag: 1)
            let second = loop.changes.allocate(
                file.raw, mode: .punchHole, filePosition: 0, count: UInt64(Self.page), tag: 2)
            let hasThread = loop.changes.hasThread(file.raw)
            #expect(first == isWritten && second == isAllocated)
            #expect(!hadThread && hasThread == isAllocated)
            let results = loop.results()
            #expect(results.count == (isWritten ? 1 : 0) + (isAllocated ? 1 : 0))
        }
        #expect(loop.changes.inFlight == 0 && loop.changes.completionCount == 0)
    }

    @Test("P6: a thread that has just answered, and one that works, end without a trace")
    func ending() throws {
        let directory = try TemporaryDirectory()
        let file = try FileCalls.open(directory.path("file"), [.write, .createNew])
        let arena = try BufferArena(capacityBytes: 16 * Self.page)
        for round in 0..<400 {
            let loop = try Loop()
            for turn in 0..<3 {
                loop.changes.enter(file.raw, takesWrites: true)
                for tag in 0..<4 as Range<UInt64> {
                    _ = loop.changes.write(
                        file.raw, from: arena, at: 0, count: 16 * Self.page, filePosition: 0,
                        durable: false, tag: tag)
                }
                // The last round's changes are left with their ring.
                if turn < 2 || round % 2 == 0 { #expect(loop.results().count == 4) }
                if turn < 2 { loop.changes.leave(file.raw) }
            }
        }
    }

    @Test("a descriptor's number that another file gets later has that file's thread")
    func numbers() throws {
        let directory = try TemporaryDirectory()
        let arena = try BufferArena(capacityBytes: Self.page)
        let loop = try Loop()
        // High up, where no other test gets it in between.
        var number: Int32 = -1
        for name in ["first", "second"] {
            let file = try FileCalls.open(directory.path(name), [.write, .createNew])
            number = number < 0 ? fcntl(file.raw, F_DUPFD, 900) : dup2(file.raw, number)
            try #require(number >= 900)
            loop.changes.enter(number, takesWrites: true)
            _ = loop.changes.write(
                number, from: arena, at: 0, count: name.utf8.count, filePosition: 0,
                durable: false, tag: 5)
            #expect(loop.results() == [5: Int32(name.utf8.count)])
            loop.changes.leave(number)
            #expect(
                try Data(contentsOf: URL(filePath: directory.path(name))).count
                    == name.utf8.count)
        }
        // A file that was never entered.
        loop.changes.leave(number)
        let isTaken = loop.changes.write(
            number, from: arena, at: 0, count: 1, filePosition: 0, durable: false, tag: 6)
        #expect(!isTaken, "what was known of the file stays with its number")
        close(number)
    }

    @Test("a file has as many changes in flight as there are places for, and no more")
    func room() throws {
        let directory = try TemporaryDirectory()
        let file = try FileCalls.open(directory.path("file"), [.write, .createNew])
        let arena = try BufferArena(capacityBytes: Self.page)
        let loop = try Loop()
        loop.changes.enter(file.raw, takesWrites: true)
        for _ in 0..<2 {
            var taken: UInt64 = 0
            while loop.changes.write(
                file.raw, from: arena, at: 0, count: 1, filePosition: taken, durable: false,
                tag: taken)
            {
                taken += 1
            }
            #expect(taken == 4096)
            #expect(loop.changes.inFlight == 4096)
            #expect(loop.results(atOnce: 100).count == 4096)
        }
    }
}
