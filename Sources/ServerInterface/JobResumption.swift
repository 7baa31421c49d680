/// A job that an earlier process has left running, as it was begun.
package struct JobResumption: Sendable {
    /// With the endpoint as it was bound; the identities of its disks mean nothing.
    package var configuration: JobConfiguration
    /// The names of the live exports of its disks, in their order.
    package var liveExports: [String]
    /// How long guest writes were held at its begin, in nanoseconds.
    package var holdNanoseconds: UInt64
    /// Where its files in memory lie.
    package var memory: String

    package init(
        configuration: JobConfiguration, liveExports: [String], holdNanoseconds: UInt64,
        memory: String
    ) {
        self.configuration = configuration
        self.liveExports = liveExports
        self.holdNanoseconds = holdNanoseconds
        self.memory = memory
    }
}
