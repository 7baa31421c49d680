package import Foundation

/// The one JSON dialect of the control socket, the event stream and the command line.
package enum ControlJSON {
    /// Keys sorted, slashes plain, times as `ISO8601` writes them.
    package static func encode(_ value: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .custom { date, encoder in
            var container = encoder.singleValueContainer()
            try container.encode(ISO8601.text(date))
        }
        return try encoder.encode(value)
    }

    /// The inverse of `encode(_:)`.
    package static func decode<Value: Decodable>(_ type: Value.Type, from data: Data) throws
        -> Value
    {
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .custom { decoder in
            let container = try decoder.singleValueContainer()
            let text = try container.decode(String.self)
            guard let date = ISO8601.date(text) else {
                throw DecodingError.dataCorruptedError(
                    in: container, debugDescription: "'\(text)' is not a time")
            }
            return date
        }
        return try decoder.decode(type, from: data)
    }
}

/// `{"error":{...}}`: how the control socket reports a `ControlError`.
package struct ErrorBody: Sendable, Hashable, Codable {
    /// The error's parts.
    package struct Content: Sendable, Hashable, Codable {
        package var code: String
        package var libvirtCode: Int
        package var message: String
    }
    package var error: Content

    package init(_ error: ControlError) {
        self.error = Content(
            code: error.code, libvirtCode: error.libvirtCode, message: error.message)
    }
}

/// A request's body: its keys are listed, so that a misspelt key is not taken for an absent one.
package protocol JSONBody: Codable {
    /// Every key there is.
    static var keys: [String] { get }
}

/// `{"domains":[...]}`.
package struct DomainsBody: Sendable, Hashable, Codable {
    package var domains: [DomainView]
    /// Why the list may be incomplete: state files that were left out.
    package var problems: [String]?
}

/// `{"domain":NAME,"disks":[...]}`.
package struct DisksBody: Sendable, Hashable, Codable {
    package var domain: String
    package var disks: [DiskView]
}

/// `{"jobs":[...]}`.
package struct JobsBody: Sendable, Hashable, Codable {
    package var jobs: [JobView]
}

/// `{"jobs":[...]}`, of jobs that have ended.
package struct EndedJobsBody: Sendable, Hashable, Codable {
    /// In the order of their ends.
    package var jobs: [JobInfo]
}

/// `{"ready":true,"problems":[]}`.
package struct ReadyBody: Sendable, Hashable, Codable {
    package var ready: Bool
    /// Why it is not ready.
    package var problems: [String]
}

/// `{"events":[...]}`.
package struct EventsBody: Sendable, Hashable, Codable {
    package var events: [ControlEvent]
}

/// XML as text inside JSON.
package struct XMLBody: Sendable, Hashable, JSONBody {
    package static let keys = ["xml"]
    package var xml: String
    package init(xml: String) { self.xml = xml }
}

/// A job's XML, with what the XML cannot hold.
package struct BackupXMLBody: Sendable, Hashable, Codable {
    package var xml: String
    /// Says by `fallbackReason` which disks are full although the client asked otherwise.
    package var exports: [ExportView]
}

/// The body of a define call in JSON.
package struct DefineBody: Sendable, Hashable, JSONBody {
    package static let keys = ["xml", "granularityBytes"]
    package var xml: String
    /// Bytes for each bit of a dirty bitmap.
    package var granularityBytes: UInt64?
    package init(xml: String, granularityBytes: UInt64? = nil) {
        self.xml = xml
        self.granularityBytes = granularityBytes
    }
}

/// The body of a call that changes a drive's medium.
package struct MediaBody: Sendable, Hashable, JSONBody {
    package static let keys = ["source", "block"]
    /// Path of the new medium; nil empties the drive.
    package var source: String?
    /// True: the medium is a block device.
    package var block: Bool?
    package init(source: String?, block: Bool? = nil) {
        self.source = source
        self.block = block
    }
}

/// The body of a call that makes a disk larger.
package struct SizeBody: Sendable, Hashable, JSONBody {
    package static let keys = ["sizeBytes", "capacity"]
    package var sizeBytes: UInt64?
    /// True: use the size that the disk's source has now.
    package var capacity: Bool?
    package init(sizeBytes: UInt64? = nil, capacity: Bool? = nil) {
        self.sizeBytes = sizeBytes
        self.capacity = capacity
    }
}

/// The body of a begin call in JSON; every part may be left out.
package struct BeginBody: Sendable, Hashable, JSONBody {
    package static let keys = [
        "backupXML", "checkpointXML", "reuseExternal", "ttlSeconds", "fallbackFull",
        "clientRelease", "quiesce", "bandwidth", "compress", "verify", "id",
    ]
    package var backupXML: String?
    package var checkpointXML: String?
    package var reuseExternal: Bool?
    package var ttlSeconds: UInt64?
    /// True: a disk that cannot start from its checkpoint is backed up in full.
    package var fallbackFull: Bool?
    /// True: clients may release clusters with TRIM.
    package var clientRelease: Bool?
    /// True: the guest's file systems are frozen for the instant.
    package var quiesce: Bool?
    /// Of a push: bytes a second, for all disks together.
    package var bandwidth: UInt64?
    /// Of a push: true compresses the clusters of qcow2 targets.
    package var compress: Bool?
    /// Of a push: true reads the targets back and compares them before the job is completed.
    package var verify: Bool?
    /// The job's id: asked again with it, nothing begins twice.
    package var id: String?
    package init(
        backupXML: String? = nil, checkpointXML: String? = nil, reuseExternal: Bool? = nil,
        ttlSeconds: UInt64? = nil, fallbackFull: Bool? = nil, clientRelease: Bool? = nil,
        quiesce: Bool? = nil, id: String? = nil
    ) {
        self.id = id
        self.quiesce = quiesce
        self.clientRelease = clientRelease
        self.fallbackFull = fallbackFull
        self.backupXML = backupXML
        self.checkpointXML = checkpointXML
        self.reuseExternal = reuseExternal
        self.ttlSeconds = ttlSeconds
    }
}

/// The body of an end call.
package struct EndBody: Sendable, Hashable, JSONBody {
    package static let keys = ["failed"]
    /// True: the backup is worthless.
    package var failed: Bool?
    package init(failed: Bool?) { self.failed = failed }
}

/// `{"name":"nbdpull","version":...}`.
package struct ServerBody: Sendable, Hashable, Codable {
    package var name: String
    package var version: String
    package var pid: Int
    /// Whether it has everything that its state directory should contain; `GET /readyz` says why
    /// not.
    package var ready: Bool
}
