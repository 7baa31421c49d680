package import Foundation
package import ServerInterface

/// One disk's part in a checkpoint.
package struct CheckpointDiskView: Sendable, Hashable, Codable {
    /// The disk's target.
    package var disk: String
    /// `bitmap` or `no`.
    package var checkpoint: String
    package var bitmap: String?
    /// Whether an incremental backup of the disk can start from the checkpoint.
    package var usable: Bool
    /// Bytes changed since.
    package var size: UInt64?
    /// Where they are; present when they were asked for.
    package var extents: [DirtyExtent]?
    /// True when there are more extents than are listed.
    package var extentsCut: Bool?
}

/// A checkpoint as lists and `checkpoint-info` show it.
package struct CheckpointView: Sendable, Hashable, Codable {
    package var name: String
    package var domain: String
    package var description: String?
    package var parent: String?
    package var creationTime: Date
    /// How many checkpoints have it as parent.
    package var children: Int
    /// How many checkpoints are below it.
    package var descendants: Int
    /// Whether the next checkpoint's parent is this one.
    package var current: Bool
    package var disks: [CheckpointDiskView]

    package init(
        name: String, domain: String, description: String? = nil, parent: String?,
        creationTime: Date, children: Int, descendants: Int, current: Bool,
        disks: [CheckpointDiskView]
    ) {
        self.name = name
        self.domain = domain
        self.description = description
        self.parent = parent
        self.creationTime = creationTime
        self.children = children
        self.descendants = descendants
        self.current = current
        self.disks = disks
    }
}

/// `{"domain":NAME,"checkpoints":[...]}`.
package struct CheckpointsBody: Sendable, Hashable, Codable {
    package var domain: String
    package var checkpoints: [CheckpointView]
}

/// A checkpoint's XML, with what the XML cannot hold.
package struct CheckpointXMLBody: Sendable, Hashable, Codable {
    package var xml: String
    /// Present when sizes were asked for.
    package var disks: [CheckpointDiskView]?
}

/// Which checkpoints a list holds, and in which order.
package struct CheckpointFilter: Sendable, Hashable {
    /// Only those without a parent.
    package var roots = false
    /// Only those without children.
    package var leaves = false
    /// Only those with children.
    package var noLeaves = false
    /// Only the children of this one.
    package var from: String?
    /// With `from`: everything below it.
    package var descendants = false
    /// Parents before their children instead of by name.
    package var topological = false

    package init() {}

    /// Names that pass, in order.
    ///
    /// - Throws: 8 for filters that exclude each other, 103 for an unknown `from`.
    package func names(in tree: CheckpointTree) throws(ControlError) -> [String] {
        try check()
        if let from { _ = try tree.checkpoint(from) }
        let leafNames = Set(tree.leaves)
        let below = from.map { Set(descendants ? tree.descendants(of: $0) : tree.children(of: $0)) }
        let candidates = topological ? tree.topological : tree.names
        return candidates.filter { name in
            (below?.contains(name) ?? true)
                && (!roots || tree[name]?.parent == nil)
                && (!leaves || leafNames.contains(name))
                && (!noLeaves || !leafNames.contains(name))
        }
    }

    private func check() throws(ControlError) {
        if leaves && noLeaves { throw Self.exclusive("leaves", "noLeaves") }
        if roots && from != nil { throw Self.exclusive("roots", "from") }
        guard from != nil || !descendants else {
            throw .invalidArgument(what: "descendants", detail: "it needs 'from'")
        }
    }

    private static func exclusive(_ one: String, _ other: String) -> ControlError {
        .invalidArgument(what: one, detail: "it excludes '\(other)'")
    }
}
