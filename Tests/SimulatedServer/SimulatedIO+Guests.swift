import IORing
import SharedMemory
import Simulation
import SystemLayer

/// Guests that share memory: it is real and mapped, files, sockets and events are the world's.
extension SimulatedIO {
    private var world: ServerWorld { kernel.world }

    private static func ranges(_ table: borrowing VectorTable, _ lane: Int) -> [GuestRange] {
        table.ranges(lane).map { GuestRange(address: $0.address, byteCount: $0.byteCount) }
    }

    mutating func prepareRead(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        tag: UInt64
    ) {
        kernel.prepare(
            KernelOperation(
                tag, .read(file, position: filePosition, count: table.byteCount(lane)),
                guest: Self.ranges(table, lane)))
    }

    mutating func prepareWrite(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable: Bool, tag: UInt64
    ) -> Bool {
        let bytes = WrittenBytes.guest(Self.ranges(table, lane))
        kernel.prepare(
            KernelOperation(tag, .write(file, position: filePosition, bytes, durable: durable)))
        return true
    }

    mutating func readNow(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        mayWait: Bool
    ) -> Int {
        let count = table.byteCount(lane)
        guard let bytes = world.readNow(file, filePosition, count, mayWait: mayWait) else {
            return -Int(Errno.again)
        }
        world.fill(Self.ranges(table, lane), with: bytes[...], from: 0)
        return bytes.count
    }

    mutating func writeNow(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64
    ) -> Int {
        let bytes = world.guestBytes.load(Self.ranges(table, lane))
        return world.writeNow(file, filePosition, Sectors.stamps(bytes))
    }

    mutating func copy(
        from table: borrowing VectorTable, lane: Int, to arena: inout BufferArena, at offset: Int,
        count: Int
    ) -> Int {
        FileCalls.copy(from: table, lane: lane, to: arena, at: offset, count: count)
    }

    mutating func copy(
        from arena: borrowing BufferArena, at offset: Int, count: Int,
        to table: borrowing VectorTable, lane: Int
    ) -> Int {
        FileCalls.copy(from: arena, at: offset, count: count, to: table, lane: lane)
    }

    mutating func prepareKick(_ event: EventHandle, tag: UInt64) {
        guard let event = world.event(event.number) else {
            return world.fail("event \(event.number) is waited for, and closed")
        }
        kernel.prepare(KernelOperation(tag, .kick(event)))
    }

    mutating func makeCall(
        _ event: EventHandle, replacing old: CallHandle?
    ) throws(SystemFault) -> CallHandle {
        guard let event = world.event(event.number) else {
            world.fail("event \(event.number) is to be called, and closed")
            throw SystemFault(call: "io_uring_register", errno: Errno.badDescriptor)
        }
        if let old { close(old) }
        return CallHandle(UInt(world.share(event)))
    }

    mutating func prepareCall(_ call: CallHandle, tag: UInt64) {
        guard let event = world.event(Int32(call.number)) else {
            return world.fail("call \(call.number) is made, and closed")
        }
        kernel.prepare(KernelOperation(tag, .call(event)))
    }

    mutating func close(_ call: CallHandle) { world.close(descriptor: Int32(call.number)) }

    mutating func receiveMessage(
        _ socket: SocketHandle, count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int {
        world.receiveMessage(socket, count, &bytes, &descriptors)
    }

    mutating func sendMessage(
        _ socket: SocketHandle, _ bytes: [UInt8], descriptor: Int32?
    ) -> Int {
        world.sendMessage(socket, bytes, descriptor)
    }

    mutating func event(_ descriptor: Int32) -> EventHandle? {
        world.event(descriptor) == nil ? nil : EventHandle(descriptor)
    }

    mutating func close(_ descriptors: [Int32], by _: SlowCloser) {
        for descriptor in descriptors { world.close(descriptor: descriptor) }
    }

    mutating func close(_ socket: SocketHandle, by _: SlowCloser) { world.close(socket) }
}
