package import ServerInterface
import Synchronization
import SystemLayer

/// The listening unix socket of a front end, which lives as long as the server, no matter what
/// accepts on it.
package final class FrontSocket: Sendable {
    private let place: SocketPlace
    private let sockets: SocketKeep
    private let listener: Mutex<Listener?>

    /// Takes the socket that an earlier server had there, or binds one.
    package init(
        _ role: SocketPlace.Role, path: String, mode: UInt32, group: UInt32?,
        _ sockets: SocketKeep
    ) throws(HandoverFault) {
        place = SocketPlace(role, path)
        self.sockets = sockets
        do throws(SystemFault) {
            let listener = try Self.listener(place, path, mode, group, sockets)
            sockets.added(place, listener.raw)
            self.listener = Mutex(consume listener)
        } catch {
            throw HandoverFault(
                "cannot listen on socket '\(path)': \(error.call): \(error.errorText)")
        }
    }

    private static func listener(
        _ place: SocketPlace, _ path: String, _ mode: UInt32, _ group: UInt32?,
        _ sockets: SocketKeep
    ) throws(SystemFault) -> Listener {
        if let number = sockets.take(place) {
            do throws(SystemFault) {
                return try .inherited(
                    OwnedDescriptor(adopting: number), path: path, mode: mode, group: group)
            } catch {
                return try .unix(path: path, mode: mode, group: group)
            }
        }
        return try .unix(path: path, mode: mode, group: group)
    }

    /// Another descriptor of the socket, which the caller owns: who accepts on it may close it.
    package func duplicate() throws(HandoverFault) -> Int32 {
        try listener.withLock { listener throws(HandoverFault) in
            guard let raw = listener?.raw else { throw HandoverFault("the socket is closed") }
            do throws(SystemFault) {
                return try OwnedDescriptor.duplicate(raw)
            } catch {
                throw HandoverFault("\(error.call): \(error.errorText)")
            }
        }
    }

    /// Closes the socket; its file goes, or stays for the next server.
    package func close(keepingFile: Bool) {
        listener.withLock { slot in
            guard let listener = slot.take() else { return }
            if keepingFile { return listener.closeKeepingFile() }
            sockets.removed(place)
            listener.close()
        }
    }
}

extension SocketKeep {
    /// A keep for the next server of this process, with other descriptors of the same sockets: of
    /// those in use, and of those that wait for somebody to listen.
    package func duplicated() -> SocketKeep {
        let copy = SocketKeep()
        let sockets = (inUse + waiting).compactMap { socket -> Socket? in
            guard let number = try? OwnedDescriptor.duplicate(socket.descriptor) else { return nil }
            return Socket(place: socket.place, descriptor: number)
        }
        for number in copy.offer(sockets) { OwnedDescriptor.closeNumber(number) }
        return copy
    }

    /// Closes what nobody has taken, but for places where somebody is still to listen; returns it.
    package func closeRest(but awaited: Set<SocketPlace> = []) -> [Socket] {
        let rest = takeRest(but: awaited)
        for socket in rest { OwnedDescriptor.closeNumber(socket.descriptor) }
        return rest
    }
}
