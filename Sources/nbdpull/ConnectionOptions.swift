import ArgumentParser
import Control
import ServerInterface

/// The limits and permissions that `serve` and `export` share.
struct ConnectionOptions: ParsableArguments {
    @Option(help: "Maximum number of NBD connections. (default: 100)") var maxConnections: Int?
    @Option(help: "Maximum from one TCP address. (default: half of --max-connections)")
    var maxConnectionsPerPeer: Int?
    @Option(help: "Mode of the unix sockets for NBD, octal. (default: 0600)")
    var socketMode: String?
    @Option(help: "Group of the unix sockets for NBD, by name or number.")
    var socketGroup: String?
}

extension ServerConfiguration {
    /// Checks what depends on several options.
    func checked() throws(ControlError) -> ServerConfiguration {
        for (name, value) in [
            ("max-connections-per-job", maxConnectionsPerJob),
            ("max-connections-per-peer", maxConnectionsPerPeer),
        ] {
            guard let value, !(1...maxConnections).contains(value) else { continue }
            throw .invalidArgument(
                what: "\(name) \(value)",
                detail: "it must be between 1 and max-connections, \(maxConnections)")
        }
        return self
    }
}
