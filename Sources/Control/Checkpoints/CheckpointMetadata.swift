/// Everything about one checkpoint except its bitmaps, which the engine keeps.
package struct CheckpointMetadata: Sendable, Hashable, Codable {
    /// One disk of the domain at the time.
    package struct Disk: Sendable, Hashable, Codable {
        package var target: String
        /// Name of the disk's bitmap; nil for `checkpoint='no'`.
        package var bitmap: String?

        package init(target: String, bitmap: String?) {
            self.target = target
            self.bitmap = bitmap
        }
    }

    /// How far the checkpoint has come; it matters in the state directory only.
    package enum Phase: String, Sendable, Hashable, Codable {
        /// Being made: nobody knows of it yet, so the next start takes it back.
        case pending
        case committed
        /// Deleted with `--metadata`: unknown, but its bitmaps stay until it is redefined,
        /// replaced, or the domain goes.
        case forgotten
    }

    /// Longest name in bytes: it is also a file name, with an ending of up to ten bytes.
    package static let nameBytesMax = 240
    /// Latest time of creation: the last second of the year 9999.
    package static let creationTimeMax: UInt64 = 253_402_300_799

    package var name: String
    package var description: String?
    /// Name of the parent; nil for a root.
    package var parent: String?
    /// Seconds since 1970.
    package var creationTime: UInt64
    /// Tells checkpoints of one second apart: later ones have higher numbers.
    package var sequence: UInt64
    /// Every disk of the domain, in its order.
    package var disks: [Disk]
    /// The domain's XML at the time; nil for one that was redefined without it.
    package var domainXML: String?
    /// The job that it was made with.
    package var jobID: String?
    package var phase: Phase

    package init(
        name: String, description: String? = nil, parent: String? = nil, creationTime: UInt64 = 0,
        sequence: UInt64 = 0, disks: [Disk] = [], domainXML: String? = nil, jobID: String? = nil,
        phase: Phase = .committed
    ) {
        self.name = name
        self.description = description
        self.parent = parent
        self.creationTime = creationTime
        self.sequence = sequence
        self.disks = disks
        self.domainXML = domainXML
        self.jobID = jobID
        self.phase = phase
    }

    /// Whether it was made before `other`.
    package func isOlder(than other: CheckpointMetadata) -> Bool {
        (creationTime, sequence, name) < (other.creationTime, other.sequence, other.name)
    }

    /// Describes the checkpoint as libvirt's `checkpoint-dumpxml` does.
    ///
    /// - Parameters:
    ///   - sizes: bytes changed since, by target; disks without an entry get no `size`.
    ///   - withDomain: adds the domain's XML of the time.
    package func xml(sizes: [String: UInt64] = [:], withDomain: Bool) -> String {
        var writer = XMLWriter()
        writer.element("domaincheckpoint") { root in
            root.leaf("name", text: name)
            if let description { root.leaf("description", text: description) }
            if let parent {
                root.element("parent") { $0.leaf("name", text: parent) }
            }
            root.leaf("creationTime", text: String(creationTime))
            if !disks.isEmpty {
                root.element("disks") { list in
                    for disk in disks { Self.write(disk, size: sizes[disk.target], to: &list) }
                }
            }
            if withDomain, let text = domainXML.flatMap(XMLText.rootElement) {
                root.markup(text)
            }
        }
        return writer.text
    }

    private static func write(_ disk: Disk, size: UInt64?, to writer: inout XMLWriter) {
        guard let bitmap = disk.bitmap else {
            writer.empty("disk", [("name", disk.target), ("checkpoint", "no")])
            return
        }
        writer.empty(
            "disk",
            [
                ("name", disk.target), ("checkpoint", "bitmap"), ("bitmap", bitmap),
                ("size", size.map(String.init)),
            ])
    }
}
