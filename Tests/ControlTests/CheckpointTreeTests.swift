import Control
import Testing

@Suite struct CheckpointTreeTests {
    /// A tree from `(name, parent)` pairs, in the order of their making.
    private static func tree(_ pairs: [(String, String?)]) throws -> CheckpointTree {
        var tree = CheckpointTree()
        for (number, pair) in pairs.enumerated() {
            try tree.redefine(
                CheckpointMetadata(
                    name: pair.0, parent: pair.1, creationTime: 7, sequence: UInt64(number)))
        }
        return tree
    }

    /// Every forest of up to four checkpoints whose parents are older than themselves.
    static let forests: [[Int?]] = {
        var all: [[Int?]] = [[]]
        for size in 1...4 {
            for forest in all where forest.count == size - 1 {
                all += ([nil] + (0..<size - 1).map(Optional.some)).map { forest + [$0] }
            }
        }
        return all
    }()

    private static func tree(_ forest: [Int?]) throws -> CheckpointTree {
        try tree(forest.enumerated().map { ("c\($0)", $1.map { "c\($0)" }) })
    }

    @Test func relationsHoldInEverySmallForest() throws {
        #expect(Self.forests.count == 1 + 1 + 2 + 6 + 24)
        for forest in Self.forests {
            let tree = try Self.tree(forest)
            let names = forest.indices.map { "c\($0)" }
            #expect(tree.names == names)
            #expect(tree.topological.sorted() == names)
            let counts = tree.descendantCounts
            for (index, name) in names.enumerated() {
                let children = forest.indices.filter { forest[$0] == index }.map { "c\($0)" }
                #expect(tree.children(of: name) == children)
                #expect(tree.leaves.contains(name) == children.isEmpty)
                #expect(tree.roots.contains(name) == (forest[index] == nil))
                let below = Set(
                    forest.indices.filter { descends($0, from: index, in: forest) }
                        .map { "c\($0)" })
                #expect(Set(tree.descendants(of: name)) == below)
                #expect(counts[name] == below.count)
            }
            // The newest is always a leaf here, and so the current one.
            #expect(tree.current == names.last)
            for (position, name) in tree.topological.enumerated() {
                if let parent = tree[name]?.parent {
                    #expect(tree.topological[..<position].contains(parent))
                }
            }
        }
    }

    private func descends(_ index: Int, from ancestor: Int, in forest: [Int?]) -> Bool {
        var place = forest[index]
        while let current = place {
            if current == ancestor { return true }
            place = forest[current]
        }
        return false
    }

