/// A domain's checkpoints and their parents: a pure value.
///
/// Every parent named is in the tree and there are no cycles, whatever is done to it.
package struct CheckpointTree: Sendable, Hashable {
    /// Most checkpoints of one domain: each costs a file, and a layer on every disk.
    package static let countMax = 1024

    /// What a deletion takes.
    package enum Scope: Sendable, Hashable {
        /// The checkpoint alone; its children become its parent's.
        case one
        /// The checkpoint and all its descendants.
        case withDescendants
        /// Its descendants only.
        case descendantsOnly
    }

    private var nodes: [String: CheckpointMetadata] = [:]

    package init() {}

    /// Takes up checkpoints that were kept.
    ///
    /// A parent that is not among them is forgotten, and so is the youngest parent link of a
    /// cycle; `repaired` names the checkpoints so changed.
    package init(_ kept: [CheckpointMetadata], repaired: inout [String]) {
        for checkpoint in kept { nodes[checkpoint.name] = checkpoint }
        for checkpoint in kept.sorted(by: { $1.isOlder(than: $0) }) {
            guard let parent = checkpoint.parent else { continue }
            if nodes[parent] == nil || isAncestor(checkpoint.name, of: parent) {
                nodes[checkpoint.name]?.parent = nil
                repaired.append(checkpoint.name)
            }
        }
    }

    package var count: Int { nodes.count }
    package var isEmpty: Bool { nodes.isEmpty }
    /// All names, sorted.
    package var names: [String] { nodes.keys.sorted() }
    package subscript(name: String) -> CheckpointMetadata? { nodes[name] }

    /// The checkpoint of this name.
    ///
    /// - Throws: 103 when there is none.
    package func checkpoint(_ name: String) throws(ControlError) -> CheckpointMetadata {
        guard let found = nodes[name] else { throw .checkpointNotFound(name) }
        return found
    }

    /// Names of the checkpoints whose parent is `name`, oldest first; the roots for nil.
    package func children(of name: String?) -> [String] {
        nodes.values.filter { $0.parent == name }.sorted { $0.isOlder(than: $1) }.map(\.name)
    }

    package var roots: [String] { children(of: nil) }

    /// Names of the checkpoints without children, oldest first.
    package var leaves: [String] {
        let parents = Set(nodes.values.compactMap(\.parent))
        return nodes.values.filter { !parents.contains($0.name) }
            .sorted { $0.isOlder(than: $1) }.map(\.name)
    }

    /// The newest leaf: the parent of the next checkpoint.
    package var current: String? { leaves.last }

    /// All names, every parent before its children.
    package var topological: [String] { descendants(of: nil) }

    /// Names of everything below `name` (nil: of everything), every parent before its children.
    package func descendants(of name: String?) -> [String] {
        let index = Dictionary(grouping: nodes.values) { $0.parent }
            .mapValues { $0.sorted { $0.isOlder(than: $1) }.map(\.name) }
        var found: [String] = []
        var open = Array((index[name] ?? []).reversed())
        while let next = open.popLast() {
            found.append(next)
            open += (index[next] ?? []).reversed()
        }
        return found
    }

    /// For every checkpoint, how many are below it.
    package var descendantCounts: [String: Int] {
        var counts: [String: Int] = [:]
        for name in topological.reversed() {
            counts[name, default: 0] += 0
            if let parent = nodes[name]?.parent {
                counts[parent, default: 0] += counts[name, default: 0] + 1
            }
        }
        return counts
    }

    /// The number for the next checkpoint; the highest there is, when a file names that one.
    package var nextSequence: UInt64 {
        let last = nodes.values.map(\.sequence).max() ?? 0
        return last < .max ? last + 1 : last
    }

    /// Checks that a new checkpoint of this name may be added.
    ///
    /// - Throws: 9 for a name that is taken, 55 when the tree is full.
    package func checkIsFree(_ name: String) throws(ControlError) {
        guard nodes[name] == nil else { throw .checkpointExists(name) }
        guard count < Self.countMax else { throw .limit("checkpoints", Self.countMax) }
    }

    /// Adds a checkpoint, or replaces the one of its name, whose children it keeps.
    ///
    /// - Throws: 8 for a parent that is itself, is not there, or descends from it; 55 when the tree
    ///   is full.
    package mutating func redefine(_ checkpoint: CheckpointMetadata) throws(ControlError) {
        let name = checkpoint.name
        if let parent = checkpoint.parent {
            guard parent != name else { throw .checkpointOwnParent(name) }
            guard nodes[parent] != nil else {
                throw .checkpointParentNotFound(parent, of: name)
            }
            guard !isAncestor(name, of: parent) else {
                throw .checkpointCycle(name, parent: parent)
            }
        }
        if nodes[name] == nil { try checkIsFree(name) }
        nodes[name] = checkpoint
    }

    /// Names that a deletion takes, every child before its parent.
    ///
    /// - Throws: 103 for a name that is not there.
    package func removal(
        of name: String, _ scope: Scope
    ) throws(ControlError) -> [String] {
        _ = try checkpoint(name)
        return switch scope {
        case .one: [name]
        case .withDescendants: descendants(of: name).reversed() + [name]
        case .descendantsOnly: descendants(of: name).reversed()
        }
    }

    /// Takes one checkpoint out; its children become its parent's and are returned.
    @discardableResult
    package mutating func remove(_ name: String) -> [CheckpointMetadata] {
        guard let gone = nodes[name] else { return [] }
        let orphans = children(of: name)
        for orphan in orphans { nodes[orphan]?.parent = gone.parent }
        nodes[name] = nil
        return orphans.compactMap { nodes[$0] }
    }

    // Whether `name` is `other` or above it. Bounded by the count, so that a cycle among kept
    // checkpoints cannot hold it.
    private func isAncestor(_ name: String, of other: String) -> Bool {
        var place: String? = other
        for _ in 0...nodes.count {
            guard let current = place else { return false }
            if current == name { return true }
            place = nodes[current]?.parent
        }
        return false
    }
}
