import Glibc
import IORing
import PointInTime
import ScratchFiles
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// Threads that a test counts, or refuses to start.
private final class Threads: Sendable {
    let started = Tally()
    let ended = Tally()
    let refuses = Atomic<Bool>(false)

    var start: ThreadStart {
        { [self] name, body throws(SystemFault) in
            if refuses.load(ordering: .acquiring) {
                throw SystemFault(call: "pthread_create", errno: EAGAIN)
            }
            started.add()
            try WorkerThread.start(name: name) {
                body()
                self.ended.add()
            }
        }
    }
}

private final class StubClock: Sendable {
    let nanoseconds = Atomic<UInt64>(1_000_000_000)
}

/// Threads that write scratch, and the one that watches it.
@Suite struct ScratchThreadTests {
    private func writer(
        _ directory: ServerFixture, _ name: String, _ start: @escaping ThreadStart,
        home: Mailbox<RingMessage>
    ) throws -> ScratchWriter {
        let storage = try ScratchStorage.create(
            path: directory.path(name), geometry: ClusterGeometry(sizeBytes: 1 << 20))
        return ScratchWriter(storage, home: home, kept: KeptRoom(0), start: start)
    }

    @Test("P2: what is asked of a scratch writer after its end is done by another thread")
    func afterTheEnd() async throws {
        let fixture = try await ServerFixture()
        let threads = Threads()
        let done = Tally()
        let writer = try writer(fixture, "s", threads.start, home: try Mailbox())
        writer.empty { done.add() }
        #expect(await done.reaches(1))
        writer.close()
        #expect(await threads.ended.reaches(1, within: 30))
        writer.empty { done.add() }
        #expect(await done.reaches(2) && threads.started.value == 2)
        // And that one ends as well.
        #expect(await threads.ended.reaches(2, within: 30))
        await fixture.close()
    }

    @Test("P2: whatever is asked of a scratch writer while it ends is answered")
    func whileItEnds() async throws {
        let fixture = try await ServerFixture()
        let done = Tally()
        let rounds = 400
        for round in 0..<rounds {
            let writer = try writer(fixture, "s\(round)", WorkerThread.start, home: try Mailbox())
            writer.empty {}
            async let closing: Void = writer.close()
            async let asking: Void = writer.empty { done.add() }
            _ = await (closing, asking)
        }
        #expect(await done.reaches(rounds), "\(done.value) of \(rounds)")
        await fixture.close()
    }

    @Test("P2: where no thread can be had a write fails, and nobody waits")
    func noThread() async throws {
        let fixture = try await ServerFixture()
        let threads = Threads()
        let home = try Mailbox<RingMessage>()
        let writer = try writer(fixture, "s", threads.start, home: home)
        threads.refuses.store(true, ordering: .releasing)
        let done = Tally()
        let arena = try BufferArena(capacityBytes: 1 << 20)
        let ticket = ScratchTicket(number: ScratchWriteIndex(number: 3), serial: 7)
        writer.look { _ in done.add() }
        writer.empty { done.add() }
        #expect(done.value == 1)
        writer.write(ticket, arena.lend(0, count: 4096), position: 0)
        let messages = home.takeAll()
        guard messages.count == 1, case .scratchWritten(let told, let outcome) = messages[0]
        else {
            Issue.record("\(messages.count) messages")
            return await fixture.close()
        }
        #expect(told == ticket && outcome == .failed(EAGAIN))
        // With a thread again all goes on: a look that had none is not thought to be under way.
        threads.refuses.store(false, ordering: .releasing)
        writer.look { _ in done.add() }
        #expect(await done.reaches(2))
        writer.close()
        #expect(await threads.ended.reaches(1, within: 30))
        await fixture.close()
    }

    @Test("P2: a guest waits for room no longer than its limit, whatever scratch and threads do")
    func reclaimEnds() async throws {
        let fixture = try await ServerFixture()
        let export = try await fixture.begin()
        let fileSystem = try #require(export.scratch.fileSystem)
        let shared = fixture.server.shared
        let threads = Threads()
        let watch = ScratchWatch(start: threads.start)
        threads.refuses.store(true, ordering: .releasing)
        watch.add([export], shared)
        // Nobody would look at the limit: the guest is told at once.
        #expect(watch.reclaim(fileSystem, shared) {} == .nothing)
        threads.refuses.store(false, ordering: .releasing)
        let gate = Gate()
        let entered = Tally()
        // The server's own watch may be looking: then a further look is not made.
        while entered.value == 0 {
            export.writer.look { _ in
                entered.add()
                gate.wait()
            }
            try await Task.sleep(for: .milliseconds(20))
        }
        let answered = Tally()
        let begin = MonotonicClock.now()
        #expect(watch.reclaim(fileSystem, shared) { answered.add() } == .waiting)
        watch.remove([export.id])
        #expect(await answered.reaches(1, within: 8))
        #expect(MonotonicClock.now() - begin >= Limits.reclaimNanoseconds)
        gate.open()
        #expect(await threads.ended.reaches(1, within: 30))
        await fixture.close()
    }

