import Disk
import Glibc
import IORing
import NBDProtocol
import ServerInterface
import SharedMemory
import Synchronization
import SystemLayer
import Testing
import VhostClient

@testable import NBDServer

/// Guests that share their memory, on the loop as it is in the server: memory and queues are real,
/// the socket, events and the disk are a stub world's.
@Suite struct VhostRingTests {
    static let diskBytes = 1 << 20
    private static let disk = DiskID(number: 1)
    static let source: Int32 = 1 << 24
    let world = StubWorld()
    private let shared: ServerShared
    private let scope = ExportScope(jobID: nil)
    private let events = Events()

    init() throws {
        shared = try ServerShared(
            RingLayout(rings: 1, servesJobs: false),
            ServerConfiguration(rings: 1, maxConnections: 8),
            security: SecurityStore(SecurityConfiguration()), isSimulated: true)
        shared.setEventHandler { [events] in events.add($0) }
        world.files[Self.source] = [UInt8](repeating: 7, count: Self.diskBytes)
    }

    func export(alignment: Int = 1, isReadOnly: Bool = false) -> LiveExport {
        var facts = SourceFacts(
            path: "/disk", sizeBytes: UInt64(Self.diskBytes), raw: Self.source,
            witness: WriteErrorWitness(raw: -1) { nil })
        facts.type = .blockDevice
        facts.alignment = alignment
        facts.isReadOnly = isReadOnly
        return LiveExport(
            DiskConfiguration(
                exportName: "vda", path: "/disk", kind: .block, readOnly: isReadOnly,
                cacheMode: alignment > 1 ? .none : .buffered, discardMode: .unmap),
            disk: Self.disk, source: RawSource(facts), homeRing: 0)
    }

    func loop(
        _ live: LiveExport, _ other: ServerShared? = nil
    ) throws -> RingLoop<StubIO> {
        let shared = other ?? self.shared
        var loop = try RingLoop(index: 0, shared: shared, io: StubIO(world, shared.mailboxes[0]))
        loop.begin()
        _ = scope.add(.live(live))
        shared.mailboxes[0].post(.addDisk(live, nil, Replies().ticket()))
        shared.mailboxes[0].post(
            .addListener(
                RingListener(
                    number: 1, scope: ExportScope(jobID: nil), security: .plaintext, isUnix: true,
                    handle: StubFrontEnd.listener, guestOf: live)))
        settle(&loop)
        return loop
    }

    func settle(_ loop: inout RingLoop<StubIO>) { for _ in 0..<10 { loop.turn() } }

    func stored(_ offset: Int, _ count: Int) -> [UInt8] {
        Array(world.files[Self.source, default: []][offset..<offset + count])
    }

