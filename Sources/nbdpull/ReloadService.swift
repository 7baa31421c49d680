import Control
import ServerInterface
import ServiceLifecycle
import UnixSignals

/// Reads credentials and access rules again on SIGHUP; connections stay as they are.
struct ReloadService: Service {
    let engine: any BackupEngine

    func run() async throws {
        let signals = await UnixSignalsSequence(trapping: .sighup)
        for await _ in signals.cancelOnGracefulShutdown() { await reload() }
    }

    /// Reads them once.
    func reload() async {
        do throws(ServerFault) {
            try await engine.reloadSecurity()
            Console.error("nbdpull: credentials and access rules reloaded")
        } catch {
            let text = controlError(from: error).message
            Console.error("error: not reloaded, what was in force stays: \(text)")
        }
    }
}
