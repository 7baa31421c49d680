/// One history by seed, and the shortest one that still fails.
package enum History {
    /// Steps of a history.
    package static let steps = 400

    package static func run(
        _ steps: StepList, canary: Canary? = nil, trace: Bool = false
    ) -> World {
        let world = World(steps, canary: canary)
        if trace { world.trace = [] }
        _ = world.run()
        return world
    }

    /// Leaves out as many steps as it can while the history still breaks a promise; at most so many
    /// attempts.
    package static func shrink(
        _ failing: StepList, canary: Canary? = nil, attempts: Int = 2000
    ) -> StepList {
        shrink(failing, attempts: attempts) { run($0, canary: canary).violation != nil }
    }

    /// The same for histories of any kind.
    package static func shrink(
        _ failing: StepList, attempts: Int = 2000, stillFails: (StepList) -> Bool
    ) -> StepList {
        var best = failing
        var left = attempts
        var size = best.taken.count / 2
        while size > 0, left > 0 {
            var start = 0
            var isShorter = false
            while start < best.taken.count, left > 0 {
                var candidate = best
                candidate.taken.removeSubrange(start..<min(start + size, best.taken.count))
                left -= 1
                if stillFails(candidate) {
                    best = candidate
                    isShorter = true
                } else {
                    start += size
                }
            }
            if !isShorter || size > 1 { size /= 2 }
        }
        return best
    }
}
