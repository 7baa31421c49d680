import Control
import NBDServer
import ServerInterface

/// The one place that knows which engine serves the disks.
enum EngineFactory {
    /// Makes the engine.
    static func make(_ configuration: ServerConfiguration) throws(ControlError) -> any BackupEngine
    {
        do throws(ServerFault) {
            return try NBDServer(configuration: configuration)
        } catch {
            throw controlError(from: error)
        }
    }
}
