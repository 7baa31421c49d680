import Foundation
import Testing
import Tracking
import UnitSupport

/// Storage that returns errors and then goes on, at every step: no change is missed.
@Suite("Tracking over storage that goes wrong (P3: no missed change)")
struct StorageWalkTests {
    typealias Step = StorageWorld.Step

    /// What happened before storage goes wrong, how it ended, and what happens while it does.
    struct History: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var before: [Step]
        var beforeEnds: StorageWorld.Ending
        var during: [Step]
    }

    private static let far = 2 * StorageWorld.regionBlocks + 7

    static let histories = [
        History(
            testDescription: "a start after a clean stop, then a write",
            before: [.checkpoint, .write(1)], beforeEnds: .clean, during: [.write(5)]),
        History(
            testDescription: "a start after a kill, then writes in two regions",
            before: [.write(3), .checkpoint, .write(1)], beforeEnds: .kill,
            during: [.write(5), .write(far)]),
        History(
            testDescription: "a start after a loss of power, then a write",
            before: [.checkpoint, .write(1)], beforeEnds: .power, during: [.write(far)]),
        History(
            testDescription: "writes and clearings",
            before: [.checkpoint], beforeEnds: .clean,
            during: [.write(5), .clear, .write(6), .write(far), .clear, .write(7), .clear]),
        History(
            testDescription: "checkpoints and compression",
            before: [.checkpoint, .write(1)], beforeEnds: .clean,
            during: [.write(5), .checkpoint, .write(6), .compress, .checkpoint, .write(far)]),
        History(
            testDescription: "deletions",
            before: [.checkpoint, .write(1), .checkpoint, .write(2), .checkpoint],
            beforeEnds: .clean,
            during: [
                .write(5), .compress, .delete(1), .write(6), .delete(1), .write(7), .clear,
            ]),
    ]

    /// Lives a history with one fault; returns the world at its last start, which is a good one.
    private func live(
        _ history: History, _ fault: StorageFault, at call: Int?, ending: StorageWorld.Ending,
        markIsLasting: Bool = true, defect: StorageWorld.Defect? = nil,
        counting: (Int) -> Void = { _ in }
    ) -> StorageWorld {
        let world = StorageWorld(markIsLasting: markIsLasting, defect: defect)
        world.start()
        for step in history.before { world.perform(step) }
        world.end(history.beforeEnds)
        world.plan.set(fault, at: call)
        world.start()
        for step in history.during { world.perform(step) }
        world.end(ending)
        counting(world.plan.calls)
        world.plan.heal()
        world.start()
        return world
    }

    /// Everything takes minutes; otherwise each fault comes at every fifth or seventh call.
    private static let isFull = ProcessInfo.processInfo.environment["NBDPULL_WALK"] == "full"

    /// Every way for a call to go wrong and for the session to end.
    private func forEach(
        _ history: History, each stride: Int,
        _ body: (StorageFault, Int, StorageWorld.Ending) throws -> Void
    ) rethrows {
        let endings = StorageWorld.Ending.allCases
        let counts = endings.map { callCount(history, $0) }
        for (number, fault) in StorageFault.allCases.enumerated() {
            for (index, ending) in endings.enumerated() {
                for call in 0..<counts[index] {
                    let isChosen =
                        (call + number) % stride == 0
                        && (call / stride + number) % endings.count == index
                    if Self.isFull || isChosen { try body(fault, call, ending) }
                }
            }
        }
    }

    private func callCount(_ history: History, _ ending: StorageWorld.Ending) -> Int {
        var calls = 0
        _ = live(history, .fails, at: nil, ending: ending) { calls = $0 }
        return calls
    }

    @Test("every fault at every call, and every way to end", arguments: histories)
    func everyFault(history: History) {
        #expect(callCount(history, .kill) > 20)
        forEach(history, each: 5) { fault, call, ending in
            let world = live(history, fault, at: call, ending: ending)
            let missed = world.missed()
            #expect(
                missed.isEmpty && !(world.hasHole && ending == .power),
                "\(fault) at call \(call), then \(ending): missed since \(missed)")
        }
    }

    @Test(
        "the same for a device, which can only be marked until the next boot",
        arguments: histories)
    func everyFaultOfADevice(history: History) {
        forEach(history, each: 7) { fault, call, ending in
            let world = live(history, fault, at: call, ending: ending, markIsLasting: false)
            // The hole that docs/checkpoints.md names: said only in memory, and power goes.
            if world.hasHole, ending == .power { return }
            let missed = world.missed()
            #expect(
                missed.isEmpty,
                "\(fault) at call \(call), then \(ending): missed since \(missed)")
        }
    }

    @Test("without faults every answer is exact but after a loss of power", arguments: histories)
    func exact(history: History) {
        for ending in StorageWorld.Ending.allCases {
            let world = live(history, .fails, at: nil, ending: ending)
            #expect(world.missed().isEmpty && world.lost().isEmpty)
            if ending != .power, history.beforeEnds != .power {
                #expect(world.isExact, "\(ending)")
            }
        }
    }

    @Test("a fault that is over leaves checkpoints usable: tracking is not given up lightly")
    func usableAgain() {
        // Clearing fails once: nothing is lost, whatever comes then.
        let history = Self.histories[3]
        for ending in StorageWorld.Ending.allCases {
            let world = StorageWorld()
            world.start()
            for step in history.before { world.perform(step) }
            world.perform(.write(5))
            world.plan.set(.syncLoses, at: 1)
            world.perform(.clear)
            world.plan.heal()
            world.perform(.write(6))
            world.perform(.clear)
            world.end(ending)
            world.start()
            #expect(world.missed().isEmpty && world.lost().isEmpty, "\(ending)")
        }
    }

    @Test("drivers that break a rule are caught", arguments: StorageWorld.Defect.allCases)
    func canary(defect: StorageWorld.Defect) {
        struct Caught: Error {}
        #expect(throws: Caught.self, "\(defect) was not noticed") {
            let faults: [StorageFault] = defect == .hidesErrors ? [.losesLater] : [.failsFromHere]
            for history in Self.histories.reversed() {
                for ending in [StorageWorld.Ending.killAndLose, .kill, .power] {
                    for call in 0..<callCount(history, ending) {
                        for fault in faults {
                            let world = live(
                                history, fault, at: call, ending: ending, defect: defect)
                            if !world.missed().isEmpty { throw Caught() }
                        }
                    }
                }
            }
        }
    }

    @Test("long histories with several faults by seed", arguments: TrackingSeeds.all)
    func bySeed(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        for round in 0..<(Self.isFull ? 100 : 5) {
            let world = StorageWorld(
                markIsLasting: random.below(2) == 0, seed: seed &+ UInt64(round))
            for _ in 0..<6 {
                let isFaulty = random.below(2) == 0
                world.plan.set(
                    StorageFault.allCases[random.below(StorageFault.allCases.count)],
                    at: isFaulty ? random.below(120) : nil)
                world.start()
                for _ in 0..<random.below(12) { world.perform(Self.step(&random)) }
                let ending = StorageWorld.Ending.allCases[
                    random.below(StorageWorld.Ending.allCases.count)]
                world.end(ending)
                world.plan.heal()
                if world.hasHole, ending == .power { break }
                world.start()
                let missed = world.missed()
                #expect(missed.isEmpty, "seed=\(seed) round=\(round) \(ending): \(missed)")
                if !missed.isEmpty { return }
                world.end(.clean)
            }
        }
    }

    private static func step(_ random: inout SplitMix64) -> Step {
        switch random.below(10) {
        case 0...4: .write(random.below(3 * StorageWorld.regionBlocks))
        case 5: .clear
        case 6, 7: .checkpoint
        case 8: .delete(random.below(4))
        default: .compress
        }
    }
}
