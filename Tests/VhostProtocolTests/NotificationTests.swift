import Testing
import UnitSupport

/// Both sides sleep when there is nothing to do; neither may sleep on something.
@Suite("No wake-up is lost")
struct NotificationTests {
    typealias Setting = NotificationWorld.Setting

    /// Runs every order; how many there are, and whether one of them ends with somebody asleep.
    private static func walk(_ setting: Setting, most: Int = .max) throws -> (
        runs: Int, isLost: Bool
    ) {
        var choices = Choices()
        var runs = 0
        repeat {
            let world = try NotificationWorld(setting) { choices.choose($0) }
            runs += 1
            guard try world.run() else { return (runs, true) }
        } while choices.advance() && runs < most
        return (runs, false)
    }

    private static let settings: [Setting] = [false, true].flatMap { hasEventIndex in
        [false, true].flatMap { isLazy in
            [
                Setting(
                    hasEventIndex: hasEventIndex, requests: 2, waitsForCalls: false,
                    isLazy: isLazy),
                Setting(hasEventIndex: hasEventIndex, requests: 1, isLazy: isLazy),
                Setting(
                    hasEventIndex: hasEventIndex, before: 2, requests: 0, isLazy: isLazy,
                    publishesEach: true, interruptions: 2),
                Setting(hasEventIndex: hasEventIndex, before: 3, requests: 0, isLazy: isLazy),
            ]
        }
    }

    @Test("in every order of a small queue's steps", arguments: settings)
    func everyOrder(setting: Setting) throws {
        let result = try Self.walk(setting)
        #expect(!result.isLost, "lost in run \(result.runs)")
        #expect(result.runs > 20)
    }

    @Test("in random orders of larger ones", arguments: 1...8)
    func random(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        for _ in 0..<500 {
            let setting = Setting(
                hasEventIndex: random.below(2) == 0, before: random.below(3),
                requests: 1 + random.below(2), isLazy: random.below(2) == 0,
                publishesEach: random.below(2) == 0)
            let rate = 2 + random.below(4)
            let world = try NotificationWorld(setting) { _ in random.below(rate) == 0 ? 1 : 0 }
            #expect(try world.run(), "seed=\(seed) \(setting)")
        }
    }

    @Test("and these orders find a device that leaves something out", arguments: [false, true])
    func canaries(hasEventIndex: Bool) throws {
        let noFence = Setting(
            hasEventIndex: hasEventIndex, before: 2, requests: 0, publishesEach: true,
            hasFences: false)
        #expect(try Self.walk(noFence).isLost)
        let noFenceForKicks = Setting(
            hasEventIndex: hasEventIndex, requests: 2, waitsForCalls: false, hasFences: false)
        #expect(try Self.walk(noFenceForKicks).isLost)
        let noSecondLook = Setting(
            hasEventIndex: hasEventIndex, requests: 2, waitsForCalls: false, isLazy: false,
            looksAgain: false)
        #expect(try Self.walk(noSecondLook).isLost)
    }
}
