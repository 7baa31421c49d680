import Foundation
import IORing
import SystemLayer
import Testing
import UnitSupport

@Suite("Ring, on the real kernel")
struct RingTests {
    @Test("what is written is read back, from where it was written")
    func roundTrip() throws {
        let directory = try TemporaryDirectory()
        let file = try FileCalls.open(directory.path("file"), [.write, .createNew])
        var arena = try BufferArena(capacityBytes: 1 << 20)
        var ring = try Ring(entries: 8, completionEntries: 64)
        arena.fill(0, count: 10_000, salt: 3)
        ring.prepareWrite(
            file.raw, from: arena, at: 0, count: 10_000, filePosition: 5000, durable: true, tag: 1)
        let written = ring.results(1)
        ring.prepareSync(file.raw, tag: 2)
        ring.prepareRead(
            file.raw, into: arena, at: 20_480, count: 10_000, filePosition: 5000, tag: 3)
        let read = ring.results(2)
        let isEqual = arena.contents(0, count: 10_000) == arena.contents(20_480, count: 10_000)
        #expect(written == [1: 10_000])
        #expect(read == [2: 0, 3: 10_000])
        #expect(isEqual)
    }

    @Test("a read across the end is short, one beyond it is empty")
    func shortReads() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [UInt8](repeating: 9, count: 100))
        let file = try FileCalls.open(path, [])
        let arena = try BufferArena(capacityBytes: 1 << 20)
        var ring = try Ring(entries: 8, completionEntries: 64)
        ring.prepareRead(file.raw, into: arena, at: 0, count: 4096, filePosition: 60, tag: 1)
        ring.prepareRead(file.raw, into: arena, at: 4096, count: 4096, filePosition: 100, tag: 2)
        let results = ring.results(2)
        let direct = FileCalls.read(
            file.raw, into: arena, at: 8192, count: 4096, filePosition: 90, mayWait: true)
        let first = arena.contents(0, count: 41)
        #expect(results == [1: 40, 2: 0])
        #expect(direct == 10)
        #expect(first == [UInt8](repeating: 9, count: 40) + [0])
    }

    @Test("a write to a descriptor open for reading answers with its errno")
    func failedWrite() throws {
        let directory = try TemporaryDirectory()
        let file = try FileCalls.open(try directory.file("file", [1]), [])
        let arena = try BufferArena(capacityBytes: 4096)
        var ring = try Ring(entries: 4, completionEntries: 64)
        ring.prepareWrite(
            file.raw, from: arena, at: 0, count: 1, filePosition: 0, durable: false, tag: 7)
        let results = ring.results(1)
        #expect((results[7] ?? 0) < 0)
    }

    @Test("holes and zeros: punched space is given back, the size stays")
    func allocate() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [UInt8](repeating: 5, count: 1 << 18))
        let file = try FileCalls.open(path, [.write])
        let arena = try BufferArena(capacityBytes: 1 << 20)
        var ring = try Ring(entries: 8, completionEntries: 64)
        ring.prepareAllocate(
            file.raw, mode: .punchHole, filePosition: 65_536, count: 65_536, tag: 1)
        let punched = ring.results(1)
        ring.prepareRead(file.raw, into: arena, at: 0, count: 1 << 18, filePosition: 0, tag: 2)
        _ = ring.results(1)
        let hole = arena.isZero(65_536, count: 65_536)
        let before = arena.isZero(65_535, count: 1)
        let after = arena.isZero(131_072, count: 1)
        let data = try FileCalls.seek(file.raw, from: 65_536, data: true)
        let facts = try FileCalls.facts(file.raw)
        #expect(punched == [1: 0])
        #expect(hole && !before && !after)
        #expect(data == 131_072)
        #expect(facts.sizeBytes == 1 << 18)
    }

    @Test("more operations than the queue has entries: none is lost")
    func fullQueue() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", (0..<200).map { UInt8($0) })
        let file = try FileCalls.open(path, [])
        let arena = try BufferArena(capacityBytes: 1 << 20)
        var ring = try Ring(entries: 4, completionEntries: 64)
        for index in 0..<200 {
            ring.prepareRead(
                file.raw, into: arena, at: index, count: 1, filePosition: UInt64(index),
                tag: UInt64(index))
        }
        let results = ring.results(200)
        let submissions = ring.submissions
        let bytes = arena.contents(0, count: 200)
        #expect(results.count == 200 && results.values.allSatisfy { $0 == 1 })
        #expect(submissions == 200)
        #expect(bytes == (0..<200).map { UInt8($0) })
    }

    @Test("a poll completes when its descriptor is readable, or is taken back")
    func pollAndCancel() throws {
        let quiet = try EventDescriptor()
        let loud = try EventDescriptor()
        var ring = try Ring(entries: 8, completionEntries: 64)
        ring.preparePoll(quiet.raw, writable: false, tag: 1)
        ring.preparePoll(loud.raw, writable: false, tag: 2)
        ring.submit(waiting: false)
        loud.signal()
        let first = ring.results(1)
        ring.prepareCancel(1, tag: 3)
        let second = ring.results(2)
        #expect((first[2] ?? 0) > 0 && first[1] == nil)
        #expect(second[1] == -Errno.canceled)
        #expect(second[3] == 0)
        ring.prepareCancel(99, tag: 4)
        let missing = ring.results(1)
        #expect(missing[4] == -Errno.notFound)
    }

    @Test("a timer ticks again and again")
    func timer() throws {
        let timer = try PeriodicTimer(milliseconds: 5)
        var ring = try Ring(entries: 4, completionEntries: 64)
        let start = MonotonicClock.now()
        for tick in 1...3 {
            ring.preparePoll(timer.raw, writable: false, tag: UInt64(tick))
            _ = ring.results(1)
            timer.consume()
        }
        #expect(MonotonicClock.now() - start >= 10_000_000)
    }

    @Test("a descriptor that is given away is not closed")
    func release() throws {
        let directory = try TemporaryDirectory()
        let file = try FileCalls.open(try directory.file("file", [1, 2, 3]), [])
        let number = file.giveAway()
        let again = OwnedDescriptor(adopting: number)
        let size = try FileCalls.facts(again.raw).sizeBytes
        #expect(size == 3)
    }
}

