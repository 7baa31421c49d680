import Glibc
import IORing
import SharedMemory
import SystemLayer

@testable import NBDServer

/// A stub world's side of guests that share memory: the memory is real, files and sockets are not.
extension StubIO {
    // What is prepared happens at once, and is told later.

    mutating func prepareRead(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        tag: UInt64
    ) {
        let result = readNow(
            file, into: table, lane: lane, filePosition: filePosition, mayWait: true)
        world.pending.append((tag, .nothing(Int32(result))))
    }

    mutating func prepareWrite(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable _: Bool, tag: UInt64
    ) -> Bool {
        if world.hung.contains(file.number) {
            world.pending.append((tag, .stuck(file)))
        } else {
            let result = writeNow(file, from: table, lane: lane, filePosition: filePosition)
            world.pending.append((tag, .nothing(Int32(result))))
        }
        return !world.changeThreads.contains(file.number)
    }

    mutating func readNow(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        mayWait _: Bool
    ) -> Int {
        let bytes = world.files[file.number, default: []].dropFirst(Int(filePosition))
            .prefix(table.byteCount(lane))
        var span = passage.mutableBytes(0, count: bytes.count)
        for (index, byte) in bytes.enumerated() {
            span.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
        }
        return FileCalls.copy(from: passage, at: 0, count: bytes.count, to: table, lane: lane)
    }

    mutating func writeNow(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64
    ) -> Int {
        if world.hung.contains(file.number) { return -Int(Errno.again) }
        let count = table.byteCount(lane)
        let got = FileCalls.copy(from: table, lane: lane, to: passage, at: 0, count: count)
        guard got == count else { return got }
        world.store(passage.lend(0, count: count).copy(), in: file, at: filePosition)
        return count
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
        world.pending.append((tag, .kick(event)))
    }

    mutating func makeCall(
        _ event: EventHandle, replacing _: CallHandle?
    ) throws(SystemFault) -> CallHandle {
        if world.callsFail { throw SystemFault(call: "io_uring_setup", errno: Errno.tooManyFiles) }
        return CallHandle(UInt(event.number))
    }

    mutating func prepareCall(_ call: CallHandle, tag _: UInt64) {
        world.events[Int32(call.number), default: 0] += 1
    }

    mutating func close(_ call: CallHandle) { world.endedCalls.append(call.number) }

    func kick(_ event: EventHandle) -> Int32? {
        guard world.events[event.number, default: 0] > 0 else { return nil }
        world.events[event.number] = 0
        return 8
    }

    func hasMessage(_ socket: SocketHandle) -> Bool {
        guard let state = world.sockets[socket.number] else { return true }
        return state.isShut || !state.incoming.isEmpty
    }

    mutating func receiveMessage(
        _ socket: SocketHandle, count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int {
        guard let state = world.sockets[socket.number], !state.isShut else { return 0 }
        let found = state.incoming.prefix(count)
        guard !found.isEmpty else { return -Int(Errno.again) }
        bytes += found
        descriptors += state.descriptors
        world.sockets[socket.number]?.incoming.removeFirst(found.count)
        world.sockets[socket.number]?.descriptors = []
        return found.count
    }

    mutating func sendMessage(
        _ socket: SocketHandle, _ bytes: [UInt8], descriptor: Int32?
    ) -> Int {
        world.sockets[socket.number]?.outgoing += bytes
        if let descriptor { world.sockets[socket.number]?.sentDescriptors.append(dup(descriptor)) }
        return bytes.count
    }

    /// Numbers that no descriptor of the process has are events of the world's.
    mutating func event(_ descriptor: Int32) -> EventHandle? {
        descriptor >= StubFrontEnd.kick ? EventHandle(descriptor) : nil
    }

    mutating func close(_ descriptors: [Int32], by closer: SlowCloser) {
        world.closed += descriptors
        closer.close(descriptors.filter { $0 < StubFrontEnd.kick })
    }

    mutating func close(_ socket: SocketHandle, by _: SlowCloser) { close(socket) }
}
