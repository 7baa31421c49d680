package import Foundation
package import ServerInterface

/// What one server writes of a domain's disks so that another one goes on with their checkpoints.
package struct DiskState: Sendable, Hashable, Codable {
    /// One disk.
    package struct Disk: Sendable, Hashable, Codable {
        /// The disk's target.
        package var disk: String
        /// Counts the moves of the disk.
        package var generation: UInt64
        package var source: MovedSource
        package var granularityBytes: UInt32
        /// Oldest first; the last one records.
        package var layers: [Layer]

        package init(
            disk: String, generation: UInt64, source: MovedSource, granularityBytes: UInt32,
            layers: [Layer]
        ) {
            self.disk = disk
            self.generation = generation
            self.source = source
            self.granularityBytes = granularityBytes
            self.layers = layers
        }
    }

    /// A layer of the disk's bits; their bytes follow, in the order of disks and layers.
    package struct Layer: Sendable, Hashable, Codable {
        package var checkpoint: String?
        package var bytes: Int

        package init(checkpoint: String?, bytes: Int) {
            self.checkpoint = checkpoint
            self.bytes = bytes
        }
    }

    /// Names this move, and no other.
    package var id: String
    package var exported: Date
    package var domain: String
    package var uuid: String
    package var disks: [Disk]
    package var checkpoints: [CheckpointMetadata]

    package init(
        id: String, exported: Date, domain: String, uuid: String, disks: [Disk],
        checkpoints: [CheckpointMetadata]
    ) {
        self.id = id
        self.exported = exported
        self.domain = domain
        self.uuid = uuid
        self.disks = disks
        self.checkpoints = checkpoints
    }
}

