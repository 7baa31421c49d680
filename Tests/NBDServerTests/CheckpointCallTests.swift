import Foundation
import SystemLayer
import Testing
import Tracking
import TrackingFiles

@testable import NBDServer
@testable import ServerInterface

/// Calls that work on files between two questions to a ring: however long files take, the ring has
/// its time.
@Suite struct CheckpointCallTests {
    private static let hour: UInt64 = 3_600_000_000_000
    private static let ringLimit = UInt64(Limits.ringMilliseconds) * 1_000_000

    /// A server with one more disk, whose changes are tracked.
    private func trackedDisk(_ base: ServerFixture) async throws -> DiskID {
        let file = try FileCalls.open(base.path("tracked"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        var configuration = DiskConfiguration(
            exportName: "vm1/vdb", path: base.path("tracked"), kind: .file, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        configuration.tracking = TrackingConfiguration(directory: base.path("tracking"))
        return try await base.server.attachDisk(configuration)
    }

    /// Lets the ring answer, on the real clock.
    private func awaitAnswer(_ replies: Replies) {
        replies.wait(until: MonotonicClock.now() + 10_000_000_000)
    }

    @Test("a checkpoint whose layer takes an hour to read is deleted all the same")
    func slowRead() async throws {
        let base = try await ServerFixture()
        let (server, disk) = (base.server, try await trackedDisk(base))
        for name in ["c0", "c1"] {
            try await server.createCheckpoint(CheckpointConfiguration(name: name, disks: [disk]))
        }
        var call = DeleteCheckpointCall("c1", disk, server)
        // What it recorded is read, for the recording layer to take over.
        #expect(call.step(now: 0) == nil && call.deadline == 0)
        #expect(call.step(now: Self.hour) == nil)
        #expect(call.deadline == Self.hour + Self.ringLimit)
        awaitAnswer(call.replies)
        #expect(call.step(now: Self.hour + 1) == .success(true))
        #expect(try server.store(disk).get().1.record.chain.checkpoints == ["c0"])
        await base.close()
    }

    @Test("a checkpoint that takes an hour to fail is taken back from rings that answer")
    func slowSeal() async throws {
        let base = try await ServerFixture()
        let (server, disk) = (base.server, try await trackedDisk(base))
        var instant = Instant()
        let checkpoint = CheckpointConfiguration(name: "c1", disks: [disk])
        #expect(server.prepare(checkpoint, &instant) == nil)
        let (old, next) = (instant.swaps[0].old, instant.swaps[0].next)
        var call = DurableInstantCall(instant, checkpoint: "c1", server, now: 0)
        // The seal finds that there is no tracking any more.
        _ = server.noteTracking(.trackingLost(disk: disk, detail: "a test"))
        for _ in 0..<100 where call.deadline != 0 {
            #expect(call.step(now: 0) == nil)
            if call.deadline != 0 { awaitAnswer(call.replies) }
        }
        #expect(call.deadline == 0)
        #expect(call.step(now: Self.hour) == nil)
        #expect(call.deadline > Self.hour)
        var outcome: Result<UInt64, ServerFault>?
        for _ in 0..<100 where outcome == nil {
            awaitAnswer(call.replies)
            outcome = call.step(now: Self.hour + 1)
        }
        guard case .failure(.notTracked)? = outcome else {
            Issue.record("\(String(describing: outcome))")
            return
        }
        // What is written from now on is recorded where it was before.
        #expect(old.mark(offset: 0, length: 1))
        let box = BitmapBox()
        let ring = server.shared.mailboxes[0]
        let isAnswered = RingQuestion(ring) { .snapshotRecording(disk, box, $0) }.run() == .done
        #expect(isAnswered && box.bitmap?.dirtyCount == 1 && next.dirtyCount == 0)
        await base.close()
    }
}
