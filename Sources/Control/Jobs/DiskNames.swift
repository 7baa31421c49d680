import ServerInterface

/// What the engine's disks are called, for events of one that is not attached yet, or no more: it
/// tells of its program while that starts, and when that has ended.
struct DiskNames {
    /// Where a disk belongs.
    struct Name {
        let domain: String
        let target: String
    }

    private var names: [DiskID: Name] = [:]
    /// In the order of attaching.
    private var order: [DiskID] = []
    /// What was told of disks that have no name yet.
    private var kept: [(disk: DiskID, kind: ControlEvent.Kind, message: String)] = []

    /// So many disks of late are known; whose programs take that long is not to be expected.
    private static let namesMax = 4_096
    private static let keptMax = 256

    func name(of disk: DiskID) -> Name? { names[disk] }

    /// Keeps what is told of a disk until its name is known.
    mutating func keep(_ kind: ControlEvent.Kind, of disk: DiskID, _ message: String) {
        // The oldest may be of disks that could not be attached.
        if kept.count >= Self.keptMax { kept.removeFirst() }
        kept.append((disk, kind, message))
    }

    /// Gives a disk its name; returns what was told of it before.
    mutating func know(
        _ disk: DiskID, domain: String, target: String
    ) -> [(kind: ControlEvent.Kind, message: String)] {
        if order.count >= Self.namesMax { names[order.removeFirst()] = nil }
        names[disk] = Name(domain: domain, target: target)
        order.append(disk)
        let told = kept.filter { $0.disk == disk }
        kept.removeAll { $0.disk == disk }
        return told.map { ($0.kind, $0.message) }
    }
}
