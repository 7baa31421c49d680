import Simulation
import System

@testable import NBDServer

/// Sockets as the kernel sees them.
extension ServerWorld {
    func socket(_ handle: SocketHandle) -> SimulatedSocket? {
        let index = Int(handle.number)
        return sockets.indices.contains(index) ? sockets[index] : nil
    }

    /// Takes as much as there is room for, or some of it.
    func send(_ bytes: [UInt8], to handle: SocketHandle) -> Int {
        guard let socket = socket(handle), !socket.isClosed else { return -Int(Errno.io) }
        if socket.isShut || socket.isClosedByPeer { return -32 }
        let room = SimulatedSocket.roomBytes - socket.output.count
        guard room > 0 else { return -Int(Errno.again) }
        var count = min(room, bytes.count)
        if draw.chance(20) { count = 1 + draw.below(count) }
        socket.output += bytes.prefix(count)
        return count
    }

    func hasHungUp(_ handle: SocketHandle) -> Bool { socket(handle)?.isClosedByPeer ?? true }

    func shutdown(_ handle: SocketHandle) { socket(handle)?.isShut = true }

    func close(_ handle: SocketHandle) {
        guard let socket = socket(handle) else { return }
        if socket.isClosed { fail("socket \(handle.number) is closed twice") }
        socket.isClosed = true
    }

    /// Receives and events complete when there is something to tell.
    func advanceWait(_ operation: KernelOperation, _ kernel: Kernel) -> Bool {
        switch operation.kind {
        case .receive(let handle, let count, let whole):
            guard let socket = socket(handle) else {
                operation.result = -Errno.io
                return true
            }
            if socket.isClosed {
                fail("socket \(handle.number) is closed with a receive in flight")
                return true
            }
            var take = min(count - operation.bytes.count, socket.input.count)
            if take > 1, !whole, draw.chance(30) { take = 1 + draw.below(take) }
            operation.bytes += socket.input.prefix(take)
            socket.input.removeFirst(take)
            let isEnough = whole ? operation.bytes.count == count : !operation.bytes.isEmpty
            guard isEnough || socket.isAtEnd else { return false }
            operation.result = Int32(operation.bytes.count)
            return true
        case .event(.messages): return !shared.mailboxes[kernel.ring].isEmpty
        case .event(.writable(let handle)):
            guard let socket = socket(handle) else { return true }
            return socket.isAtEnd || socket.output.count < SimulatedSocket.roomBytes
        case .event(.tick): return ticksDue.remove(kernel.ring) != nil
        case .event(.acceptable): return false
        default: return false
        }
    }
}