    @Test func everyRemovalInEverySmallForestLeavesAWholeTree() throws {
        for forest in Self.forests {
            for victim in forest.indices {
                let name = "c\(victim)"
                let whole = try Self.tree(forest)
                var one = whole
                let children = one.remove(name)
                #expect(children.map(\.name) == whole.children(of: name))
                #expect(children.allSatisfy { $0.parent == whole[name]?.parent })
                #expect(one.count == whole.count - 1)
                #expect(one.topological.count == one.count)
                for scope in [CheckpointTree.Scope.withDescendants, .descendantsOnly] {
                    var rest = whole
                    let gone = try whole.removal(of: name, scope)
                    #expect(gone.contains(name) == (scope == .withDescendants))
                    // Children first: nothing is ever re-parented.
                    for each in gone { #expect(rest.remove(each).isEmpty) }
                    #expect(rest.count == whole.count - gone.count)
                    #expect(rest.descendants(of: name).isEmpty)
                }
            }
        }
    }

    @Test func everyReparentingIsACycleOrATree() throws {
        for forest in Self.forests {
            for child in forest.indices {
                for parent in forest.indices {
                    var tree = try Self.tree(forest)
                    let before = tree
                    let redefined = CheckpointMetadata(name: "c\(child)", parent: "c\(parent)")
                    let isRefused = child == parent || descends(parent, from: child, in: forest)
                    let error = refusalOf { () throws(ControlError) in
                        try tree.redefine(redefined)
                    }
                    #expect((error != nil) == isRefused)
                    if isRefused {
                        #expect(error?.libvirtCode == 8)
                        #expect(tree == before)
                    } else {
                        #expect(tree.topological.count == forest.count)
                        #expect(tree.children(of: "c\(child)") == before.children(of: "c\(child)"))
                    }
                }
            }
        }
    }

    private func refusalOf(_ body: () throws(ControlError) -> Void) -> ControlError? {
        do throws(ControlError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test func refusalsHaveTheirNumbersAndWords() throws {
        var tree = try Self.tree([("a", nil), ("b", "a")])
        func refused(_ name: String, _ parent: String) -> String? {
            refusalOf { () throws(ControlError) in
                try tree.redefine(CheckpointMetadata(name: name, parent: parent))
            }?.message
        }
        #expect(refused("r2", "r2") == "invalid argument: cannot set moment r2 as its own parent")
        #expect(refused("r3", "no") == "invalid argument: parent no for moment r3 not found")
        #expect(refused("a", "b") == "invalid argument: parent b would create cycle to a")
        let error = refusal { () throws(ControlError) in try tree.removal(of: "x", .one) }
        #expect(error?.libvirtCode == 103)
        #expect(
            refusal { () throws(ControlError) in try tree.checkIsFree("a") }?.libvirtCode == 9)
    }

    @Test func theTreeIsBounded() throws {
        var tree = CheckpointTree()
        for number in 0..<CheckpointTree.countMax {
            try tree.redefine(CheckpointMetadata(name: "c\(number)", parent: tree.roots.first))
        }
        let error = refusalOf { () throws(ControlError) in
            try tree.redefine(CheckpointMetadata(name: "more"))
        }
        #expect(error?.code == "limit-reached")
        try tree.redefine(CheckpointMetadata(name: "c1"))
    }

    @Test func whatWasKeptIsRepaired() {
        let all: [(String, String?)] = [
            ("lost", "gone"), ("x", "z"), ("y", "x"), ("z", "y"), ("self", "self"), ("ok", "x"),
        ]
        let kept = all.enumerated().map {
            CheckpointMetadata(
                name: $1.0, parent: $1.1, creationTime: 1, sequence: UInt64($0))
        }
        var repaired: [String] = []
        let tree = CheckpointTree(kept, repaired: &repaired)
        #expect(repaired.sorted() == ["lost", "self", "z"])
        #expect(tree.topological.count == 6)
        #expect(tree["y"]?.parent == "x")
        #expect(tree["ok"]?.parent == "x")
    }

    @Test func currentIsTheNewestLeafWhateverTheOrderOfTheirNames() throws {
        var tree = try Self.tree([("z", nil), ("b", "z"), ("a", "z")])
        #expect(tree.current == "a")
        tree.remove("a")
        #expect(tree.current == "b")
        tree.remove("b")
        #expect(tree.current == "z")
        tree.remove("z")
        #expect(tree.current == nil)
    }

    @Test func filtersFollowVirsh() throws {
        let tree = try Self.tree([("r", nil), ("b", "r"), ("a", "r"), ("c", "b"), ("q", nil)])
        func names(_ change: (inout CheckpointFilter) -> Void) throws -> [String] {
            var filter = CheckpointFilter()
            change(&filter)
            return try filter.names(in: tree)
        }
        #expect(try names { _ in } == ["a", "b", "c", "q", "r"])
        #expect(try names { $0.topological = true } == ["r", "b", "c", "a", "q"])
        #expect(try names { $0.roots = true } == ["q", "r"])
        #expect(try names { $0.leaves = true } == ["a", "c", "q"])
        #expect(try names { $0.noLeaves = true } == ["b", "r"])
        #expect(try names { $0.from = "r" } == ["a", "b"])
        #expect(
            try names {
                $0.from = "r"
                $0.descendants = true
            } == ["a", "b", "c"])
        let bad: [(inout CheckpointFilter) -> Void] = [
            { $0.descendants = true },
            {
                $0.roots = true
                $0.from = "r"
            },
            {
                $0.leaves = true
                $0.noLeaves = true
            },
        ]
        for change in bad {
            #expect(throws: ControlError.self) { try names(change) }
        }
        let error = #expect(throws: ControlError.self) { try names { $0.from = "no" } }
        #expect(error?.libvirtCode == 103)
    }
}
