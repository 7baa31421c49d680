import Disk
import ServerInterface

extension ServerConfiguration {
    /// What is refused as a source and as scratch.
    var reserved: ReservedPaths {
        ReservedPaths(ownPaths + [witnessDirectory, NBDServer.memoryDirectory].compactMap { $0 })
    }
}
