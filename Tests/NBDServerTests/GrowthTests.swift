import Disk
import Foundation
import Glibc
import PointInTime
import Synchronization
import SystemLayer
import Testing

@testable import BoundedCalls
@testable import NBDServer
@testable import ServerInterface

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
            while fixture.server.queues.waitingCount == 0 { usleep(1000) }
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

    @Test("what a late resize takes back never cuts a disk, or another's bytes, short")
    func takenBack() async throws {
        let fixture = try await ServerFixture()
        let export = try #require(fixture.server.state.withLock { $0.disks[fixture.disk] })
        let (source, bytes) = (export.source, ServerFixture.diskBytes)
        let added = try #require(try source.extend(to: 2 * bytes))
        #expect(try source.measure() == 2 * bytes)
        try source.takeBack(added)
        #expect(try source.measure() == bytes)
        // The file has another length by now.
        let second = try #require(try source.extend(to: 2 * bytes))
        _ = try #require(try source.extend(to: 4 * bytes))
        try source.takeBack(second)
        #expect(try source.measure() == 4 * bytes)
        // One that was decided on before comes last.
        #expect(try source.extend(to: 3 * bytes) == nil)
        #expect(try source.measure() == 4 * bytes)
        // The disk has grown into it.
        let third = try #require(try source.extend(to: 5 * bytes))
        source.grow(to: 5 * bytes)
        try source.takeBack(third)
        #expect(try source.measure() == 5 * bytes)
        await fixture.close()
    }

    @Test("a disk is resized by one call at a time, and by the next one after it")
    func oneAtATime() async throws {
        let fixture = try await ServerFixture()
        let (server, bytes) = (fixture.server, ServerFixture.diskBytes)
        let gate = Gate()
        // The storage's threads are taken, so the first resize waits for one.
        let place = StoragePlace.of(fixture.path("disk"))
        let blockers = (0..<StorageCalls.threadsPerPlace).map { _ in
            Task {
                _ = await server.storage.run(at: place, what: "test", .end(milliseconds: nil)) {
                    gate.wait()
                    return Result<Bool, ServerFault>.success(true)
                }
            }
        }
        while server.storage.runningCount < blockers.count {
            try await Task.sleep(for: .milliseconds(1))
        }
        async let first = server.growDisk(fixture.disk, sizeBytes: 2 * bytes)
        while server.state.withLock({ $0.growing.isEmpty }) {
            try await Task.sleep(for: .milliseconds(1))
        }
        await #expect(throws: ServerFault.self) {
            try await server.growDisk(fixture.disk, sizeBytes: 3 * bytes)
        }
        gate.open()
        #expect(try await first == 2 * bytes)
        for blocker in blockers { await blocker.value }
        // The call's thread lets go of it in a moment.
        let end = Date().addingTimeInterval(10)
        while server.state.withLock({ !$0.growing.isEmpty }), Date() < end { usleep(500) }
        #expect(try await server.growDisk(fixture.disk, sizeBytes: 3 * bytes) == 3 * bytes)
        await fixture.close()
    }
}
