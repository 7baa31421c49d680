package import ServerInterface

/// All that a running job was begun with, for the next server.
package struct StoredResume: Sendable, Hashable, Codable {
    /// The version that is written, and the only one read: the next server ends jobs of others.
    package static let version = 1

    package var version = Self.version
    /// The boot during which the job began.
    package var bootID: String
    /// The domain's uuid.
    package var uuid: String
    package var plan: BackupPlan
    /// Where the job is served, with its real port.
    package var endpoint: ListenEndpoint
    package var security: ListenerSecurity
    package var clientRelease: Bool
    package var copyTimeoutMilliseconds: UInt64
    /// How long writes were held at the begin.
    package var holdNanoseconds: UInt64
    /// When it began, in nanoseconds since the machine was started.
    package var begunNanoseconds: UInt64
    package var timeToLiveSeconds: UInt64?
    /// Size of each disk at the instant, by target, in bytes.
    package var diskSizes: [String: UInt64]
    /// Where its files in memory lie.
    package var memory: String
}

/// A part of a record that another version may have written in another form: what cannot be read is nil,
/// and costs nothing else of the record.
package struct Lenient<Value: Sendable & Hashable & Codable>: Sendable, Hashable, Codable {
    package var value: Value?

    package init(_ value: Value?) { self.value = value }

    package init(from decoder: any Decoder) throws {
        value = try? Value(from: decoder)
    }

    package func encode(to encoder: any Encoder) throws { try value?.encode(to: encoder) }
}
