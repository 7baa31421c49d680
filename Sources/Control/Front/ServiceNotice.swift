/// Reports the server's state to a service manager (the protocol of `sd_notify(3)`).
package enum ServiceNotice {
    /// Sends `state` (`READY=1`, `STOPPING=1`) to the socket that `NOTIFY_SOCKET` names; nothing
    /// without one.
    ///
    /// Returns whether it was sent. A service manager that cannot be reached is no reason to stop.
    @discardableResult
    package static func send(_ state: String, _ environment: [String: String]) -> Bool {
        guard let path = environment["NOTIFY_SOCKET"], !path.isEmpty else { return false }
        return SystemCalls.sendDatagram(state, unixPath: path)
    }
}
