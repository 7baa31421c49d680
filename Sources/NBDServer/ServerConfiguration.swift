/// What a server is started with.
package struct ServerConfiguration: Sendable {
    /// Rings (threads); nil takes the number of cores, at most 4.
    package var rings: Int?
    /// Connections of all listeners together.
    package var maxConnections: Int

    package var security: SecurityConfiguration

    package init(
        rings: Int? = nil, maxConnections: Int = 100,
        security: SecurityConfiguration = SecurityConfiguration()
    ) {
        self.security = security
        self.rings = rings
        self.maxConnections = maxConnections
    }

    /// Rings that are started at most by default: one disk's pull does not get faster with more.
    package static let defaultRingsMax = 4
}
