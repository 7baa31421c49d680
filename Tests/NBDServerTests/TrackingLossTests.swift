import Disk
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

        init(onEvent handler: @escaping @Sendable (ServerEvent) -> Void = { _ in }) async throws {
            base = try await ServerFixture(onEvent: handler)
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

        func source() throws -> RawSource {
            try #require(server.state.withLock { $0.disks[disk] }).source
        }

        /// The record goes on a thread of its own.
        func losesRecord() async throws -> Bool {
            let end = Date().addingTimeInterval(10)
            while hasRecord, Date() < end { try await Task.sleep(for: .milliseconds(5)) }
            return !hasRecord
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
        #expect(server.noteTracking(.trackingLost(disk: fixture.disk, detail: "test")))
        #expect(!server.noteTracking(.trackingLost(disk: fixture.disk, detail: "again")))
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

    @Test(
        "P3: a checkpoint of a disk that has lost writes is refused, and all are given up for good")
    func lostBeforeBegin() async throws {
        let losses = Tally()
        let fixture = try await Fixture { event in
            if case .trackingLost = event { losses.add() }
        }
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        // A sync of the server's own is told, and nothing else is: no witness, and no ring so far.
        try fixture.source().noteFailedSync(
            SystemFault(call: "fdatasync", errno: Errno.io), isHeard: false)
        await #expect(throws: ServerFault.self) {
            try await server.createCheckpoint(
                CheckpointConfiguration(name: "c1", disks: [fixture.disk]))
        }
        // Said by the call that was refused: its ring looks but now and then.
        #expect(losses.value == 1 && isLost(fixture))
        #expect(try await fixture.losesRecord(), "the next server believes it")
        // The ring notices as well.
        try await Task.sleep(for: .milliseconds(1_300))
        #expect(losses.value == 1)
        await fixture.base.close()
    }

    @Test("P3: a checkpoint whose disk loses writes between its instant and its seal is taken back")
    func lostBeforeSeal() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        var instant = Instant()
        let configuration = CheckpointConfiguration(name: "c1", disks: [fixture.disk])
        #expect(server.prepare(configuration, &instant) == nil)
        try fixture.source().noteFailedSync(
            SystemFault(call: "fdatasync", errno: Errno.io), isHeard: true)
        guard case .notTracked? = server.seal("c1", instant.swaps) else {
            Issue.record("it is sealed")
            return
        }
        let tracking = server.state.withLock { $0.tracking[fixture.disk] }
        guard case .unavailable? = tracking else {
            Issue.record("it is still tracked")
            return
        }
        #expect(try await fixture.losesRecord())
        await fixture.base.close()
    }

    @Test(
        "P3: a stop believes what was recorded unless a sync has failed",
        arguments: [Errno.io, Errno.noSpace, Errno.tooManyFiles, Errno.noMemory])
    func stopped(errno: Int32) async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        try fixture.source().noteFailedSync(
            SystemFault(call: "fdatasync", errno: errno), isHeard: true)
        let isLoss = errno == Errno.io || errno == Errno.noSpace
        if isLoss {
            await #expect(throws: ServerFault.self) { try await server.detachDisk(fixture.disk) }
        } else {
            try await server.detachDisk(fixture.disk)
        }
        let again = try await Fixture.attach(fixture.base)
        let status = try await server.diskStatus(again)
        #expect(status.tracking?.checkpoints == (isLoss ? [] : ["c0"]))
        await fixture.base.close()
    }

    @Test("P3: writes that were lost while no server had the disk cost its checkpoints, no more")
    func lostBetween() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        let size = try fixture.source().sizeBytes
        try await server.detachDisk(fixture.disk)
        let file = try FileCalls.open(fixture.base.path("tracked"), [.write])
        let facts = SourceFacts(
            path: fixture.base.path("tracked"), sizeBytes: size, raw: file.raw,
            witness: WriteErrorWitness(raw: -1, earlier: Errno.io) { nil })
        var configuration = DiskConfiguration(
            exportName: "vm1/vdb", path: facts.path, kind: .file, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        // A chain that has just begun may go on.
        configuration.tracking = TrackingConfiguration(directory: fixture.base.path("fresh"))
        let source = RawSource(facts)
        #expect(source.unheardLoss == Errno.io, "its machine is told")
        let fresh = try #require(
            try server.openTracking(configuration, source, DiskID(number: 101)))
        guard case .store = fresh.0 else {
            Issue.record("\(fresh.0)")
            return
        }
        configuration.tracking = TrackingConfiguration(directory: fixture.base.path("tracking"))
        let opened = try #require(
            try server.openTracking(configuration, source, DiskID(number: 102)))
        guard case .unavailable(let reason) = opened.0 else {
            Issue.record("its checkpoints are believed")
            return
        }
        #expect(reason.contains("writes to the disk were lost"))
        #expect(opened.1 == nil && !fixture.hasRecord)
        for number in [101, 102] as [UInt64] { server.dropTracking(DiskID(number: number)) }
        // The descriptor has to be there until here.
        try FileCalls.sync(file.raw)
        await fixture.base.close()
    }

    @Test("P3: a last sync that fails when nobody waits for it any more is not forgotten")
    func lateLoss() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        let doubt = try fixture.doubt()
        server.dropTracking(fixture.disk, mayBeDoubted: true)
        #expect(fixture.hasRecord)
        server.distrustTracking(doubt)
        #expect(!fixture.hasRecord)
        // Once another disk has the directory, the record is its own.
        let places = TrackingPlaces(
            files: DiskDirectory(fixture.base.path("tracking")), memory: nil, isInMemory: false,
            mark: nil)
        _ = try places.files.create(TrackingPlaces.recordName, reserving: 0)
        server.state.withLock {
            $0.trackingCare.doubts[fixture.disk] = TrackingDoubt(places, spare: server.shared.spare)
        }
        server.distrustTracking(doubt)
        #expect(fixture.hasRecord)
        await fixture.base.close()
    }

    @Test("P3: a loss that could not be noted is said once more when the last sync has failed")
    func unsynced() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try fixture.doubt().retire()
        // A device's mark does not last: there is only the record.
        let places = DiskDirectory(fixture.base.path("late"))
        let doubt = TrackingDoubt(
            TrackingPlaces(files: places, memory: nil, isInMemory: false, mark: nil),
            spare: server.shared.spare)
        #expect(!doubt.declare().isDurable)
        server.state.withLock { state in
            state.trackingCare.doubts[fixture.disk] = doubt
            state.tracking[fixture.disk] = .unavailable("a test")
        }
        // The directory is there again; the record in it would be believed.
        try places.make()
        _ = try places.create(TrackingPlaces.recordName, reserving: 0)
        #expect(fixture.base.exists("late/record"))
        server.abandonTracking(fixture.disk)
        #expect(!fixture.base.exists("late/record"))
        #expect(doubt.isOver)
        await fixture.base.close()
    }

    @Test("P3: a server whose doubt about a disk is written nowhere leaves the disk to no other")
    func unsaidDoubt() async throws {
        let fixture = try await Fixture()
        let server = fixture.server
        try await server.createCheckpoint(
            CheckpointConfiguration(name: "c0", disks: [fixture.disk]))
        let said = try fixture.doubt()
        // No place for it: neither memory nor a mark, and a record that cannot go.
        try FileManager.default.createDirectory(
            atPath: fixture.base.path("nowhere/record"), withIntermediateDirectories: true)
        let unsaid = TrackingDoubt(
            TrackingPlaces(
                files: DiskDirectory(fixture.base.path("nowhere")), memory: nil, isInMemory: false,
                mark: nil), spare: server.shared.spare)
        server.state.withLock { state in
            state.trackingCare.doubts[fixture.disk] = unsaid
            state.tracking[fixture.disk] = .unavailable("a test")
        }
        for isTried in [false, true] {
            if isTried { #expect(!unsaid.declare().isSaid) }
            do throws(ServerFault) {
                try await server.leave()
                Issue.record("it has left")
            } catch {
                #expect("\(error)".contains("could not be written down"), "\(error)")
            }
            // It serves as before.
            #expect(server.live.target(named: "vm1/vdb") != nil)
            #expect(server.state.withLock { !$0.isStopping && !$0.hasLeft })
        }
        server.state.withLock { $0.trackingCare.doubts[fixture.disk] = said }
        #expect(said.declare().isSaid)
        try await server.leave()
        try? FileManager.default.removeItem(atPath: fixture.base.directory)
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
