import Tracking

/// What a ledger's file says about itself: whose it is, and what belongs to it.
package struct LedgerFacts: Sendable, Hashable {
    /// The boot during which it was made.
    package var bootID: String
    package var jobID: String
    /// The disk's target.
    package var target: String
    /// Bytes of the disk at the job's instant.
    package var sizeBytes: UInt64
    /// What tells the disk's source from others, and the scratch.
    package var source: String
    package var scratch: String
    /// Bytes of a scratch device; 0 for a file.
    package var scratchBytes: UInt64
    /// Bytes that scratch could take at the begin, and those of its file system that are left to
    /// machines.
    package var roomBytes: UInt64
    package var reservedBytes: UInt64
    /// Bytes that the source took on its file system at the begin.
    package var allocatedBytes: UInt64
    /// Whether the disk's dirty bitmap lies beside it.
    package var hasBitmap: Bool

    package init(
        bootID: String, jobID: String, target: String, sizeBytes: UInt64, source: String,
        scratch: String, scratchBytes: UInt64 = 0, roomBytes: UInt64 = 0,
        reservedBytes: UInt64 = 0, allocatedBytes: UInt64 = 0, hasBitmap: Bool = false
    ) {
        self.bootID = bootID
        self.jobID = jobID
        self.target = target
        self.sizeBytes = sizeBytes
        self.source = source
        self.scratch = scratch
        self.scratchBytes = scratchBytes
        self.roomBytes = roomBytes
        self.reservedBytes = reservedBytes
        self.allocatedBytes = allocatedBytes
        self.hasBitmap = hasBitmap
    }

    /// The version that is written, and the only one read.
    package static let version = 1
    private static let title = "nbdpull-ledger"
    private static let keys = [
        "boot", "job", "target", "cluster", "size", "source", "scratch", "scratch-size", "room",
        "reserved", "allocated", "bitmap",
    ]

    package func encode() -> [UInt8] {
        let values = [
            bootID, jobID, TrackingRecord.escaped(target), "\(ClusterGeometry.clusterBytes)",
            "\(sizeBytes)", source, scratch, "\(scratchBytes)", "\(roomBytes)",
            "\(reservedBytes)", "\(allocatedBytes)", hasBitmap ? "1" : "0",
        ]
        var lines = ["\(Self.title) \(Self.version)"]
        lines += zip(Self.keys, values).map { "\($0) \($1)" }
        let body = Array((lines.joined(separator: "\n") + "\n").utf8)
        return body + Array("crc \(Zlib.crc32(body.span))\n".utf8)
    }

    /// Why bytes are not a ledger's header that this version can go on with.
    package enum Damage: Error, Sendable, Hashable {
        case notALedger
        case version(String)
        case damaged
    }

    /// Reads what `encode` made; bytes after it are ignored.
    package static func decode(_ bytes: [UInt8]) throws(Damage) -> LedgerFacts {
        let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        guard let first = lines.first, let version = TrackingRecord.value(title, first) else {
            throw .notALedger
        }
        guard version == "\(Self.version)" else { throw .version(version) }
        guard lines.count > keys.count + 1,
            let sum = TrackingRecord.value("crc", lines[keys.count + 1]).flatMap({ UInt32($0) })
        else { throw .damaged }
        let body = Array((lines[...keys.count].joined(separator: "\n") + "\n").utf8)
        guard sum == Zlib.crc32(body.span) else { throw .damaged }
        var values: [String: String] = [:]
        for (key, line) in zip(keys, lines.dropFirst()) {
            guard let value = TrackingRecord.value(key, line) else { throw .damaged }
            values[key] = value
        }
        func number(_ key: String) throws(Damage) -> UInt64 {
            guard let number = values[key].flatMap({ UInt64($0) }) else { throw .damaged }
            return number
        }
        guard try number("cluster") == UInt64(ClusterGeometry.clusterBytes) else {
            throw .damaged
        }
        return LedgerFacts(
            bootID: values["boot"] ?? "", jobID: values["job"] ?? "",
            target: TrackingRecord.unescaped(values["target"] ?? ""),
            sizeBytes: try number("size"), source: values["source"] ?? "",
            scratch: values["scratch"] ?? "", scratchBytes: try number("scratch-size"),
            roomBytes: try number("room"), reservedBytes: try number("reserved"),
            allocatedBytes: try number("allocated"), hasBitmap: try number("bitmap") == 1)
    }
}
