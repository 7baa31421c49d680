import Disk
import Foundation
import Glibc
import IORing
import Scratch
import Synchronization
import Testing

@testable import NBDServer

/// Disks that grow while other calls are at work on them.
@Suite struct GrowthTests {
    @Test("P1: a begin whose exports were made before a disk grew is refused, and leaves nothing")
    func begunMeanwhile() async throws {
        let fixture = try await ServerFixture()
        let export = try #require(fixture.server.state.withLock { $0.disks[fixture.disk] })
        let owned = Tally()
        // What a resize does last, by a call that owns the disk, in the midst of a begin.
        async let growth = fixture.server.onDisks([fixture.disk]) {
            () -> Result<Bool, ServerFault> in
            owned.add()
            while !fixture.exists("job.sock") { usleep(1000) }
            export.source.grow(to: 2 * ServerFixture.diskBytes)
            return .success(true)
        }
        #expect(await owned.reaches(1))
        await #expect(throws: ServerFault.diskBusy(name: "vda")) {
            _ = try await fixture.begin()
        }
        #expect(await growth == .success(true))
        #expect(!fixture.exists("scratch") && !fixture.exists("job.sock"))
        // Now that it has grown, a job is of all of it.
        let begun = try await fixture.begin()
        #expect(begun.geometry.sizeBytes == 2 * ServerFixture.diskBytes)
        await fixture.close()
    }

    @Test("a disk with cache='none' grows as often as it is asked to")
    func direct() async throws {
        let fixture = try await ServerFixture(cacheMode: .none)
        for size in [2, 3, 7] as [UInt64] {
            let bytes = size * ServerFixture.diskBytes
            #expect(try await fixture.server.growDisk(fixture.disk, sizeBytes: bytes) == bytes)
        }
        await fixture.close()
    }

    @Test("a resize that the ring is at when the time is over is waited for")
    func ringIsAtIt() throws {
        let (outcome, done) = (Outcome(), Latch(count: 1))
        _ = try WorkerThread(name: "test-ring") {
            #expect(outcome.take())
            usleep(300_000)
            outcome.succeeded.store(true, ordering: .releasing)
            done.arrive()
        }
        #expect(outcome.isSettled(done, milliseconds: 200))
        let isDone = outcome.succeeded.load(ordering: .acquiring)
        #expect(isDone)
    }

    @Test("a resize that the ring has not begun in time is taken back")
    func ringIsStuck() {
        let (outcome, done) = (Outcome(), Latch(count: 1))
        #expect(!outcome.isSettled(done, milliseconds: 20))
        #expect(!outcome.take(), "the ring could still begin")
    }
}
