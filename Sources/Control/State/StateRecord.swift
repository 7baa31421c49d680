package import Foundation

/// The form of one state file: a header line with a checksum, then JSON.
///
/// `nbdpull-state 1 KIND CRC32 LENGTH` and a newline, then LENGTH bytes of JSON whose CRC-32 (IEEE
/// 802.3) is CRC32 in eight hexadecimal digits. A torn, lengthened or altered file is told apart
/// from a whole one.
package enum StateRecord {
    static let formatVersion = 1
    /// A larger file is not ours.
    static let bytesMax = 16 << 20

    /// Why a file's bytes are not a record.
    package struct Damage: Error, Hashable {
        package let detail: String
        /// A later version of this program wrote it: whole, but not for us to read or to replace.
        package var isNewer = false
    }

    /// The file of a value.
    package static func encode(kind: String, _ value: some Encodable) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .millisecondsSince1970
        return wrap(kind: kind, body: Array(try encoder.encode(value)))
    }

    /// A file with this content, whatever it is, under a header that fits it.
    package static func wrap(kind: String, body: [UInt8]) -> [UInt8] {
        let header = "nbdpull-state \(formatVersion) \(kind) \(hex(crc32(body))) \(body.count)\n"
        return Array(header.utf8) + body
    }

    /// The value that a file holds.
    package static func decode<Value: Decodable>(
        kind: String, _ type: Value.Type, from bytes: [UInt8]
    ) throws(Damage) -> Value {
        guard let newline = bytes.prefix(128).firstIndex(of: UInt8(ascii: "\n")) else {
            throw Damage(detail: "it has no header line (empty or torn)")
        }
        let fields = String(decoding: bytes[..<newline], as: UTF8.self)
            .split(separator: " ").map(String.init)
        guard fields.count == 5, fields[0] == "nbdpull-state", fields[2] == kind else {
            throw Damage(detail: "its header is not that of a \(kind) record")
        }
        guard fields[1] == String(formatVersion) else {
            throw Damage(
                detail: "its format version \(fields[1]) is not known",
                isNewer: isNewer(header: bytes[..<newline]))
        }
        let body = Array(bytes[(newline + 1)...])
        guard fields[4] == String(body.count) else {
            throw Damage(detail: "it holds \(body.count) bytes instead of \(fields[4])")
        }
        guard fields[3] == hex(crc32(body)) else {
            throw Damage(detail: "its checksum does not match its content")
        }
        do {
            let decoder = JSONDecoder()
            decoder.dateDecodingStrategy = .millisecondsSince1970
            return try decoder.decode(type, from: Data(body))
        } catch {
            throw Damage(detail: "its content cannot be read: \(error)")
        }
    }

    /// Whether a file is a whole record of this version, of whatever kind.
    static func isWhole(_ bytes: [UInt8]) -> Bool {
        guard let newline = bytes.prefix(128).firstIndex(of: UInt8(ascii: "\n")) else {
            return false
        }
        let fields = String(decoding: bytes[..<newline], as: UTF8.self).split(separator: " ")
        let body = Array(bytes[(newline + 1)...])
        return fields.count == 5 && fields[1] == String(formatVersion)
            && fields[3] == hex(crc32(body)) && fields[4] == String(body.count)
    }

    /// Whether a header line is that of a record of a later version.
    package static func isNewer(header: some Sequence<UInt8>) -> Bool {
        let fields = String(decoding: Array(header), as: UTF8.self).split(separator: " ")
        guard fields.count >= 2, fields[0] == "nbdpull-state", let version = UInt64(fields[1])
        else { return false }
        return version > formatVersion
    }

    /// CRC-32 as IEEE 802.3 defines it (reflected polynomial 0xEDB88320).
    static func crc32(_ bytes: some Sequence<UInt8>) -> UInt32 {
        var value: UInt32 = 0xFFFF_FFFF
        for byte in bytes {
            value = (value >> 8) ^ crcTable[Int((value ^ UInt32(byte)) & 0xFF)]
        }
        return ~value
    }

    private static let crcTable: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { value, _ in
            (value >> 1) ^ (value & 1 == 1 ? 0xEDB8_8320 : 0)
        }
    }

    private static func hex(_ value: UInt32) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: 8 - text.count) + text
    }
}

