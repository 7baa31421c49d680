package import ServerInterface
import Synchronization

/// The listening socket of the port for watching, which lives as long as the server, whatever
/// serves on it.
///
/// It is bound at the start, or taken over from the server before.
package final class MonitorListener: Sendable {
    private let place: SocketPlace
    private let sockets: SocketKeep
    private let socket: Mutex<SystemCalls.Descriptor?>
    /// Where it is reached, with the real port.
    package let address: String

    /// Takes the socket that an earlier server had there, or binds one and listens.
    package init(_ settings: MonitorSettings, _ sockets: SocketKeep) throws(ControlError) {
        let host = settings.host.contains(":") ? "[\(settings.host)]" : settings.host
        place = SocketPlace(.monitor, "\(host):\(settings.port)")
        self.sockets = sockets
        let descriptor: SystemCalls.Descriptor
        if let number = sockets.take(place) {
            descriptor = SystemCalls.Descriptor(adopting: number)
        } else {
            descriptor = try Self.bind(settings)
        }
        address = "\(host):\(SystemCalls.port(of: descriptor.raw) ?? settings.port)"
        sockets.added(place, descriptor.raw)
        socket = Mutex(consume descriptor)
    }

    private static func bind(
        _ settings: MonitorSettings
    ) throws(ControlError) -> SystemCalls.Descriptor {
        do throws(SystemCalls.Failure) {
            return try SystemCalls.listenTCP(host: settings.host, port: settings.port)
        } catch {
            throw ControlError(
                .systemError, code: "metrics-port-failed", status: 500,
                detail: "cannot listen at '\(settings.host)' port \(settings.port) for --metrics: "
                    + reason(error, settings))
        }
    }

    // What is wrong and what to do, as far as the error tells.
    private static func reason(
        _ failure: SystemCalls.Failure, _ settings: MonitorSettings
    ) -> String {
        if failure.call == "getaddrinfo" {
            let problem = SystemCalls.resolutionProblem(of: settings.host) ?? failure.text
            return "host '\(settings.host)' has no address (\(problem)): give an address of this"
                + " machine, or a port alone for 127.0.0.1"
        }
        if failure.hasNoAddress {
            return "\(failure.text): this machine does not have that address, give one that it has"
        }
        if failure.isTaken {
            return "\(failure.text): another program listens there, choose another port"
        }
        if failure.isForbidden {
            return "\(failure.text): ports below 1024 are for root, choose another port"
        }
        return failure.text
    }

    /// Another descriptor of the socket, which the caller owns.
    package func duplicate() throws(ControlError) -> Int32 {
        try socket.withLock { socket throws(ControlError) in
            guard let raw = socket?.raw else { throw Self.unserved("the socket is closed") }
            do throws(SystemCalls.Failure) {
                return try SystemCalls.duplicate(raw)
            } catch {
                throw Self.unserved(error.text)
            }
        }
    }

    private static func unserved(_ reason: String) -> ControlError {
        ControlError(
            .systemError, code: "metrics-port-failed", status: 500,
            detail: "cannot serve --metrics: " + reason)
    }

    /// Closes the socket; `isHandedOver`: another server has it as well, and goes on with it.
    package func close(isHandedOver: Bool) {
        socket.withLock { socket in
            guard socket != nil else { return }
            if !isHandedOver { sockets.removed(place) }
            socket = nil
        }
    }
}
