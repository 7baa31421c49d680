import Core
import Disk
import IORing
import NBDProtocol
import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Tables
import Testing

@testable import NBDServer

/// The ring's loop as it is in the server, given turns on a world of arrays: no thread, no
/// descriptor.
@Suite struct RingLoopTests {
    static let diskBytes = 1 << 20
    static let disk = DiskID(number: 1)
    static let (source, scratch): (Int32, Int32) = (1 << 24, 2 << 24)
    let world = StubWorld()
    let shared: ServerShared
    let live: LiveExport
    let scope = ExportScope(jobID: nil)
    /// The source's witness is to be told of a loss.
    let lost = Flag()

    init(flight: FlightRecorder? = nil) throws {
        var configuration = ServerConfiguration(rings: 1, maxConnections: 8)
        configuration.copyMemoryBytes = 8 << 20
        shared = try ServerShared(
            RingLayout(rings: 1, servesJobs: false), configuration,
            security: SecurityStore(SecurityConfiguration()), flight: flight, isSimulated: true)
        world.files[Self.source] = [UInt8](repeating: 7, count: Self.diskBytes)
        world.files[Self.scratch] = [UInt8](repeating: 0, count: Self.diskBytes)
        var facts = SourceFacts(
            path: "/disk", sizeBytes: UInt64(Self.diskBytes), raw: Self.source,
            witness: WriteErrorWitness(raw: -1) { [lost] in lost.take() ? Errno.io : nil })
        facts.type = .blockDevice
        facts.paysForLargeFolios = true
        live = LiveExport(
            DiskConfiguration(
                exportName: "vda", path: "/disk", kind: .block, readOnly: false,
                cacheMode: .buffered, discardMode: .ignore),
            disk: Self.disk, source: RawSource(facts), homeRing: 0)
        _ = scope.add(.live(live))
    }

    typealias Loop = RingLoop<StubIO>

    /// A ring without a disk.
    func emptyLoop() throws -> Loop {
        var loop = try Loop(index: 0, shared: shared, io: StubIO(world, shared.mailboxes[0]))
        loop.begin()
        return loop
    }

    func loop() throws -> Loop {
        var loop = try emptyLoop()
        shared.mailboxes[0].post(.addDisk(live, nil, Replies().ticket()))
        settle(&loop)
        return loop
    }

    /// Turns until nothing happens any more.
    func settle(_ loop: inout Loop) {
        for _ in 0..<20 { loop.turn() }
    }

    func pass(_ nanoseconds: UInt64, _ loop: inout Loop) {
        world.now += nanoseconds
        world.ticks += 1
        settle(&loop)
    }

    // MARK: A guest

