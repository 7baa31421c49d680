import Simulation
import SystemLayer

/// Sockets as the kernel sees them.
extension ServerWorld {
    func socket(_ handle: SocketHandle) -> SimulatedSocket? {
        let index = Int(handle.number)
        return sockets.indices.contains(index) ? sockets[index] : nil
    }

    /// The next peer that waits; now and then there are no descriptors.
    func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle? {
        guard backlog[listener.number]?.isEmpty == false else { return nil }
        if !isFinishing, draw.chance(swarm.acceptFaultRate) {
            throw SystemFault(call: "accept4", errno: 24)
        }
        let handle = backlog[listener.number]?.removeFirst()
        if let handle { socket(handle)?.isAccepted = true }
        return handle
    }

    /// Takes as much as there is room for, or some of it.
    func send(_ bytes: [UInt8], to handle: SocketHandle) -> Int {
        guard let socket = socket(handle), !socket.isClosed else {
            fail("bytes are sent to socket \(handle.number), which is closed")
            return -Int(Errno.io)
        }
        if socket.isShut || socket.isClosedByPeer { return -32 }
        let room = SimulatedSocket.roomBytes - socket.output.count
        guard room > 0 else { return -Int(Errno.again) }
        var count = min(room, bytes.count)
        if count > 1, draw.chance(20) { count = 1 + draw.below(count) }
        socket.output += bytes.prefix(count)
        return count
    }

    func hasHungUp(_ handle: SocketHandle) -> Bool { socket(handle)?.isClosedByPeer ?? true }

    func shutdown(_ handle: SocketHandle) {
        if socket(handle)?.isClosed != false { fail("socket \(handle.number) is shut, and closed") }
        socket(handle)?.isShut = true
    }

    func close(_ handle: SocketHandle) {
        guard let socket = socket(handle) else { return }
        if socket.isClosed { fail("socket \(handle.number) is closed twice") }
        for kernel in kernels where kernel.inFlight.contains(where: { $0.isOf(handle) }) {
            fail("socket \(handle.number) is closed, and ring \(kernel.ring) waits for it")
        }
        socket.isClosed = true
        dropMessages(socket)
    }

    /// Receives and events complete when there is something to tell.
    func advanceWait(_ operation: KernelOperation, _ kernel: Kernel) -> Bool {
        switch operation.kind {
        case .receive(let handle, let count, let whole):
            return receive(operation, handle, count, whole)
        case .event(.messages): return !shared.mailboxes[kernel.ring].isEmpty
        case .event(.writable(let handle)):
            guard let socket = socket(handle) else { return true }
            if canary == .missesWritable { return socket.isAtEnd }
            return socket.isAtEnd || socket.output.count < SimulatedSocket.roomBytes
        case .event(.readable(let handle)):
            guard let socket = socket(handle) else { return true }
            return socket.isAtEnd || !socket.messages.isEmpty
        case .event(.tick): return ticksDue.remove(kernel.ring) != nil
        case .event(.acceptable(let listener)):
            return backlog[listener.number]?.isEmpty == false
        default: return false
        }
    }

    private func receive(
        _ operation: KernelOperation, _ handle: SocketHandle, _ count: Int, _ whole: Bool
    ) -> Bool {
        guard let socket = socket(handle) else {
            operation.result = -Errno.io
            return true
        }
        var take = min(count - operation.bytes.count, socket.input.count)
        if take > 1, !whole, draw.chance(30) { take = 1 + draw.below(take) }
        operation.bytes += socket.input.prefix(take)
        socket.input.removeFirst(take)
        let isEnough = whole ? operation.bytes.count == count : !operation.bytes.isEmpty
        // Interrupted, with what there is.
        let isCut = whole && draw.chance(swarm.interruptRate)
        guard isEnough || socket.isAtEnd || isCut else { return false }
        if isCut, operation.bytes.isEmpty {
            operation.result = -4
        } else {
            operation.result = Int32(operation.bytes.count)
        }
        return true
    }
}

extension KernelOperation {
    /// Whether it is a receive from a socket.
    fileprivate func isOf(_ socket: SocketHandle) -> Bool {
        switch kind {
        case .receive(let handle, _, _): handle == socket
        case .event(.writable(let handle)), .event(.readable(let handle)): handle == socket
        default: false
        }
    }
}
