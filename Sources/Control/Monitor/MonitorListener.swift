/// The listening socket of the port for watching, before somebody serves on it.
///
/// It is bound at the start, so that a port that is taken is refused before anything else has happened.
/// Whoever hands the server over to another process hands over `descriptor` with the other listeners.
package struct MonitorListener: ~Copyable, Sendable {
    private let socket: SystemCalls.Descriptor
    /// Where it is reached, with the real port.
    package let address: String

    /// Binds and listens.
    package init(_ settings: MonitorSettings) throws(ControlError) {
        do throws(SystemCalls.Failure) {
            socket = try SystemCalls.listenTCP(host: settings.host, port: settings.port)
        } catch {
            throw ControlError(
                .systemError, code: "metrics-port-failed", status: 500,
                detail: "cannot listen at '\(settings.host)' port \(settings.port) for --metrics: "
                    + error.text)
        }
        let port = SystemCalls.port(of: socket.raw) ?? settings.port
        address =
            settings.host.contains(":")
            ? "[\(settings.host)]:\(port)" : "\(settings.host):\(port)"
    }

    /// The socket's number, valid while this value lives.
    package var descriptor: Int32 { socket.raw }

    /// Gives the socket away to somebody who closes it.
    consuming func release() throws(SystemCalls.Failure) -> Int32 {
        try SystemCalls.duplicate(socket.raw)
    }
}