    @Test("P5: a guest's write lies in the disk when it is answered, and is read back")
    func writesAndReads() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 / 7) }
        let write = guest.put(.write(9, data))
        world.events[StubFrontEnd.kick] = 1
        settle(&loop)
        #expect(write.status(guest.memory) == 0)
        #expect(stored(9 * 512, 8192) == data)
        #expect(guest.calls == 1)
        let read = guest.put(.read(8, sectors: 20))
        settle(&loop)
        #expect(read.status(guest.memory) == 0)
        #expect(read.input(guest.memory) == stored(8 * 512, 20 * 512))
        #expect(try guest.queue.collect().map(\.written) == [1, 20 * 512 + 1])
    }

    @Test("a guest that sleeps is called by the first of many answers, and by few of the others")
    func earlyCalls() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        let reads = (0..<5).map { guest.put(.read(UInt64($0), sectors: 1)) }
        world.events[StubFrontEnd.kick] = 1
        settle(&loop)
        #expect(reads.allSatisfy { $0.status(guest.memory) == 0 })
        #expect(guest.calls == 2)
    }

    @Test("P5: buffers that O_DIRECT cannot use are served all the same", arguments: [512, 4096])
    func unaligned(alignment: Int) throws {
        var loop = try loop(export(alignment: alignment))
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        // The data begins behind the header, at no multiple of anything.
        let data = (0..<1536).map { UInt8(truncatingIfNeeded: $0 / 5) }
        let write = guest.put(.write(3, data))
        settle(&loop)
        #expect(write.status(guest.memory) == 0)
        #expect(stored(3 * 512, 1536) == data)
        #expect(stored(0, 3 * 512) == [UInt8](repeating: 7, count: 3 * 512))
        #expect(stored(6 * 512, 4096) == [UInt8](repeating: 7, count: 4096))
        let read = guest.put(.read(2, sectors: 5))
        settle(&loop)
        #expect(read.status(guest.memory) == 0)
        #expect(read.input(guest.memory) == stored(2 * 512, 5 * 512))
    }

    @Test("P2: a queue stops only when its last request has ended")
    func stopWaits() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        world.hung = [Self.source]
        let write = guest.put(.write(0, [UInt8](repeating: 1, count: 512)))
        settle(&loop)
        #expect(write.status(guest.memory) == 0xee)
        #expect(guest.ask(.getBase(0), [], &loop).isEmpty)
        world.hung = []
        settle(&loop)
        #expect(write.status(guest.memory) == 0)
        #expect(
            Array(world.take(from: guest.socket).dropFirst(12)) == little(UInt32(0))
                + little(UInt32(1)))
        #expect(Set(world.closed).isSuperset(of: [StubFrontEnd.kick, StubFrontEnd.call]))
    }

    @Test(
        "P6: a front-end that goes with requests in flight is waited for, then the next one is served"
    )
    func vanishes() throws {
        let live = export()
        var loop = try loop(live)
        let first = try StubFrontEnd(world)
        first.start(&loop)
        world.hung = [Self.source]
        _ = first.put(.write(0, [UInt8](repeating: 1, count: 512)))
        settle(&loop)
        let second = try StubFrontEnd(world)
        world.sockets[first.socket.number]?.isShut = true
        settle(&loop)
        #expect(!first.isClosed)
        #expect(world.waiting[StubFrontEnd.listener.number]?.count == 1)
        world.hung = []
        settle(&loop)
        #expect(first.isClosed)
        second.start(&loop)
        let read = second.put(.read(0, sectors: 1))
        settle(&loop)
        #expect(read.status(second.memory) == 0)
        #expect(live.clientCount.load(ordering: .relaxed) == 1)
    }

    @Test("P6: a front-end that shrinks its memory loses its session, and nobody else anything")
    func shrinks() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        guest.memory.shrink()
        world.events[StubFrontEnd.kick] = 1
        settle(&loop)
        #expect(guest.isClosed)
        #expect(events.reasons.contains { $0.contains("its memory has gone") })
        let next = try StubFrontEnd(world)
        next.start(&loop)
        let read = next.put(.read(0, sectors: 1))
        settle(&loop)
        #expect(read.status(next.memory) == 0)
    }

    @Test("P5: while an NBD client may write the disk no guest maps its memory")
    func writerFirst() throws {
        let live = export()
        var loop = try loop(live)
        let client = try writer(live, &loop)
        #expect(!client.isClosed)
        let guest = try StubFrontEnd(world)
        _ = guest.ask(.setOwner, [], &loop)
        guest.shareMemory(&loop)
        settle(&loop)
        #expect(guest.isClosed)
        #expect(events.reasons.contains { $0.contains("an NBD client is connected") })
    }

    @Test(
        "P5: while a guest has the disk it is read-only over NBD, also for who was told otherwise")
    func guestFirst() throws {
        let live = export()
        let before = live.description
        var loop = try loop(live)
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        #expect(live.description.flags.contains(.readOnly))
        #expect(!live.description.takesWrites || live.description.flags.contains(.readOnly))
        let client = try writer(live, told: before, &loop)
        #expect(client.isClosed)
        let read = guest.put(.read(0, sectors: 1))
        settle(&loop)
        #expect(read.status(guest.memory) == 0)
        world.sockets[guest.socket.number]?.isShut = true
        settle(&loop)
        #expect(!live.description.flags.contains(.readOnly))
    }

    @Test("P6: a chain without an end breaks its queue, and the front-end is told")
    func brokenQueue() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        // Descriptor 0 names itself as the next.
        guest.memory.write(little(UInt64(0)) + little(UInt32(16)) + [1, 0, 0, 0], 0)
        guest.memory.write([0, 0], guest.queue.available + 4)
        guest.memory.write([1, 0], guest.queue.available + 2)
        settle(&loop)
        #expect(world.events[StubFrontEnd.error] == 1)
        #expect(events.reasons.contains { $0.contains("queue 0 is broken") })
        #expect(!guest.isClosed)
    }

    @Test("P6: a descriptor that is no eventfd ends the session that sent it as a kick")
    func wrongDescriptor() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        _ = guest.ask(.setKick(0), [dup(guest.memory.descriptor)], &loop)
        settle(&loop)
        #expect(guest.isClosed)
    }

    @Test("P5: zeros in the place of memory that has gone are not written to the disk")
    func lostWrite() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        world.hung = [Self.source]
        _ = guest.put(.write(0, [UInt8](repeating: 1, count: 4096)))
        settle(&loop)
        // The write waits for the disk; meanwhile the ring looks at the queue, and finds zeros.
        guest.memory.shrink()
        world.events[StubFrontEnd.kick] = 1
        settle(&loop)
        #expect(events.reasons.contains { $0.contains("its memory has gone") })
        world.hung = []
        settle(&loop)
        #expect(stored(0, 4096) == [UInt8](repeating: 7, count: 4096))
        #expect(guest.isClosed)
    }

    @Test(
        "P6: what is wrong with memory is said with its place, and with the limit of all together")
    func refusedMemory() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        _ = guest.ask(.setOwner, [], &loop)
        let regions = [
            ClientRegion(guest: 0, size: 4096, user: 0),
            ClientRegion(guest: 4096, size: 64 << 20, user: 4096),
        ]
        let numbers = regions.map { _ in dup(guest.memory.descriptor) }
        _ = guest.ask(.setMemory(regions), numbers, &loop)
        settle(&loop)
        #expect(guest.isClosed)
        #expect(
            events.reasons.contains {
                $0.contains(
                    "SET_MEM_TABLE: memory at 0x1000 of 67108864 bytes: its file has 1048576")
            }, "\(events.reasons)")
        #expect(shared.guestMemory.bytes == 0)

        let large = try StubFrontEnd(world)
        _ = large.ask(.setOwner, [], &loop)
        let region = ClientRegion(guest: 0, size: shared.guestMemory.limitBytes / 2, user: 0)
        let more = ClientRegion(guest: region.size, size: 4096, user: region.size)
        _ = large.ask(
            .setMemory([region, more]),
            [dup(guest.memory.descriptor), dup(guest.memory.descriptor)],
            &loop)
        settle(&loop)
        #expect(large.isClosed)
        #expect(
            events.reasons.contains {
                $0.contains("more than 32 TiB") || $0.contains("--vhost-memory")
            },
            "\(events.reasons)")
    }

    @Test("P6: memory is unmapped when its front-end goes, and when it is replaced")
    func unmapped() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        #expect(shared.guestMemory.bytes == UInt64(SharedGuestMemory.byteCount))
        guest.shareMemory(&loop)
        for _ in 0..<500 where shared.guestMemory.bytes > UInt64(SharedGuestMemory.byteCount) {
            usleep(10_000)
        }
        #expect(shared.guestMemory.bytes == UInt64(SharedGuestMemory.byteCount))
        let read = guest.put(.read(0, sectors: 1))
        settle(&loop)
        #expect(read.status(guest.memory) == 0)
        world.sockets[guest.socket.number]?.isShut = true
        settle(&loop)
        #expect(guest.isClosed)
        for _ in 0..<500 where shared.guestMemory.bytes > 0 { usleep(10_000) }
        #expect(shared.guestMemory.bytes == 0)
        #expect(world.endedCalls == [UInt(StubFrontEnd.call)])
    }

    @Test("P6: front-ends leave descriptors to everybody else")
    func fewDescriptors() throws {
        let shared = try ServerShared(
            RingLayout(rings: 1, servesJobs: false),
            ServerConfiguration(rings: 1, maxConnections: 8),
            security: SecurityStore(SecurityConfiguration()),
            spareDescriptorsEnd: Int(StubFrontEnd.error), isSimulated: true)
        shared.setEventHandler { [events] in events.add($0) }
        var loop = try loop(export(), shared)
        let guest = try StubFrontEnd(world)
        _ = guest.ask(.setOwner, [], &loop)
        _ = guest.ask(.setCall(0), [StubFrontEnd.call], &loop)
        #expect(!guest.isClosed)
        _ = guest.ask(.setError(0), [StubFrontEnd.error], &loop)
        settle(&loop)
        #expect(guest.isClosed && world.closed.contains(StubFrontEnd.error))
        #expect(events.reasons.contains { $0.contains("ulimit -n") }, "\(events.reasons)")
    }

    @Test("P6: a disk is not offered to front-ends for which there are no descriptors")
    func noDescriptors() async throws {
        let shared = try ServerShared(
            RingLayout(rings: 1, servesJobs: false),
            ServerConfiguration(rings: 1, maxConnections: 8),
            security: SecurityStore(SecurityConfiguration()), spareDescriptorsEnd: 0,
            isSimulated: true)
        let server = NBDServer(simulating: shared)
        let live = export()
        server.state.withLock { $0.disks[live.disk] = live }
        let fault = await #expect(throws: ServerFault.self) {
            try await server.listenVhost(live.disk, path: "/nonexistent/vda.sock")
        }
        guard case .limitReached(let what, 0)? = fault else {
            Issue.record("\(String(describing: fault))")
            return
        }
        #expect(what.contains("LimitNOFILE"))
    }

    @Test("P6: a guest that cannot be called is refused, and told why in the log")
    func noCalls() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        world.callsFail = true
        _ = guest.ask(.setOwner, [], &loop)
        _ = guest.ask(.setCall(0), [StubFrontEnd.call], &loop)
        settle(&loop)
        #expect(guest.isClosed && world.closed.contains(StubFrontEnd.call))
        #expect(
            events.reasons.contains {
                $0.contains("SET_VRING_CALL: queue 0 cannot be called: io_uring_setup")
            }, "\(events.reasons)")
    }

    @Test("a kick that is no eventfd is said to be none, with its queue")
    func noEvent() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        guest.start(&loop)
        _ = guest.ask(.setCall(0), [dup(guest.memory.descriptor)], &loop)
        settle(&loop)
        #expect(
            events.reasons.contains {
                $0.contains("SET_VRING_CALL: the descriptor for queue 0 is no eventfd")
            }, "\(events.reasons)")
    }

    @Test("P6: memory that is not in memory is not mapped")
    func fileAsMemory() throws {
        var loop = try loop(export())
        let guest = try StubFrontEnd(world)
        _ = guest.ask(.setOwner, [], &loop)
        let region = ClientRegion(guest: 0, size: 4096, user: 0)
        _ = guest.ask(.setMemory([region]), [unsafe open("/proc/self/exe", O_RDONLY)], &loop)
        settle(&loop)
        #expect(guest.isClosed)
    }

    // MARK: NBD

    private struct Client {
        let world: StubWorld
        let socket: SocketHandle
        var isClosed: Bool { world.sockets[socket.number]?.isClosed ?? false }
    }

    /// An NBD client that has negotiated the export as it was described.
    private func writer(
        _ live: LiveExport, told: ExportDescription? = nil, _ loop: inout RingLoop<StubIO>
    ) throws -> Client {
        let socket = SocketHandle(300)
        world.sockets[300] = StubWorld.Socket()
        #expect(shared.counts.admit(scope, nil))
        shared.mailboxes[0].post(
            .adopt(
                ConnectionSeed(
                    socket: socket, scope: scope, isUnix: true, peer: nil,
                    security: ConnectionSecurity(
                        mode: .plaintext, localPeer: nil, rights: .everything),
                    negotiated: Negotiated(
                        export: told ?? live.description, replyMode: .simple, contexts: []),
                    input: [], output: [])))
        settle(&loop)
        return Client(world: world, socket: socket)
    }
}

/// What the server has said.
private final class Events: Sendable {
    private let all = Mutex<[ServerEvent]>([])
    func add(_ event: ServerEvent) { all.withLock { $0.append(event) } }
    var reasons: [String] {
        all.withLock { $0 }.compactMap {
            if case .guestProblem(_, let reason) = $0 { reason } else { nil }
        }
    }
}
