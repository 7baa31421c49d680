/// Where the changes of an upstream lie that are kept, so that it is found without a look at all of
/// them whether one touches a range.
///
/// A search tree by position whose nodes know the furthest end below them. Random priorities keep it
/// balanced, whatever a machine writes. A node has the number of its change, so that nothing is
/// allocated but when there are more changes than ever before.
struct KeptPlaces {
    private struct Node {
        var position: UInt64 = 0
        var end: UInt64 = 0
        /// The furthest end of this one and all below it.
        var furthest: UInt64 = 0
        var priority: UInt64 = 0
        var left: Int32 = -1
        var right: Int32 = -1
    }

    private var nodes: [Node] = []
    private var root: Int32 = -1
    /// Of xorshift; not zero, and nothing that others know.
    private var random = UInt64.random(in: 1 ... .max)

    var isEmpty: Bool { root < 0 }

    /// Adds a change that is not there.
    mutating func insert(_ number: Int32, position: UInt64, end: UInt64) {
        while nodes.count <= Int(number) { nodes.append(Node()) }
        nodes[Int(number)] = Node(
            position: position, end: end, furthest: end, priority: nextPriority())
        root = inserted(number, into: root)
    }

    private mutating func nextPriority() -> UInt64 {
        random ^= random << 13
        random ^= random >> 7
        random ^= random << 17
        return random
    }

    /// Takes one out that is there.
    mutating func remove(_ number: Int32) { root = removed(number, from: root) }

    /// Whether one of them has bytes in a range.
    func touches(position: UInt64, end: UInt64) -> Bool {
        var next = root
        while next >= 0 {
            let node = nodes[Int(next)]
            if node.position < end, position < node.end { return true }
            // Where one on the left ends behind the start and does not touch the range, it begins
            // behind the range, and so do all on the right.
            let left = node.left
            next = left >= 0 && nodes[Int(left)].furthest > position ? left : node.right
        }
        return false
    }

    // MARK: The tree

    /// Whether a node stands before another one.
    private func precedes(_ first: Int32, _ second: Int32) -> Bool {
        let (one, other) = (nodes[Int(first)].position, nodes[Int(second)].position)
        return one != other ? one < other : first < second
    }

    private mutating func measure(_ number: Int32) {
        var furthest = nodes[Int(number)].end
        let (left, right) = (nodes[Int(number)].left, nodes[Int(number)].right)
        if left >= 0 { furthest = max(furthest, nodes[Int(left)].furthest) }
        if right >= 0 { furthest = max(furthest, nodes[Int(right)].furthest) }
        nodes[Int(number)].furthest = furthest
    }

    private mutating func inserted(_ number: Int32, into tree: Int32) -> Int32 {
        guard tree >= 0 else { return number }
        if nodes[Int(number)].priority > nodes[Int(tree)].priority {
            let (left, right) = split(tree, at: number)
            nodes[Int(number)].left = left
            nodes[Int(number)].right = right
            measure(number)
            return number
        }
        if precedes(number, tree) {
            nodes[Int(tree)].left = inserted(number, into: nodes[Int(tree)].left)
        } else {
            nodes[Int(tree)].right = inserted(number, into: nodes[Int(tree)].right)
        }
        measure(tree)
        return tree
    }

    /// What stands before a node, and what behind it.
    private mutating func split(_ tree: Int32, at number: Int32) -> (Int32, Int32) {
        guard tree >= 0 else { return (-1, -1) }
        defer { measure(tree) }
        if precedes(tree, number) {
            let (left, right) = split(nodes[Int(tree)].right, at: number)
            nodes[Int(tree)].right = left
            return (tree, right)
        }
        let (left, right) = split(nodes[Int(tree)].left, at: number)
        nodes[Int(tree)].left = right
        return (left, tree)
    }

    private mutating func removed(_ number: Int32, from tree: Int32) -> Int32 {
        guard tree >= 0 else { return tree }
        if tree == number { return joined(nodes[Int(tree)].left, nodes[Int(tree)].right) }
        if precedes(number, tree) {
            nodes[Int(tree)].left = removed(number, from: nodes[Int(tree)].left)
        } else {
            nodes[Int(tree)].right = removed(number, from: nodes[Int(tree)].right)
        }
        measure(tree)
        return tree
    }

    /// One tree of two, of which all of the first stands before all of the second.
    private mutating func joined(_ first: Int32, _ second: Int32) -> Int32 {
        guard first >= 0 else { return second }
        guard second >= 0 else { return first }
        if nodes[Int(first)].priority > nodes[Int(second)].priority {
            nodes[Int(first)].right = joined(nodes[Int(first)].right, second)
            measure(first)
            return first
        }
        nodes[Int(second)].left = joined(first, nodes[Int(second)].left)
        measure(second)
        return second
    }
}
