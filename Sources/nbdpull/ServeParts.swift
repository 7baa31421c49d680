import Control
import NBDServer
import ServerInterface
import ServiceLifecycle

/// A socket that the service manager has opened.
enum PassedSocket {
    /// Serves live exports on it, if what it would carry is allowed there.
    @discardableResult
    static func adopt(
        _ descriptor: Int32, _ engine: any BackupEngine, _ security: ListenerSecurity,
        _ allowPlaintext: Bool
    ) async throws(ControlError) -> ListenEndpoint {
        let bound: ListenEndpoint
        do throws(ServerFault) {
            bound = try ListenEndpoint.bound(to: descriptor)
        } catch {
            throw controlError(from: error)
        }
        try PlaintextPolicy.check(bound, security: security, allowPlaintext: allowPlaintext)
        do throws(ServerFault) {
            return try await engine.adoptLive(descriptor: descriptor, security: security)
        } catch {
            throw controlError(from: error)
        }
    }
}

/// Waits for the stop signal, then does what stopping takes.
struct StopService: Service {
    /// Done first: from then on a stop signal is waited for.
    var begin: @Sendable () async throws -> Void = {}
    let stop: @Sendable () async -> Void

    func run() async throws {
        try await begin()
        // Cancelled means that another service failed; there is as much to clean up then.
        try? await gracefulShutdown()
        await stop()
    }
}
