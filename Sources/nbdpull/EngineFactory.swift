import Control
import NBDServer
import ServerInterface

/// The one place that knows which engine serves the disks.
enum EngineFactory {
    /// Where the engine keeps what outlives the process.
    static let memoryDirectory = NBDServer.memoryDirectory

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
