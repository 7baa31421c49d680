import Core
import Disk
import Foundation
import Glibc
import Synchronization
import SystemLayer
import Tables
import Testing

@testable import NBDServer
@testable import ServerInterface
@testable import Tracking
@testable import TrackingFiles

/// The loop on a disk that loses what it had taken, or may have.
extension RingLoopTests {
    // MARK: Guests

    /// Writes 512 bytes durably.
    private func writeDurably(_ cookie: UInt64, _ socket: SocketHandle) {
        send(
            bytes(0x2560_9513, 4) + bytes(1, 2) + bytes(1, 2) + bytes(cookie, 8) + bytes(0, 8)
                + bytes(512, 4), socket)
        send([UInt8](repeating: 1, count: 512), socket)
    }

    func failed(_ cookie: UInt64, _ wire: UInt64) -> [UInt8] {
        bytes(0x6744_6698, 4) + bytes(wire, 4) + bytes(cookie, 8)
    }

    static let (ioError, noSpace): (UInt64, UInt64) = (5, 28)

    @Test("P5: a durable write that failed is not forgotten by the flush that follows")
    func failedDurableWrite() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.writeResults = [-Errno.io]
        writeDurably(1, socket)
        settle(&loop)
        request(3, 2, 0, 0, socket)
        settle(&loop)
        writeDurably(3, socket)
        settle(&loop)
        let expected = (1...3).map { failed($0, Self.ioError) }.reduce([], +)
        #expect(world.take(from: socket) == expected)
    }

    @Test(
        "P5: a durable write that is told of earlier losses as a lack of room does not swallow them"
    )
    func lossAsLackOfRoom() throws {
        var loop = try loop()
        let socket = guest(&loop)
        // Write-back of what was written before has failed, and this write's sync is told of it.
        world.writeResults = [-Errno.noSpace]
        lost.set()
        writeDurably(1, socket)
        settle(&loop)
        request(3, 2, 0, 0, socket)
        settle(&loop)
        #expect(
            world.take(from: socket) == failed(1, Self.noSpace) + failed(2, Self.ioError))
    }

    @Test("P2: a durable write that finds no room blames no disk")
    func lackOfRoom() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.writeResults = [-Errno.noSpace]
        writeDurably(1, socket)
        settle(&loop)
        request(3, 2, 0, 0, socket)
        settle(&loop)
        #expect(world.take(from: socket) == failed(1, Self.noSpace) + done(2))
    }

    @Test("P5: a flush fails once a sync of the server's own has failed, and the operator is told")
    func ownSyncFailed() throws {
        let told = Problems()
        shared.setEventHandler(told.note)
        var loop = try loop()
        let socket = guest(&loop)
        live.source.noteFailedSync(
            SystemFault(call: "fdatasync", errno: Errno.canceled), isHeard: false)
        request(3, 1, 0, 0, socket)
        settle(&loop)
        live.source.noteFailedSync(SystemFault(call: "fdatasync", errno: Errno.io), isHeard: false)
        for cookie in 2...3 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        #expect(
            world.take(from: socket)
                == done(1) + failed(2, Self.ioError) + failed(3, Self.ioError))
        #expect(told.disks.count == 1 && told.disks[0].contains("attach the disk again"))
    }

    // MARK: Tracking

    /// The works of the disk's tracking since the last call.
    private func takeWorks() -> [RingWork] {
        defer { world.works = [] }
        return world.works
    }

    private func tracked(_ loop: inout Loop, _ directory: OwnDirectory) throws {
        try addTracked(live, &loop, directory)
        settle(&loop)
    }

    func addTracked(
        _ export: LiveExport, _ loop: inout Loop, _ directory: OwnDirectory,
        memory: DiskDirectory? = nil
    ) throws {
        let places = TrackingPlaces(
            files: DiskDirectory(directory.path + "/\(export.disk.number)"), memory: memory,
            isInMemory: memory != nil, mark: nil)
        let store = try TrackingStore.open(
            places,
            source: SourceIdentity(
                path: "/disk", sizeBytes: UInt64(Self.diskBytes), inode: 0, changedNanoseconds: 0),
            granularityBytes: 1 << 16)
        shared.mailboxes[0].post(
            .addDisk(
                export,
                TrackingSeed(
                    recording: store.recording, log: store.log,
                    doubt: TrackingDoubt(places, spare: shared.spare)), Replies().ticket()))
    }

    /// Lets so many ticks of the ring's clock pass.
    func tick(_ count: Int, _ loop: inout Loop) {
        for _ in 0..<count { pass(UInt64(Limits.tickMilliseconds) * 1_000_000, &loop) }
    }

    private func isSave(_ work: RingWork) -> Bool {
        guard case .saveBits(Self.disk, _, let source) = work else { return false }
        return source === live.source
    }

    private func isLoss(_ work: RingWork) -> Bool {
        if case .declareLoss(Self.disk, _) = work { true } else { false }
    }

    /// The words of the log, if the work is to write it.
    private func words(_ work: RingWork?) -> [UInt64]? {
        if case .writeLog(Self.disk, _, let words, _)? = work { words } else { nil }
    }

    @Test("P3: marks leave the log when the source and the bits were synced, and not before")
    func marksLeave() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        try tracked(&loop, directory)
        tick(2 * Limits.intentClearingTicks, &loop)
        // The log of a disk that was not synced by a clean stop marks everything.
        let works = takeWorks()
        try #require(works.count == 1 && works.allSatisfy(isSave))
        tick(2 * Limits.intentClearingTicks, &loop)
        #expect(world.works.isEmpty)
        shared.mailboxes[0].post(.bitsSaved(Self.disk, nil))
        settle(&loop)
        #expect(words(takeWorks().last) == [0])
    }

    @Test("P3: bits that could not be saved for want of a descriptor or thread are saved later")
    func savedLater() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        try tracked(&loop, directory)
        for errno in [Errno.tooManyFiles, Errno.again, Errno.noMemory] {
            tick(2 * Limits.intentClearingTicks, &loop)
            let works = takeWorks()
            try #require(works.count == 1 && works.allSatisfy(isSave))
            shared.mailboxes[0].post(
                .bitsSaved(Self.disk, SystemFault(call: "open", errno: errno)))
            settle(&loop)
        }
        tick(2 * Limits.intentClearingTicks, &loop)
        let works = takeWorks()
        try #require(works.count == 1 && works.allSatisfy(isSave))
        // What the storage has refused is not believed later.
        shared.mailboxes[0].post(
            .bitsSaved(Self.disk, SystemFault(call: "fdatasync", errno: Errno.noSpace)))
        tick(3 * Limits.intentClearingTicks, &loop)
        #expect(takeWorks().isEmpty)
    }

    @Test(
        "P3: a disk that loses writes gives tracking up within a second, though no region is idle")
    func lossIsNoticed() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        try tracked(&loop, directory)
        let socket = guest(&loop)
        lost.set()
        for cookie in 0..<UInt64(Limits.lossTicks) {
            request(1, cookie, 0, 512, socket)
            send([UInt8](repeating: 1, count: 512), socket)
            tick(1, &loop)
        }
        let works = takeWorks()
        #expect(works.count == 1 && works.allSatisfy(isLoss))
        shared.mailboxes[0].post(.lossDeclared(Self.disk))
        settle(&loop)
        request(1, 99, 0, 512, socket)
        send([UInt8](repeating: 1, count: 512), socket)
        settle(&loop)
        #expect(world.take(from: socket).suffix(16) == done(99)[...])
    }

    @Test("P3: a flush that fails gives tracking up at once", arguments: [false, true])
    func failedFlushIsLoss(isDurableWrite: Bool) throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        try tracked(&loop, directory)
        let socket = guest(&loop)
        if isDurableWrite {
            world.writeResults = [-Errno.io]
            writeDurably(1, socket)
        } else {
            world.syncResults = [-Errno.io]
            request(3, 1, 0, 0, socket)
        }
        settle(&loop)
        #expect(takeWorks().contains(where: isLoss))
    }

    @Test("disks that are attached together do not all sync in the same tick")
    func staggered() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        for number in 1...20 as ClosedRange<UInt64> {
            let export = LiveExport(
                DiskConfiguration(
                    exportName: "d\(number)", path: "/disk", kind: .block, readOnly: false,
                    cacheMode: .buffered, discardMode: .ignore),
                disk: DiskID(number: number), source: live.source, homeRing: 0)
            try addTracked(export, &loop, directory)
        }
        settle(&loop)
        var most = 0
        for _ in 0..<2 * Limits.intentClearingTicks {
            tick(1, &loop)
            most = max(most, takeWorks().count)
        }
        #expect(most == 1)
    }

    // MARK: Growth

    @Test("P2: a resize waits for bits that are being saved while the machine goes on")
    func resizeWaits() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        try tracked(&loop, directory)
        let socket = guest(&loop)
        tick(2 * Limits.intentClearingTicks, &loop)
        let saves = takeWorks()
        try #require(saves.count == 1 && saves.allSatisfy(isSave))
        let ring = shared.mailboxes[0]
        var call = RestCall(Self.disk, ring, milliseconds: 1_000, now: world.now)
        for _ in 0..<5 {
            settle(&loop)
            #expect(call.step(now: world.now) == nil)
            request(1, 7, 0, 512, socket)
            send([UInt8](repeating: 1, count: 512), socket)
            settle(&loop)
            #expect(world.take(from: socket) == done(7))
            world.now += UInt64(Limits.growthPauseMilliseconds) * 1_000_000
            #expect(call.step(now: world.now) == nil)
        }
        ring.post(.bitsSaved(Self.disk, nil))
        settle(&loop)
        for work in takeWorks() where words(work) != nil {
            ring.post(.intentLogWritten(Self.disk, nil))
        }
        var outcome: RestCall.Outcome?
        for _ in 0..<4 where outcome == nil {
            settle(&loop)
            outcome = call.step(now: world.now)
            world.now += UInt64(Limits.growthPauseMilliseconds) * 1_000_000
        }
        #expect(outcome == .resting)
        // Nothing begins before the resize is over.
        _ = takeWorks()
        tick(3 * Limits.intentClearingTicks, &loop)
        #expect(takeWorks().isEmpty)
        ring.post(.resumeClearing(Self.disk))
        tick(2 * Limits.intentClearingTicks + 1, &loop)
        #expect(!takeWorks().isEmpty)
    }

    @Test("a resize of a disk whose bits are never saved is refused when its time is over")
    func resizeInVain() throws {
        let ring = Mailbox<RingMessage>(unwatched: ())
        var now: UInt64 = 0
        var call = RestCall(Self.disk, ring, milliseconds: 100, now: now)
        var outcome: RestCall.Outcome?
        while outcome == nil, now < 10_000_000_000 {
            if case .pauseClearing(_, let ticket)? = ring.takeAll().first { ticket.answer(false) }
            outcome = call.step(now: now)
            now += 10_000_000
        }
        #expect(outcome == .busy && now < 200_000_000)
        var stuck = RestCall(Self.disk, ring, milliseconds: 100, now: 0)
        #expect(stuck.step(now: 1) == nil)
        #expect(stuck.step(now: UInt64(Limits.ringMilliseconds) * 1_000_000) == .stuck)
    }

    // MARK: The thread that saves bits

    @Test("P3: bits of a disk that has lost writes are not saved as if nothing were")
    func savedInOrder() throws {
        let directory = try OwnDirectory()
        let files = GatedDirectory(directory.path + "/tracking")
        let layer = try files.layer()
        let ring = Mailbox<RingMessage>(unwatched: ())
        #expect(layer.mark(offset: 0, length: 1))
        files.gate.open()
        lost.set()
        #expect(RingWork.saveBits(Self.disk, layer, live.source).start(for: ring, shared))
        #expect(answer(ring)?.errno == Errno.io)
        #expect(files.syncs.value == 1, "the bits were synced, by more than their creation")
    }

    @Test("a save of bits that hangs keeps no source that has been closed")
    func sourceGoes() throws {
        let directory = try OwnDirectory()
        let files = GatedDirectory(directory.path + "/tracking")
        let layer = try files.layer()
        let ring = Mailbox<RingMessage>(unwatched: ())
        weak var source: RawSource?
        do {
            let own = RawSource(
                SourceFacts(
                    path: "/disk", sizeBytes: 1 << 20, raw: -1,
                    witness: WriteErrorWitness(raw: -1) { nil }))
            source = own
            #expect(RingWork.saveBits(Self.disk, layer, own).start(for: ring, shared))
        }
        let end = Date().addingTimeInterval(10)
        while files.hanging.value == 0 || source != nil, Date() < end { usleep(1_000) }
        #expect(files.hanging.value == 1 && source == nil && ring.isEmpty)
        files.gate.open()
        #expect(answer(ring) == nil)
    }

    /// What the thread answers with.
    private func answer(_ ring: Mailbox<RingMessage>) -> SystemFault? {
        let end = Date().addingTimeInterval(10)
        while ring.isEmpty, Date() < end { usleep(1_000) }
        guard case .bitsSaved(_, let fault)? = ring.takeAll().first else {
            Issue.record("nothing was answered")
            return nil
        }
        return fault
    }
}

