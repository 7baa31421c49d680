import Core
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// Calls that ask rings, driven without threads: here the test is ring and clock.
@Suite struct RingCallTests {
    private static let second: UInt64 = 1_000_000_000
    private static let ringLimit = UInt64(Limits.ringMilliseconds) * 1_000_000
    private let disk = DiskID(number: 7)

    private func rings(_ count: Int) throws -> ServerShared {
        try ServerShared(
            RingLayout(rings: count, servesJobs: false), ServerConfiguration(rings: count),
            security: SecurityStore(SecurityConfiguration()), isSimulated: true)
    }

    private func growth() -> DiskGrowth { DiskGrowth(sizeBytes: 1 << 30, tracking: nil) }

    // MARK: Growth

    /// The claim and the ticket of the resize that the ring was asked for.
    private func asked(_ ring: Mailbox<RingMessage>) throws -> (Claim, Ticket) {
        let messages = ring.takeAll()
        guard case .growDisk(_, _, let claim, let ticket)? = messages.last else {
            throw Unexpected(text: "\(messages)")
        }
        return (claim, ticket)
    }

    private func quiet(_ ring: Mailbox<RingMessage>) throws {
        let messages = ring.takeAll()
        guard case .hold(_, let ticket)? = messages.last else {
            throw Unexpected(text: "\(messages)")
        }
        ticket.answer()
    }

    private func resumes(_ message: RingMessage?) -> Bool {
        if case .resume? = message { true } else { false }
    }

