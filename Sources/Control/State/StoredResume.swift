package import ServerInterface

/// All that a running job was begun with, for the next server.
package struct StoredResume: Sendable, Hashable, Codable {
    /// The newest version that is written, and that is read: the next server ends jobs of newer
    /// ones.
    package static let version = 2

    /// 2 where the plan has bitmaps that version 1 does not know, else 1.
    package var version: Int
    /// Whether this program can go on with it.
    package var isKnown: Bool { (1...Self.version).contains(version) }
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

    package init(
        bootID: String, uuid: String, plan: BackupPlan, endpoint: ListenEndpoint,
        security: ListenerSecurity, clientRelease: Bool, copyTimeoutMilliseconds: UInt64,
        holdNanoseconds: UInt64, begunNanoseconds: UInt64, timeToLiveSeconds: UInt64?,
        diskSizes: [String: UInt64], memory: String
    ) {
        version = plan.disks.contains { $0.moreBitmaps != nil } ? 2 : 1
        self.bootID = bootID
        self.uuid = uuid
        self.plan = plan
        self.endpoint = endpoint
        self.security = security
        self.clientRelease = clientRelease
        self.copyTimeoutMilliseconds = copyTimeoutMilliseconds
        self.holdNanoseconds = holdNanoseconds
        self.begunNanoseconds = begunNanoseconds
        self.timeToLiveSeconds = timeToLiveSeconds
        self.diskSizes = diskSizes
        self.memory = memory
    }
}

/// A part of a record that another version may have written in another form: what cannot be read is
/// nil, and costs nothing else of the record.
package struct Lenient<Value: Sendable & Hashable & Codable>: Sendable, Hashable, Codable {
    package var value: Value?

    package init(_ value: Value?) { self.value = value }

    package init(from decoder: any Decoder) throws {
        value = try? Value(from: decoder)
    }

    package func encode(to encoder: any Encoder) throws { try value?.encode(to: encoder) }
}
