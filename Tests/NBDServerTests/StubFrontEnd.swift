import Glibc
import SystemLayer
import VhostClient

@testable import NBDServer

/// A guest's memory: a file in memory that its driver sees, and that is shared with the ring.
@safe
final class SharedGuestMemory: DriverMemory {
    static let byteCount = 1 << 20
    let descriptor: Int32
    private let bytes: UnsafeMutableRawBufferPointer

    init() throws(SystemFault) {
        let path = "/dev/shm/nbdpull-test-\(getpid())-\(UInt64.random(in: .min ... .max))"
        let flags = O_RDWR | O_CREAT | O_EXCL
        let file = try SystemFault.check("open") { unsafe open(path, flags, 0o600) }
        descriptor = file
        unsafe _ = unlink(path)
        _ = try SystemFault.check("ftruncate") { ftruncate(file, off_t(Self.byteCount)) }
        let place = unsafe mmap(
            nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        guard let place = unsafe place, unsafe place != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        unsafe bytes = UnsafeMutableRawBufferPointer(start: place, count: Self.byteCount)
    }

    deinit {
        unsafe munmap(bytes.baseAddress, Self.byteCount)
        close(descriptor)
    }

    func read(_ address: UInt64, _ count: Int) -> [UInt8] {
        unsafe Array(bytes[Int(address)..<Int(address) + count])
    }
    func write(_ new: [UInt8], _ address: UInt64) {
        for (index, byte) in new.enumerated() { unsafe bytes[Int(address) + index] = byte }
    }
    func fence() {}

    /// Takes the memory away under everybody's feet.
    func shrink() { ftruncate(descriptor, 0) }
}

/// A front-end on a stub world, with one queue whose rings lie at the start of its memory.
final class StubFrontEnd {
    /// Events of the world's.
    static let (kick, call, error): (Int32, Int32, Int32) = (
        3 << 24, 3 << 24 + 1, 3 << 24 + 2
    )
    static let listener = ListenerHandle(900)

    let world: StubWorld
    let socket: SocketHandle
    let memory: SharedGuestMemory
    let queue: DriverQueue
    private let size: UInt16
    private var nextPlace: UInt64 = 0x10000

    /// One that waits to be accepted.
    init(
        _ world: StubWorld, memory: SharedGuestMemory? = nil, size: UInt16 = 16
    ) throws(SystemFault) {
        self.size = size
        self.world = world
        if let memory { self.memory = memory } else { self.memory = try SharedGuestMemory() }
        queue = DriverQueue(self.memory, size: size, at: 0, hasEventIndex: false)
        socket = SocketHandle(Int32(500 + world.sockets.count))
        world.sockets[socket.number] = StubWorld.Socket()
        world.waiting[Self.listener.number, default: []].append(socket)
    }

    /// Sends one message and lets the ring answer; returns the reply's payload.
    func ask(
        _ message: ClientMessage, _ descriptors: [Int32] = [], _ loop: inout RingLoop<StubIO>
    ) -> [UInt8] {
        world.sockets[socket.number]?.descriptors = descriptors
        world.sockets[socket.number]?.incoming += message.bytes
        for _ in 0..<6 { loop.turn() }
        return Array(world.take(from: socket).dropFirst(12))
    }

    /// Everything up to the queue's first kick.
    func start(_ loop: inout RingLoop<StubIO>) {
        _ = ask(.setOwner, [], &loop)
        _ = ask(.setFeatures(1 << 32 | 1 << 9 | 1 << 13 | 1 << 14), [], &loop)
        shareMemory(&loop)
        _ = ask(.setSize(0, UInt32(size)), [], &loop)
        _ = ask(
            .setAddresses(
                0, descriptors: queue.descriptors, used: queue.used, available: queue.available),
            [], &loop)
        _ = ask(.setBase(0, 0), [], &loop)
        _ = ask(.setCall(0), [Self.call], &loop)
        _ = ask(.setError(0), [Self.error], &loop)
        _ = ask(.setKick(0), [Self.kick], &loop)
        world.events = [:]
    }

    /// A second queue, of 16 entries; its rings lie at `address`.
    func startSecond(at address: UInt64, _ loop: inout RingLoop<StubIO>) -> DriverQueue {
        let second = DriverQueue(memory, size: 16, at: address, hasEventIndex: false)
        _ = ask(.setSize(1, 16), [], &loop)
        _ = ask(
            .setAddresses(
                1, descriptors: second.descriptors, used: second.used,
                available: second.available),
            [], &loop)
        _ = ask(.setBase(1, 0), [], &loop)
        _ = ask(.setCall(1), [Self.error + 1], &loop)
        _ = ask(.setKick(1), [Self.error + 2], &loop)
        return second
    }

    func shareMemory(_ loop: inout RingLoop<StubIO>) {
        let region = ClientRegion(guest: 0, size: UInt64(SharedGuestMemory.byteCount), user: 0)
        _ = ask(.setMemory([region]), [dup(memory.descriptor)], &loop)
    }

    /// Puts a request into the queue.
    func put(_ request: DriverRequest, at place: UInt64? = nil) -> DriverPlacement {
        let placement = request.place(memory, at: place ?? nextPlace)
        if place == nil { nextPlace += 0x10000 }
        _ = queue.stage(placement.buffers)
        queue.publish()
        return placement
    }

    var isClosed: Bool { world.sockets[socket.number]?.isClosed ?? false }
    var calls: UInt64 { world.events[Self.call, default: 0] }
}