    @Test("a resize that the ring is at when the time is over is waited for")
    func ringIsAtIt() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var call = GrowCall(disk, growth(), ring, now: 0)
        try quiet(ring)
        #expect(call.step(now: 1) == nil)
        let (claim, ticket) = try asked(ring)
        #expect(claim.take())
        #expect(call.step(now: 1 + Self.ringLimit) == nil)
        ticket.answer()
        guard case .success? = call.step(now: 2 + Self.ringLimit) else {
            throw Unexpected(text: "it is done")
        }
        #expect(resumes(ring.takeAll().last))
    }

    @Test("a resize that the ring has not begun in time is taken back")
    func ringIsStuck() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var call = GrowCall(disk, growth(), ring, now: 0)
        try quiet(ring)
        #expect(call.step(now: 1) == nil)
        let (claim, _) = try asked(ring)
        #expect(call.step(now: Self.ringLimit) == nil)
        guard case .failure(.ringStuck)? = call.step(now: 1 + Self.ringLimit) else {
            throw Unexpected(text: "nobody has answered")
        }
        #expect(!claim.take(), "the ring could still begin")
        #expect(resumes(ring.takeAll().last))
    }

    @Test("a resize is tried again while the log is written, and guests go on in between")
    func triedAgain() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var now: UInt64 = 0
        var call = GrowCall(disk, growth(), ring, now: now)
        for attempt in 1...Limits.growthAttempts {
            try quiet(ring)
            #expect(call.step(now: now) == nil)
            try asked(ring).1.answer(false)
            let outcome = call.step(now: now)
            #expect(resumes(ring.takeAll().last))
            if attempt == Limits.growthAttempts {
                guard case .failure(.holdTimedOut)? = outcome else {
                    throw Unexpected(text: "\(String(describing: outcome))")
                }
                return
            }
            #expect(outcome == nil && call.step(now: now) == nil && ring.isEmpty)
            now += UInt64(Limits.growthPauseMilliseconds) * 1_000_000
            #expect(call.step(now: now) == nil)
        }
    }

    @Test("P2: a disk that does not get quiet for a resize goes on")
    func notQuiet() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var call = GrowCall(disk, growth(), ring, now: 0)
        _ = ring.takeAll()
        let late = UInt64(Limits.holdMilliseconds) * 1_000_000
        #expect(call.step(now: late - 1) == nil)
        guard case .failure(.holdTimedOut)? = call.step(now: late) else {
            throw Unexpected(text: "it was never quiet")
        }
        #expect(resumes(ring.takeAll().last))
    }

    // MARK: Disks that go

    @Test("a disk that its ring does not give away in time stays, and does not go later")
    func removeStuck() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var call = RemoveDiskCall(disk, ring, now: 0)
        guard case .removeDisk(_, let claim, let ticket)? = ring.takeAll().first else {
            throw Unexpected(text: "the ring was not asked")
        }
        #expect(call.step(now: Self.ringLimit - 1) == nil)
        #expect(call.step(now: Self.ringLimit) == .stuck)
        #expect(!claim.take())
        ticket.answer()
    }

    @Test("a disk that its ring gives away in the last moment is gone")
    func removedLate() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var call = RemoveDiskCall(disk, ring, now: 0)
        guard case .removeDisk(_, let claim, let ticket)? = ring.takeAll().first else {
            throw Unexpected(text: "the ring was not asked")
        }
        #expect(claim.take())
        #expect(call.step(now: Self.ringLimit) == nil)
        ticket.answer()
        #expect(call.step(now: Self.ringLimit + 1) == .removed)
    }

    @Test("clients have their time before they are disconnected, and then the disk goes")
    func detach() throws {
        let shared = try rings(2)
        var call = DetachCall(
            disk, ExportID.next(), home: 1, gracefulMilliseconds: 1_000, forcedMilliseconds: 500,
            shared, now: 0)
        var early: [Ticket] = []
        for mailbox in shared.mailboxes {
            guard case .closeConnections(_, true, let ticket)? = mailbox.takeAll().first else {
                throw Unexpected(text: "each ring is asked")
            }
            early.append(ticket)
        }
        early[0].answer()
        #expect(call.step(now: Self.second - 1) == nil)
        let isUndisturbed = shared.mailboxes.allSatisfy(\.isEmpty)
        #expect(isUndisturbed)
        #expect(call.step(now: Self.second) == nil)
        for mailbox in shared.mailboxes {
            guard case .closeConnections(_, false, let ticket)? = mailbox.takeAll().first else {
                throw Unexpected(text: "nobody is left")
            }
            ticket.answer()
        }
        // An answer to the first question is none to the second.
        early[1].answer()
        #expect(call.step(now: Self.second + 1) == nil)
        #expect(shared.mailboxes[0].isEmpty)
        guard case .removeDisk(disk, _, let ticket)? = shared.mailboxes[1].takeAll().first else {
            throw Unexpected(text: "the home ring is asked for the disk")
        }
        ticket.answer(false)
        #expect(call.step(now: Self.second + 2) == .inUse)
    }

    @Test("a question that its ring refuses, or answers late, is neither done")
    func questions() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var late = RingQuestion(ring, now: 5) { .stop($0) }
        #expect(late.step(now: 5) == nil)
        #expect(late.deadline == 5 + Self.ringLimit)
        #expect(late.step(now: late.deadline) == .late)
        var refused = RingQuestion(ring, now: 5) { .stop($0) }
        guard case .stop(let ticket)? = ring.takeAll().last else {
            throw Unexpected(text: "the ring is asked")
        }
        ticket.answer(false)
        #expect(refused.step(now: 5) == .refused)
    }

    @Test("a thread and a task that drive a call are woken by its answer")
    func driven() async throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        func answerSoon() throws {
            _ = try WorkerThread(name: "test-ring") {
                while ring.isEmpty {}
                if case .stop(let ticket)? = ring.takeAll().first { ticket.answer() }
            }
        }
        try answerSoon()
        let byThread = RingQuestion(ring) { .stop($0) }.run()
        #expect(byThread == .done)
        try answerSoon()
        let byTask = await RingQuestion(ring) { .stop($0) }.runLater()
        #expect(byTask == .done)
    }

    @Test("P1: an instant is taken back from a disk that answers late, and the other one goes on")
    func instantTakenBack() throws {
        let shared = try rings(2)
        var instant = Instant()
        instant.snapshots = [
            RecordingSnapshot(disk: disk, homeRing: 0),
            RecordingSnapshot(disk: DiskID(number: 8), homeRing: 1),
        ]
        var call = InstantCall(instant, shared, now: 0)
        #expect(call.step(now: 0) == nil)
        var tickets: [Ticket] = []
        for mailbox in shared.mailboxes {
            guard case .hold(_, let ticket)? = mailbox.takeAll().first else {
                throw Unexpected(text: "each disk is held")
            }
            tickets.append(ticket)
        }
        tickets[1].answer()
        #expect(call.step(now: 1) == nil)
        let late = UInt64(Limits.holdMilliseconds) * 1_000_000
        #expect(call.step(now: late)?.result == .notQuiet)
        for mailbox in shared.mailboxes { #expect(resumes(mailbox.takeAll().last)) }
    }
}

/// Something that a test's ring was not asked for.
private struct Unexpected: Error { let text: String }