/// The form of the file: a header line, JSON, then the layers of the disks.
///
/// `nbdpull-disk-state 1 CRC32 JSON-LENGTH LENGTH` and a newline; the checksum and LENGTH are of
/// what follows the JSON and the JSON itself. A torn, lengthened or altered file is told apart from
/// a whole one.
package enum DiskStateFile {
    /// The version that is written, and the only one read.
    static let version: UInt64 = 1
    private static let title = "nbdpull-disk-state"
    /// A larger file is neither written nor read.
    package static let bytesMax = 256 << 20
    /// The same of its JSON.
    package static let headBytesMax = 32 << 20
    private static let headerBytesMax = 128

    /// Why a file cannot be used.
    package struct Damage: Error, Sendable, Hashable { package let detail: String }

    /// The file; throws for what `decode` would refuse.
    package static func encode(
        _ state: DiskState, _ layers: [[UInt8]]
    ) throws(Damage) -> [UInt8] {
        if let problem = problem(state) { throw Damage(detail: problem) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .millisecondsSince1970
        let head: [UInt8]
        do {
            head = Array(try encoder.encode(state))
        } catch {
            throw Damage(detail: "it cannot be encoded: \(error)")
        }
        let count = layers.reduce(head.count) { $0 + $1.count }
        guard head.count <= headBytesMax, count < bytesMax - headerBytesMax else {
            throw Damage(
                detail: "it would have \(count) bytes, \(head.count) of them descriptions, and the"
                    + " most are \(bytesMax) and \(headBytesMax): delete checkpoints")
        }
        let body = head + layers.joined()
        let sum = String(StateRecord.crc32(body), radix: 16)
        return Array("\(title) \(version) \(sum) \(head.count) \(body.count)\n".utf8) + body
    }

    /// The state and its layers' bytes, in their order.
    package static func decode(
        _ bytes: [UInt8]
    ) throws(Damage) -> (state: DiskState, tracking: [MovedTracking]) {
        guard
            let newline = bytes.prefix(headerBytesMax).firstIndex(of: UInt8(ascii: "\n"))
        else { throw Damage(detail: "it is no state of disks") }
        let fields = String(decoding: bytes[..<newline], as: UTF8.self)
            .split(separator: " ", omittingEmptySubsequences: false)
        guard fields.count >= 2, fields[0] == title, let found = UInt64(fields[1]) else {
            throw Damage(detail: "it is no state of disks")
        }
        guard found == version else {
            throw Damage(
                detail: "a newer version of nbdpull wrote it (format \(found), this one reads"
                    + " \(version)): take the disk over by that version")
        }
        // No copy: it may be large.
        let body = bytes[(newline + 1)...]
        guard fields.count == 5, let headCount = Int(fields[3]), headCount >= 0,
            fields[4] == String(body.count), headCount <= min(body.count, headBytesMax)
        else { throw Damage(detail: "it is cut off, or longer than it says") }
        guard fields[2] == String(StateRecord.crc32(body), radix: 16) else {
            throw Damage(detail: "its checksum does not match its content")
        }
        let state: DiskState
        do {
            let decoder = JSONDecoder()
            decoder.dateDecodingStrategy = .millisecondsSince1970
            state = try decoder.decode(DiskState.self, from: Data(body.prefix(headCount)))
        } catch {
            throw Damage(detail: "its content cannot be read: \(error)")
        }
        if let problem = problem(state) { throw Damage(detail: problem) }
        var place = body.startIndex + headCount
        var tracking: [MovedTracking] = []
        for disk in state.disks {
            var layers: [MovedTracking.Layer] = []
            for layer in disk.layers {
                guard layer.bytes >= 0, layer.bytes <= body.endIndex - place else {
                    throw Damage(detail: "the bits of disk '\(disk.disk)' are cut off")
                }
                layers.append(
                    MovedTracking.Layer(
                        checkpoint: layer.checkpoint,
                        bytes: Array(body[place..<place + layer.bytes])))
                place += layer.bytes
            }
            tracking.append(
                MovedTracking(
                    source: disk.source, granularityBytes: disk.granularityBytes, layers: layers))
        }
        guard place == body.endIndex else { throw Damage(detail: "more follows the disks' bits") }
        return (state, tracking)
    }

    /// What no server has written, although the checksum is right.
    private static func problem(_ state: DiskState) -> String? {
        if state.disks.isEmpty { return "it has no disk" }
        if Set(state.disks.map(\.disk)).count != state.disks.count {
            return "it has a disk twice"
        }
        if UUIDText.normalized(state.id) != state.id { return "'\(state.id)' is no id of a move" }
        for disk in state.disks {
            if disk.generation == 0 || disk.generation >= generationMax {
                return "disk '\(disk.disk)' has generation \(disk.generation)"
            }
            if let problem = self.problem(disk, state) { return problem }
        }
        if state.checkpoints.count > CheckpointTree.countMax {
            return "it has too many checkpoints"
        }
        if Set(state.checkpoints.map(\.name)).count != state.checkpoints.count {
            return "it has a checkpoint twice"
        }
        let names =
            state.checkpoints.flatMap { [$0.name, $0.parent].compactMap(\.self) }
            + state.checkpoints.flatMap { $0.disks.compactMap(\.bitmap) }
            + state.disks.flatMap { $0.layers.compactMap(\.checkpoint) }
        if let wrong = names.first(where: { !isName($0) }) {
            return "'\(wrong)' is no name of a checkpoint"
        }
        return state.checkpoints.lazy.compactMap { self.problem($0) }.first
    }

    private static func problem(_ disk: DiskState.Disk, _ state: DiskState) -> String? {
        if disk.layers.isEmpty { return "disk '\(disk.disk)' has no bits" }
        if disk.layers.count > CheckpointTree.countMax {
            return "disk '\(disk.disk)' has too many checkpoints"
        }
        let names = disk.layers.compactMap(\.checkpoint)
        if names.count != disk.layers.count, disk.layers.count > 1 {
            return "disk '\(disk.disk)' has bits of no checkpoint"
        }
        if Set(names).count != names.count {
            return "disk '\(disk.disk)' has a checkpoint twice"
        }
        // Bits without a description would be taken for those of a later checkpoint of that name.
        let described = state.checkpoints.filter { checkpoint in
            checkpoint.disks.contains { $0.target == disk.disk && $0.bitmap != nil }
        }
        guard let wrong = Set(names).subtracting(described.map(\.name)).min() else { return nil }
        return "checkpoint '\(wrong)' of disk '\(disk.disk)' has no description"
    }

    /// What a user could not have made.
    private static func problem(_ checkpoint: CheckpointMetadata) -> String? {
        let text = checkpoint.description.map(\.utf8.count) ?? 0
        let xml = checkpoint.domainXML.map(\.utf8.count) ?? 0
        let targets = checkpoint.disks.map(\.target)
        guard checkpoint.creationTime <= CheckpointMetadata.creationTimeMax,
            text + xml <= textBytesMax, targets.count <= CheckpointTree.countMax,
            Set(targets).count == targets.count, targets.allSatisfy(TargetName.isValid)
        else { return "the description of checkpoint '\(checkpoint.name)' is none that there is" }
        return nil
    }

    /// More moves than anyone makes: a disk that has come so far moves no more.
    static let generationMax: UInt64 = 1 << 32
    /// Most text of a checkpoint: as JSON it fits a record of the state directory.
    private static let textBytesMax = 2 << 20

    /// As the schema of checkpoints has them.
    private static func isName(_ name: String) -> Bool {
        guard !name.isEmpty, name.utf8.count <= CheckpointMetadata.nameBytesMax, name.first != "."
        else { return false }
        return name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "-"),
                UInt8(ascii: "."):
                true
            default: false
            }
        }
    }
}