/// A domain as the state directory keeps it.
package struct StoredDomain: Sendable, Hashable, Codable {
    package var name: String
    /// Names its file; nil in a record of an earlier version, whose file has the domain's name.
    package var uuid: String?
    /// The domain's XML as it was defined.
    package var xml: String
    /// Bytes for each bit of a dirty bitmap; nil means the server's default.
    package var granularityBytes: UInt32?
    package init(
        name: String, uuid: String? = nil, xml: String, granularityBytes: UInt32? = nil
    ) {
        self.name = name
        self.uuid = uuid
        self.xml = xml
        self.granularityBytes = granularityBytes
    }
}

/// A job as the state directory keeps it: enough to report it and to clean up after it.
package struct StoredJob: Sendable, Hashable, Codable {
    /// A scratch file that the job makes.
    package struct Scratch: Sendable, Hashable, Codable {
        package var path: String
        /// Set once the file exists; only a file of this identity is ever removed.
        package var identity: SystemCalls.FileIdentity?
        package init(path: String, identity: SystemCalls.FileIdentity? = nil) {
            self.path = path
            self.identity = identity
        }
    }

    /// What a push job writes.
    package struct Target: Sendable, Hashable, Codable {
        /// The disk's target.
        package var disk: String
        /// Absolute path that the result has in the end.
        package var path: String
        /// The job makes the file, under another name until it is whole.
        package var isNew: Bool
        /// Set once the file exists; of what was there before, from the begin.
        package var identity: SystemCalls.FileIdentity?
        /// During which boot: after another, a device of that name may be another one.
        package var bootID: String?
        /// A worker has had it for itself, and may have written it.
        package var isBegun: Bool?

        package init(disk: String, path: String, isNew: Bool) {
            self.disk = disk
            self.path = path
            self.isNew = isNew
        }
    }

    package var id: String
    package var domain: String
    package var begun: Date
    /// Only files that did not exist before the job.
    package var scratch: [Scratch]
    package var socketPath: String?
    /// Sum of the disks' sizes, bytes.
    package var tempTotalBytes: UInt64
    /// Set by earlier versions when the server ended the job itself while stopping.
    package var cancelledReason: String?
    package var elapsedMilliseconds: UInt64?
    /// Name of the checkpoint made with it.
    ///
    /// The record's existence means that the job has not ended well: on finding it, take the
    /// checkpoint back.
    package var checkpoint: String?
    /// The checkpoint was deleted while the job ran.
    package var checkpointDeleted: Bool?
    /// Why it broke, if it did and could still be written down.
    package var brokenReason: String?
    /// What the next server needs to go on with it, while it runs whole; nil: it cannot.
    package var resume: Lenient<StoredResume>?
    /// Why it ends with its server, where that was known at its begin.
    package var notLasting: String?
    /// How it ended, once it has; then the record is kept only for what is still to be cleaned up.
    package var ended: JobInfo?
    /// What a push job writes; nil of a pull job, and once it is dealt with.
    package var targets: [Target]?

    package init(
        id: String, domain: String, begun: Date, scratch: [Scratch], socketPath: String?,
        tempTotalBytes: UInt64 = 0
    ) {
        self.id = id
        self.domain = domain
        self.begun = begun
        self.scratch = scratch
        self.socketPath = socketPath
        self.tempTotalBytes = tempTotalBytes
        self.cancelledReason = nil
        self.elapsedMilliseconds = nil
        self.checkpoint = nil
        self.checkpointDeleted = nil
        self.brokenReason = nil
        self.resume = nil
        self.notLasting = nil
        self.ended = nil
    }
}

/// The jobs of one domain that have ended, as the state directory keeps them.
package struct StoredHistory: Sendable, Hashable, Codable {
    package var domain: String
    /// Oldest first.
    package var jobs: [JobInfo]
    /// Whether `domjobinfo --completed` has not shown the last one yet.
    package var isLastUnread: Bool
    package init(domain: String, jobs: [JobInfo], isLastUnread: Bool) {
        self.domain = domain
        self.jobs = jobs
        self.isLastUnread = isLastUnread
    }
}
