import Foundation
import Glibc
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface
@testable import Tracking
@testable import TrackingFiles

/// Tracking that is lost while something else is done to it, or closed late.
@Suite struct TrackingLossTests {
    /// A server with one more disk, whose changes are tracked.
    private final class Fixture: Sendable {
        let base: ServerFixture
        let disk: DiskID
        var server: NBDServer { base.server }

        init() async throws {
            base = try await ServerFixture()
            let file = try FileCalls.open(base.path("tracked"), [.write, .createNew])
            try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
            disk = try await Self.attach(base)
        }

        static func attach(_ base: ServerFixture) async throws -> DiskID {
            var configuration = DiskConfiguration(
                exportName: "vm1/vdb", path: base.path("tracked"), kind: .file, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap)
            configuration.tracking = TrackingConfiguration(directory: base.path("tracking"))
            return try await base.server.attachDisk(configuration)
        }

        func doubt() throws -> TrackingDoubt {
            try #require(server.state.withLock { $0.trackingCare.doubts[disk] })
        }

        var hasRecord: Bool { base.exists("tracking/record") }
    }

    private func isLost(_ fixture: Fixture) -> Bool {
        if case .failure(.notTracked) = fixture.server.store(fixture.disk) { true } else { false }
    }

    @Test("a checkpoint that is sealed when tracking has been lost fails and brings nothing back")
    func sealed() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        let before = try server.store(fixture.disk).get().1
        var instant = Instant()
        #expect(
            server.prepare(
                CheckpointConfiguration(name: "c1", disks: [fixture.disk]), &instant) == nil)
        // What the ring does when the log cannot be written; the seal is at work and knows nothing.
        #expect(try fixture.doubt().declare().isDurable)
        let sealed = try #require(server.seal("c1", instant.swaps))
        guard case .notTracked = sealed else {
            Issue.record("\(sealed)")
            return
        }
        #expect(!fixture.hasRecord)
        #expect(throws: TrackingFault.lost) { try before.rewrite() }
        #expect(!fixture.hasRecord)
        await fixture.base.close()
    }

    @Test("no success that comes after a loss of tracking makes it forgotten")
    func kept() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        let store = try server.store(fixture.disk).get().1
        #expect(server.keep(store, fixture.disk))
        server.noteTracking(.trackingLost(disk: fixture.disk, detail: "test"))
        #expect(!server.keep(store, fixture.disk))
        #expect(isLost(fixture))
        // A resize is none either.
        let bytes = 2 * ServerFixture.diskBytes
        #expect(try await server.growDisk(fixture.disk, sizeBytes: bytes) == bytes)
        #expect(isLost(fixture))
        await fixture.base.close()
    }

    @Test("an empty disk is untracked, and what was recorded of it before is given up")
    func empty() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c1", disks: [fixture.disk]))
        try await server.detachDisk(fixture.disk)
        #expect(fixture.hasRecord)
        let file = try FileCalls.open(fixture.base.path("tracked"), [.write])
        try FileCalls.setSize(file.raw, bytes: 0)
        let emptied = try await Fixture.attach(fixture.base)
        #expect(!fixture.hasRecord, "the record is believed at the next start")
        let bytes = ServerFixture.diskBytes
        #expect(try await server.growDisk(emptied, sizeBytes: bytes) == bytes)
        try await server.detachDisk(emptied)
        let again = try await Fixture.attach(fixture.base)
        let status = try await server.diskStatus(again)
        #expect(status.tracking?.checkpoints == [])
        await fixture.base.close()
    }

    @Test("a close that comes after all takes nothing from the session that came meanwhile")
    func lateClose() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        let old = try fixture.doubt()
        var store = try server.store(fixture.disk).get().1
        // As if the close of the first session hung and had been left alone.
        server.state.withLock { $0.trackingCare.closing.append(.init(doubt: old)) }
        server.dropTracking(fixture.disk)
        try await server.detachDisk(fixture.disk)
        // What is closed late holds its source: the next one is another file of that name.
        try FileCalls.remove(fixture.base.path("tracked"))
        let file = try FileCalls.open(fixture.base.path("tracked"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        let second = try await Fixture.attach(fixture.base)
        guard case .failure(.notTracked) = server.store(second) else {
            Issue.record("the directory is still being closed")
            return
        }
        #expect(!fixture.hasRecord)
        let session = store.places.findSession()
        let source = store.record.source
        #expect(throws: TrackingFault.lost) { try store.close(source: source) }
        #expect(!fixture.hasRecord)
        #expect(store.places.findSession() == session)
        server.state.withLock { $0.trackingCare.closing = [] }
        await fixture.base.close()
    }

    @Test("a doubt is said as soon as there is a thread for it, and holds up nobody before")
    func noThreads() async throws {
        let base = try await ServerFixture()
        let refusals = Atomic<Int>(0)
        let server = try NBDServer(configuration: ServerConfiguration(rings: 1)) { name, body in
            if refusals.add(1, ordering: .relaxed).oldValue < 2 { return false }
            return DetachedThread.run(name: name, body)
        }
        let file = try FileCalls.open(base.path("tracked"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        var configuration = DiskConfiguration(
            exportName: "vm1/vdb", path: base.path("tracked"), kind: .file, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        configuration.tracking = TrackingConfiguration(directory: base.path("tracking"))
        let disk = try await server.attachDisk(configuration)
        let doubt = try #require(server.state.withLock { $0.trackingCare.doubts[disk] })
        server.trackingIsLost(disk, "a test")
        #expect(doubt.lastOutcome == nil)
        #expect(base.exists("tracking/record"))
        let deadline = Date().addingTimeInterval(20)
        while doubt.lastOutcome?.isDurable != true, Date() < deadline {
            try await Task.sleep(for: .milliseconds(10))
        }
        #expect(doubt.lastOutcome?.isDurable == true)
        #expect(!base.exists("tracking/record"))
        #expect(refusals.load(ordering: .relaxed) == 3)
        await server.shutdown()
        await base.close()
    }

    @Test("several disks that are closed at once all get their time, unless one has been in vain")
    func closing() async throws {
        let fixture = try await ServerFixture()
        let server = fixture.server
        func doubt(_ name: String) -> TrackingDoubt {
            TrackingDoubt(
                TrackingPlaces(
                    files: DiskDirectory(fixture.path(name)), memory: nil, isInMemory: false,
                    mark: nil), spare: server.shared.spare)
        }
        let (gate, ended) = (Gate(), Tally())
        let first = doubt("a")
        #expect(
            DetachedThread.run(name: "test-close") {
                server.close(first) { gate.wait() }
                ended.add()
            })
        while server.state.withLock({ $0.trackingCare.closing.isEmpty }) { usleep(500) }
        let closed = Tally()
        server.close(doubt("b")) {
            usleep(UInt32(Limits.trackingStuckMilliseconds) * 1000 + 500_000)
            closed.add()
        }
        #expect(closed.value == 1, "it was not waited for")
        server.noteOverdue(first)
        let begun = ContinuousClock.now
        server.close(doubt("c")) { gate.wait() }
        #expect(ContinuousClock.now - begun < .seconds(10))
        gate.open()
        #expect(await ended.reaches(1))
        while server.state.withLock({ !$0.trackingCare.closing.isEmpty }) { usleep(500) }
        await fixture.close()
    }
}
