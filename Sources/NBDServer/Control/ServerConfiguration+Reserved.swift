import Disk
import ServerInterface

extension ServerConfiguration {
    /// What is refused as a source and as scratch.
    func reserved() -> ReservedPaths {
        ReservedPaths(ownPaths + [witnessDirectory, NBDServer.memoryDirectory].compactMap { $0 })
    }
}
