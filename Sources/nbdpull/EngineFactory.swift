import Control
import NBDServer

/// The one place that knows which engine serves the disks.
enum EngineFactory {
    /// Makes the engine; `rings` nil takes one per core, at most four.
    static func make(
        rings: Int?, maxConnections: Int, security: SecurityConfiguration
    ) throws(ControlError) -> any BackupEngine {
        do throws(ServerFault) {
            return try NBDServer(
                configuration: ServerConfiguration(
                    rings: rings, maxConnections: maxConnections, security: security))
        } catch {
            throw controlError(from: error)
        }
    }
}