    func bytes(_ number: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: number >> UInt64((count - 1 - $0) * 8)) }
    }

    /// A guest that has its export, by EXPORT_NAME without zeroes.
    func guest(_ loop: inout Loop, _ name: String = "vda") -> SocketHandle {
        let socket = SocketHandle(Int32(world.sockets.count + 1))
        world.sockets[socket.number] = StubWorld.Socket()
        #expect(shared.counts.admit(scope, nil))
        shared.mailboxes[0].post(
            .adopt(
                ConnectionSeed(
                    socket: socket, scope: scope, isUnix: true, peer: nil,
                    security: ConnectionSecurity(
                        mode: .plaintext, localPeer: nil, rights: .everything),
                    negotiated: nil, input: [], output: Handshake.greeting)))
        send(bytes(3, 4) + bytes(0x4948_4156_454F_5054, 8) + bytes(1, 4) + bytes(3, 4), socket)
        send(Array(name.utf8), socket)
        settle(&loop)
        let reply = world.take(from: socket)
        #expect(reply.count == 18 + 10, "\(reply.count) bytes")
        #expect(reply.dropFirst(18).prefix(8) == bytes(UInt64(Self.diskBytes), 8)[...])
        return socket
    }

    func send(_ bytes: [UInt8], _ socket: SocketHandle) {
        world.sockets[socket.number]?.incoming += bytes
    }

    /// A request: 0 reads, 1 writes, 2 ends, 3 flushes.
    func request(
        _ command: UInt64, _ cookie: UInt64, _ offset: Int, _ count: Int, _ socket: SocketHandle
    ) {
        send(
            bytes(0x2560_9513, 4) + bytes(0, 2) + bytes(command, 2) + bytes(cookie, 8)
                + bytes(UInt64(offset), 8) + bytes(UInt64(count), 4), socket)
    }

    func done(_ cookie: UInt64) -> [UInt8] {
        bytes(0x6744_6698, 4) + bytes(0, 4) + bytes(cookie, 8)
    }

    @Test("a guest writes and reads back, and when it has gone nothing is left of it")
    func guestWrites() throws {
        var loop = try loop()
        let socket = guest(&loop)
        request(1, 11, 8192, 4096, socket)
        send([UInt8](repeating: 9, count: 4096), socket)
        request(0, 12, 4096, 8192, socket)
        settle(&loop)
        let expected =
            done(11) + done(12) + [UInt8](repeating: 7, count: 4096)
            + [UInt8](repeating: 9, count: 4096)
        #expect(world.take(from: socket) == expected)
        #expect(world.files[Self.source]?[8192] == 9)
        request(2, 13, 0, 0, socket)
        settle(&loop)
        #expect(world.sockets[socket.number]?.isClosed == true)
        let (pages, connections) = (loop.arena.usedPages, loop.connections.count)
        #expect(pages == 0 && connections == 0)
        #expect(shared.counts.current == 0)
    }

    @Test(
        "what is not in memory is read and written later, and a peer that sends bytes one by one is served"
    )
    func slowly() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.hung = [Self.source]
        request(1, 21, 0, 4096, socket)
        send([UInt8](repeating: 5, count: 4096), socket)
        let sent = world.sockets[socket.number]?.incoming ?? []
        world.sockets[socket.number]?.incoming = []
        for byte in sent {
            send([byte], socket)
            loop.turn()
        }
        request(0, 22, 65536, 4096, socket)
        settle(&loop)
        #expect(world.take(from: socket).isEmpty)
        world.hung = []
        settle(&loop)
        #expect(
            world.take(from: socket)
                == done(21) + done(22) + [UInt8](repeating: 7, count: 4096))
    }

    func failed(_ cookie: UInt64) -> [UInt8] {
        bytes(0x6744_6698, 4) + bytes(UInt64(Errno.io), 4) + bytes(cookie, 8)
    }

    @Test("P5: a flush that failed is not forgotten by the next one that succeeds")
    func failedFlush() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.syncResults = [0, -Errno.io]
        for cookie in 61...64 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        #expect(world.syncResults.isEmpty)
        #expect(world.take(from: socket) == done(61) + failed(62) + failed(63) + failed(64))
    }

    @Test("P5: a loss that some other call was told of fails the next flush, and all that follow")
    func lossToldElsewhere() throws {
        var loop = try loop()
        let socket = guest(&loop)
        request(3, 65, 0, 0, socket)
        settle(&loop)
        // Each witness is told once.
        lost.set()
        for cookie in 66...67 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        #expect(world.take(from: socket) == done(65) + failed(66) + failed(67))
    }

    @Test("P1, P3: a sync that takes long is noted for whoever comes after a kill")
    func hungSync() throws {
        var loop = try loop()
        let socket = guest(&loop)
        let source = live.source
        func isNoted() -> Bool { source.doubt == .hungSync }
        // A write that must be durable is a sync, too; one that need not be is none.
        for (command, flags) in [(3, 0), (1, 1), (1, 0)] as [(UInt64, UInt64)] {
            world.hung = [Self.source]
            send(
                bytes(0x2560_9513, 4) + bytes(flags, 2) + bytes(command, 2) + bytes(75, 8)
                    + bytes(0, 8) + bytes(command == 1 ? 4096 : 0, 4), socket)
            if command == 1 { send([UInt8](repeating: 9, count: 4096), socket) }
            settle(&loop)
            pass(4_000_000_000, &loop)
            #expect(!isNoted())
            pass(2_000_000_000, &loop)
            #expect(isNoted() == (command == 3 || flags == 1), "command \(command)")
            world.hung = []
            settle(&loop)
            pass(100_000_000, &loop)
            #expect(!isNoted())
            #expect(world.take(from: socket) == done(75))
        }
    }

    @Test("P1, P3: a flush of an upstream that the server itself waits for long is noted as well")
    func hungUpstream() throws {
        let remote = SlowRemote()
        var facts = SourceFacts(
            path: "nbd://host/disk", sizeBytes: UInt64(Self.diskBytes), raw: Self.source,
            witness: WriteErrorWitness(raw: -1) { nil })
        facts.type = .other
        facts.remote = remote
        let source = RawSource(facts)
        let thread = try WorkerThread(name: "test-sync") { try? source.makeDurable() }
        _ = remote.begun.wait(milliseconds: -1)
        #expect(source.ownSyncIsUnderWay(since: .max))
        remote.answered.arrive()
        thread.wait(milliseconds: -1)
        #expect(!source.ownSyncIsUnderWay(since: .max))
    }

    @Test("P2: a sync that could not be begun blames no disk")
    func notBegun() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.syncResults = [-Errno.canceled]
        for cookie in 68...69 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        let reply = world.take(from: socket)
        #expect(reply.count == 32 && Array(reply.suffix(16)) == done(69))
    }

    @Test("P2: a flush that a signal interrupts is made again, and the disk is not blamed")
    func interruptedFlush() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.syncResults = [-Errno.interrupted, -Errno.interrupted]
        for cookie in 71...72 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        #expect(world.take(from: socket) == done(71) + done(72))
    }

    @Test("P1: a write that comes while its disk is held waits until the disk resumes")
    func held() throws {
        var loop = try loop()
        let socket = guest(&loop)
        let replies = Replies()
        shared.mailboxes[0].post(.hold(Self.disk, replies.ticket(4)))
        settle(&loop)
        #expect(replies.take()?.number == 4)
        request(1, 31, 0, 512, socket)
        send([UInt8](repeating: 1, count: 512), socket)
        settle(&loop)
        #expect(world.take(from: socket).isEmpty && world.files[Self.source]?[0] == 7)
        shared.mailboxes[0].post(.resume(Self.disk))
        settle(&loop)
        #expect(world.take(from: socket) == done(31))
    }

    // MARK: A job

    func job() throws -> BackupExport {
        let facts = ScratchFacts(
            path: "/scratch", raw: Self.scratch, slotLimit: 64, readers: [],
            witness: WriteErrorWitness(raw: -1) { nil })
        return try BackupExport(
            JobDiskConfiguration(
                disk: Self.disk, target: "vda", exportName: "vda",
                scratch: ScratchConfiguration(kind: .file, path: "/scratch", reuseExternal: false)),
            jobID: "job", live: live, scratch: ScratchStorage(facts), home: shared.mailboxes[0],
            reservedBytes: 0, allocatedBytes: 0, granularityShift: 16,
            copyTimeoutMilliseconds: 1_000, mayRelease: false)
    }

    private func begin(_ export: BackupExport, _ loop: inout Loop) {
        var instant = Instant()
        instant.exports = [export]
        var call = InstantCall(instant, shared, now: world.now)
        var outcome: InstantCall.Outcome?
        for _ in 0..<10 where outcome == nil {
            outcome = call.step(now: world.now)
            settle(&loop)
        }
        #expect(outcome?.result == .fixed)
    }

    @Test("P1: old content is in scratch before a write changes it")
    func copied() throws {
        var loop = try loop()
        let socket = guest(&loop)
        let export = try job()
        begin(export, &loop)
        request(1, 41, 0, 512, socket)
        send([UInt8](repeating: 1, count: 512), socket)
        settle(&loop)
        guard case .writeScratch(_, let ticket, let bytes, 0)? = world.works.last else {
            Issue.record("nothing is preserved")
            return
        }
        #expect(bytes.copy() == [UInt8](repeating: 7, count: ClusterGeometry.clusterBytes))
        #expect(world.files[Self.source]?[0] == 7 && world.take(from: socket).isEmpty)
        shared.mailboxes[0].post(.scratchWritten(ticket, .written))
        settle(&loop)
        #expect(world.take(from: socket) == done(41) && world.files[Self.source]?[0] == 1)
        #expect(export.ledger.view.place(of: 0) == .slot(0))
    }

    @Test(
        "P2: a job whose scratch hangs breaks when its time is over, and its buffer is kept for the write"
    )
    func scratchHangs() throws {
        var loop = try loop()
        let socket = guest(&loop)
        let export = try job()
        begin(export, &loop)
        let before = loop.arena.usedPages
        request(1, 51, 0, 512, socket)
        send([UInt8](repeating: 1, count: 512), socket)
        settle(&loop)
        pass(500_000_000, &loop)
        #expect(world.take(from: socket).isEmpty)
        let ticket = try #require(world.running.first)
        pass(600_000_000, &loop)
        #expect(world.take(from: socket) == done(51))
        #expect(export.brokenReason != nil && export.ledger.view.isClosed)
        let during = loop.arena.usedPages
        #expect(during > before, "the hung write still reads its buffer")
        shared.mailboxes[0].post(.scratchWritten(ticket, .written))
        settle(&loop)
        let after = loop.arena.usedPages
        #expect(after == before)
    }

    @Test("a job ends, its disk is detached, and the ring stops")
    func ends() throws {
        var loop = try loop()
        let socket = guest(&loop)
        let export = try job()
        begin(export, &loop)
        var end = EndCall([export], milliseconds: 1_000, shared, now: world.now)
        settle(&loop)
        var isEnded = end.step(now: world.now)
        settle(&loop)
        isEnded = isEnded ?? end.step(now: world.now)
        #expect(isEnded == true)
        var detach = DetachCall(
            Self.disk, live.id, home: 0, gracefulMilliseconds: 1_000, forcedMilliseconds: 1_000,
            shared, now: world.now)
        var outcome: RemoveDiskCall.Outcome?
        for _ in 0..<10 where outcome == nil {
            settle(&loop)
            outcome = detach.step(now: world.now)
        }
        #expect(outcome == .removed && world.sockets[socket.number]?.isClosed == true)
        var stop = StopCall(shared, now: world.now)
        settle(&loop)
        let isFinished = loop.isFinished
        #expect(isFinished)
        loop.end()
        #expect(stop.step(now: world.now) == true)
    }
}

/// Something that is to be told once.
final class Flag: Sendable {
    private let isSet = Atomic<Bool>(false)
    func set() { isSet.store(true, ordering: .relaxed) }
    func take() -> Bool { isSet.exchange(false, ordering: .relaxed) }
}

/// An upstream that flushes when it is told to.
private final class SlowRemote: RemoteSource {
    let begun = Latch(count: 1)
    let answered = Latch(count: 1)

    func makeDurable() throws(SystemFault) {
        begun.arrive()
        _ = answered.wait(milliseconds: -1)
    }
    func beginFlush() {}
    var discards: Bool { false }
    var zeroesFast: Bool { false }
    var tellsAllocation: Bool { false }
    var zeroingUnit: UInt64 { 1 }
    var before: RemoteState { RemoteState() }
    func close(milliseconds: Int32) -> RemoteState? { RemoteState() }
    func heedLoss() {}
    func forgetLoss() {}
    func leave() {}
    func release() {}
}