/// What was told of disks.
private final class Problems: Sendable {
    private let texts = Mutex<[String]>([])
    var disks: [String] { texts.withLock { $0 } }
    func note(_ event: ServerEvent) {
        if case .diskProblem(_, let detail) = event { texts.withLock { $0.append(detail) } }
    }
}

/// A directory that goes with its last user.
final class OwnDirectory: Sendable {
    let path: String

    init() throws {
        path =
            FileManager.default.temporaryDirectory.path + "/np-\(UInt64.random(in: 0...UInt64.max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// A directory of tracking files whose syncs hang until the gate opens, but for a layer's first.
private final class GatedDirectory: TrackedDirectory {
    let gate = Gate()
    let hanging = Tally()
    let syncs = Tally()
    private let directory: DiskDirectory
    private let isReady = Atomic<Bool>(false)
    var path: String { directory.path }

    init(_ path: String) { directory = DiskDirectory(path) }

    func layer() throws -> RecordingLayer {
        try make()
        let layer = try RecordingLayer.create(
            in: self, serial: 1, granularityShift: 16, bits: DirtyBitmap(blockCount: 16), live: nil)
        isReady.store(true, ordering: .releasing)
        return layer
    }

    fileprivate func pass() {
        syncs.add()
        guard isReady.load(ordering: .acquiring) else { return }
        hanging.add()
        gate.wait()
    }

    func make() throws(SystemFault) { try directory.make() }
    func names() throws(SystemFault) -> [String] { try directory.names() }
    func open(_ name: String, writable: Bool) throws(SystemFault) -> any TrackedFile {
        GatedFile(try directory.open(name, writable: writable), self)
    }
    func create(_ name: String, reserving: UInt64) throws(SystemFault) -> any TrackedFile {
        GatedFile(try directory.create(name, reserving: reserving), self)
    }
    func rename(_ from: String, to: String) throws(SystemFault) {
        try directory.rename(from, to: to)
    }
    func remove(_ name: String) throws(SystemFault) { try directory.remove(name) }
    func sync() throws(SystemFault) { try directory.sync() }
    func removeIfEmpty() throws(SystemFault) { try directory.removeIfEmpty() }
}

private final class GatedFile: TrackedFile {
    private let file: any TrackedFile
    private let directory: GatedDirectory

    init(_ file: any TrackedFile, _ directory: GatedDirectory) {
        self.file = file
        self.directory = directory
    }

    func sizeBytes() throws(SystemFault) -> UInt64 { try file.sizeBytes() }
    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8] {
        try file.read(at: position, count: count)
    }
    func data(from position: UInt64) throws(SystemFault) -> UInt64? {
        try file.data(from: position)
    }
    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault) {
        try file.write(bytes, at: position)
    }
    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) { try file.write(words, first: first, count: count, at: position) }
    func sync() throws(SystemFault) {
        directory.pass()
        try file.sync()
    }
}