    @Test("P2: a write refused before room was given back, and heard of later, is tried again")
    func heardOfLate() async throws {
        let fixture = try await ServerFixture()
        let export = try await fixture.begin()
        let fileSystem = try #require(export.scratch.fileSystem)
        let shared = fixture.server.shared
        let answered = Tally()
        let clock = StubClock()
        let threads = Threads()
        let watch = ScratchWatch(
            start: threads.start, now: { clock.nanoseconds.load(ordering: .relaxed) })
        watch.add([export], shared)
        #expect(watch.reclaim(fileSystem, shared) { answered.add() } == .waiting)
        #expect(await answered.reaches(1))
        // The first write has its answer; one beside it was refused by the kernel before that.
        #expect(watch.reclaim(fileSystem, shared) { answered.add() } == .justGiven)
        #expect(watch.reclaim(fileSystem &+ 1, shared) {} == .nothing)
        #expect(answered.value == 1)
        // The job may even be gone by then.
        _ = try? await fixture.server.endJob(id: "job")
        watch.remove([export.id])
        #expect(watch.reclaim(fileSystem, shared) {} == .justGiven)
        clock.nanoseconds.add(Limits.reclaimNanoseconds, ordering: .relaxed)
        #expect(watch.reclaim(fileSystem, shared) {} == .nothing)
        #expect(await threads.ended.reaches(1, within: 30))
        await fixture.close()
    }

    @Test(
        "P2: a file beside machines' disks gives its room back once, and the machine waits for it")
    func holders() async throws {
        let fixture = try await ServerFixture()
        let shared = fixture.server.shared
        let (fileSystem, asked, answered) = (UInt64(77), Tally(), Tally())
        let done = Mutex<[@Sendable () -> Void]>([])
        func hold(_ target: String, on fileSystem: UInt64) {
            fixture.server.holdRoom(
                RoomHolder(job: "push", target: target, fileSystem: fileSystem) { answer in
                    done.withLock { $0.append(answer) }
                    asked.add()
                })
        }
        #expect(shared.watch.reclaim(fileSystem, shared) {} == .nothing)
        hold("vda", on: fileSystem)
        hold("vda", on: fileSystem)
        hold("vdb", on: 78)
        // Two writes that find no room at the same time both wait for it.
        for _ in 0..<2 {
            #expect(shared.watch.reclaim(fileSystem, shared) { answered.add() } == .waiting)
        }
        #expect(asked.value == 2 && answered.value == 0)
        for answer in done.withLock({ $0 }) { answer() }
        #expect(answered.value == 2)
        #expect(shared.watch.reclaim(fileSystem, shared) {} == .justGiven)
        fixture.server.dropRoom(ofJob: "push")
        #expect(shared.watch.reclaim(78, shared) {} == .nothing)
        // One that never answers holds nobody up for longer than the limit.
        hold("vda", on: 79)
        #expect(shared.watch.reclaim(79, shared) { answered.add() } == .waiting)
        #expect(await answered.reaches(3, within: 8))
        await fixture.close()
    }

    @Test("a job whose scratch was there before is not broken for room that it cannot give back")
    func reused() async throws {
        let fixture = try await ServerFixture()
        let file = try FileCalls.open(fixture.path("scratch"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        let export = try await fixture.begin(reusesScratch: true)
        let fileSystem = try #require(export.scratch.fileSystem)
        let shared = fixture.server.shared
        #expect(shared.watch.reclaim(fileSystem, shared) {} == .nothing)
        #expect(shared.watch.reclaim(fileSystem, shared) {} == .nothing)
        #expect(export.loss == nil && !export.ledger.view.isClosed)
        await fixture.close()
    }

    @Test("P2: scratch is watched before the instant: from then on a guest may need the room")
    func watchedBefore() async throws {
        // The ring is busy with a client that has come, so that no write can be held yet.
        let (gate, connected) = (Gate(), Tally())
        let fixture = try await ServerFixture { event in
            guard case .clientConnected = event else { return }
            connected.add()
            gate.wait()
        }
        let live = ListenEndpoint.unix(path: fixture.path("live.sock"), mode: 0o600)
        _ = try await fixture.server.listenLive(live, security: .plaintext)
        let client = try RawClient(fixture.path("live.sock"), export: "vm1/vda")
        #expect(await connected.reaches(1))
        let file = try FileCalls.open(fixture.path("disk"), [])
        let fileSystem = try #require(FileCalls.fileSystem(file.raw))
        let begun = Tally()
        let begin = Task {
            _ = try? await fixture.begin()
            begun.add()
        }
        var isWatched = false
        for _ in 0..<1500 where !isWatched && begun.value == 0 {
            let found = fixture.server.shared.watch.reclaim(
                fileSystem, fixture.server.shared
            ) {}
            isWatched = found == .waiting
            try await Task.sleep(for: .milliseconds(1))
        }
        #expect(isWatched && begun.value == 0)
        gate.open()
        await begin.value
        client.close()
        await fixture.close()
    }
}
