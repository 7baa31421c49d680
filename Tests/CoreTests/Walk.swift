import Core
import PointInTime
import ScratchFiles

/// Visits every state that a scenario can reach, each once.
///
/// States are told apart by a 64-bit digest: among a million states the chance that two share one
/// is below
/// one in ten million.
struct Walk {
    private let stage: Stage
    private var seen = Set<Int>()
    private var path: [Event] = []
    /// Different states visited.
    var states: Int { seen.count }
    /// States in which nothing more could happen.
    private(set) var ends = 0

    /// Walks the whole scenario; throws the first broken promise with the events that lead to it.
    static func all(_ scenario: Scenario) throws -> Walk {
        let stage = try Stage(scenario)
        var walk = Walk(stage: stage)
        let start = try stage.start()
        try walk.visit(walk.remembered(start))
        return walk
    }

    private init(stage: Stage) { self.stage = stage }

    private func remembered(_ world: World) -> World {
        var world = world
        world.words = stage.ledgers.map(\.words)
        return world
    }

    private mutating func visit(_ world: World) throws(Violation) {
        let events = stage.events(in: world)
        if events.isEmpty {
            ends += 1
            try checkEnd(world)
        }
        for event in events {
            for (ledger, words) in zip(stage.ledgers, world.words) { ledger.rewind(to: words) }
            path.append(event)
            var next = world
            do throws(Violation) {
                try stage.apply(event, to: &next)
            } catch {
                throw Violation(text: error.text, events: path)
            }
            next = remembered(next)
            if seen.insert(next.hashValue).inserted { try visit(next) }
            path.removeLast()
        }
    }

    private func checkEnd(_ world: World) throws(Violation) {
        let isQuiet =
            world.isDrained && world.copies.isEmpty && world.saves.isEmpty
            && world.changes.copies.copiesInFlight == 0
            && world.writes.allSatisfy { $0.left == 0 }
            && !world.jobs.contains { $0.phase == .ending || $0.phase == .beginning }
            && world.zeroers.allSatisfy { $0.phase == .done } && world.ring.taken == 0
            && world.changes.isIdle
        guard isQuiet else {
            throw Violation(text: "nothing can happen any more, yet something waits", events: path)
        }
    }
}