@Suite("Threads")
struct ThreadTests {
    @Test("a mailbox gives every message once, in each sender's order")
    func mailbox() throws {
        let mailbox = try Mailbox<Int>()
        let senders = 4
        let each = 2000
        var threads: [WorkerThread] = []
        for sender in 0..<senders {
            threads.append(
                try WorkerThread(name: "sender-\(sender)") {
                    for number in 0..<each { mailbox.post(sender * each + number) }
                })
        }
        var next = [Int](repeating: 0, count: senders)
        var count = 0
        var isOrdered = true
        while count < senders * each {
            mailbox.wait()
            for message in mailbox.takeAll() {
                isOrdered = isOrdered && next[message / each] == message % each
                next[message / each] += 1
                count += 1
            }
        }
        for thread in threads { thread.wait(milliseconds: -1) }
        #expect(isOrdered && next == Array(repeating: each, count: senders))
        #expect(mailbox.takeAll().isEmpty)
    }

    @Test("a mailbox wakes a ring")
    func mailboxWakesRing() throws {
        let mailbox = try Mailbox<String>()
        var ring = try Ring(entries: 4, completionEntries: 64)
        ring.preparePoll(mailbox.raw, writable: false, tag: 1)
        let thread = try WorkerThread(name: "sender") { mailbox.post("hello") }
        let results = ring.results(1)
        thread.wait(milliseconds: -1)
        #expect((results[1] ?? 0) > 0)
        #expect(mailbox.takeAll() == ["hello"])
    }

    @Test("a latch opens after the last report, not before, and stays open")
    func latch() throws {
        let latch = Latch(count: 3)
        latch.arrive()
        latch.arrive()
        #expect(!latch.wait(milliseconds: 10))
        let thread = try WorkerThread(name: "reporter") { latch.arrive() }
        #expect(latch.wait(milliseconds: 5000))
        thread.wait(milliseconds: -1)
        #expect(latch.wait(milliseconds: 0))
        #expect(Latch(count: 0).wait(milliseconds: 0))
    }
}
