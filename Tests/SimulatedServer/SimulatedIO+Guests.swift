import IORing
import SharedMemory
import SystemLayer

/// No front-end of vhost-user comes in this world: nobody listens for one.
extension SimulatedIO {
    private func unexpected() -> Never { preconditionFailure("no guest shares memory here") }

    mutating func prepareRead(
        _: FileHandle, into _: borrowing VectorTable, lane _: Int, filePosition _: UInt64,
        tag _: UInt64
    ) { unexpected() }

    mutating func prepareWrite(
        _: FileHandle, from _: borrowing VectorTable, lane _: Int, filePosition _: UInt64,
        durable _: Bool, tag _: UInt64
    ) { unexpected() }

    mutating func readNow(
        _: FileHandle, into _: borrowing VectorTable, lane _: Int, filePosition _: UInt64,
        mayWait _: Bool
    ) -> Int { unexpected() }

    mutating func writeNow(
        _: FileHandle, from _: borrowing VectorTable, lane _: Int, filePosition _: UInt64
    ) -> Int { unexpected() }

    mutating func copy(
        from _: borrowing VectorTable, lane _: Int, to _: inout BufferArena, at _: Int,
        count _: Int
    ) -> Int { unexpected() }

    mutating func copy(
        from _: borrowing BufferArena, at _: Int, count _: Int, to _: borrowing VectorTable,
        lane _: Int
    ) -> Int { unexpected() }

    mutating func prepareKick(_: EventHandle, tag _: UInt64) { unexpected() }

    mutating func makeCall(_: EventHandle, replacing _: CallHandle?) -> CallHandle { unexpected() }

    mutating func prepareCall(_: CallHandle, tag _: UInt64) { unexpected() }

    mutating func close(_: CallHandle) { unexpected() }

    mutating func receiveMessage(
        _: SocketHandle, count _: Int, into _: inout [UInt8], descriptors _: inout [Int32]
    ) -> Int { unexpected() }

    mutating func sendMessage(_: SocketHandle, _: [UInt8], descriptor _: Int32?) -> Int {
        unexpected()
    }

    mutating func event(_: Int32) -> EventHandle? { unexpected() }

    mutating func close(_: [Int32], by _: SlowCloser) { unexpected() }

    mutating func close(_: SocketHandle, by _: SlowCloser) { unexpected() }
}
