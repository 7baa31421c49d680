import Glibc

/// The simulator's command line.
package struct Command {
    private enum Mode { case histories, canaries, sweep }

    private var mode = Mode.histories
    private var count = 10_000
    private var seconds: Int?
    private var firstSeed: UInt64 = 1
    private var replays: UInt64?
    private var steps: [Int]?
    private var canary: Canary?
    private var isFull = false
    private let problem: String?

    private static let usage = """
        usage: nbdpull-simulate [smoke] [--histories N] [--first SEED]
               nbdpull-simulate soak --seconds N [--offset N]
               nbdpull-simulate replay --seed SEED [--steps LIST] [--canary NAME]
               nbdpull-simulate canaries [--canary NAME] [--histories N]
               nbdpull-simulate sweep [--full]
        """

    package init(_ arguments: [String]) {
        var left = arguments.dropFirst()
        var problem: String?
        while let word = left.popFirst() {
            switch word {
            case "smoke": break
            case "soak": firstSeed = UInt64(time(nil)) &* 1_000_003
            case "canaries": mode = .canaries
            case "sweep": mode = .sweep
            case "--full": isFull = true
            case "replay": break
            case "--histories": count = left.popFirst().flatMap { Int($0) } ?? 0
            case "--seconds": seconds = left.popFirst().flatMap { Int($0) }
            case "--first": firstSeed = left.popFirst().flatMap { UInt64($0) } ?? 1
            case "--seed": replays = left.popFirst().flatMap { UInt64($0) }
            case "--offset":
                firstSeed &+= (left.popFirst().flatMap { UInt64($0) } ?? 0) &* 1_000_000_007
            case "--steps": steps = left.popFirst().flatMap { StepList.steps($0) }
            case "--canary": canary = left.popFirst().flatMap { Canary(rawValue: $0) }
            default: problem = "unknown argument '\(word)'"
            }
        }
        self.problem = problem
    }

    /// The status to exit with.
    package func run() -> Int32 {
        if let problem {
            print("\(problem)\n\(Self.usage)")
            return 64
        }
        if let replays { return replay(replays) }
        switch mode {
        case .histories: return histories()
        case .canaries: return canaries()
        case .sweep: return sweep()
        }
    }

    // MARK: Histories

    private func histories() -> Int32 {
        let start = time(nil)
        var done = 0
        var seed = firstSeed
        while seconds.map({ time(nil) - start < $0 }) ?? (done < count) {
            Crash.note(seed)
            let list = StepList(seed: seed, count: History.steps)
            let world = History.run(list)
            done += 1
            if let violation = world.violation {
                report(list, violation, nil)
                return 1
            }
            seed &+= 1
        }
        print("\(done) histories in \(time(nil) - start) s: every promise kept")
        return 0
    }

    private func report(_ list: StepList, _ violation: Violation, _ canary: Canary?) {
        print("seed \(list.seed), step \(violation.step): \(violation.text)")
        let short = History.shrink(list, canary: canary)
        let world = History.run(short, canary: canary, trace: true)
        print("shrunk to \(short.taken.count) steps: \(world.violation?.text ?? "nothing")")
        for line in world.trace ?? [] { print("  \(line)") }
        let name = canary.map { " --canary \($0.rawValue)" } ?? ""
        print("replay --seed \(list.seed) --steps \(short.text)\(name)")
    }

    private func replay(_ seed: UInt64) -> Int32 {
        var list = StepList(seed: seed, count: History.steps)
        if let steps { list.taken = steps }
        let world = History.run(list, canary: canary, trace: true)
        for line in world.trace ?? [] { print(line) }
        guard let violation = world.violation else {
            print("every promise kept")
            return 0
        }
        print("step \(violation.step): \(violation.text)")
        return 1
    }

    // MARK: Sweep

    private func sweep() -> Int32 {
        var status: Int32 = 0
        Sweep(isFull: isFull).run { result in
            if let failure = result.failure {
                print("\(result.scenario): \(failure)")
                status = 1
            } else {
                print("\(result.scenario): \(result.operations) I/Os, \(result.runs) runs")
            }
        }
        return status
    }

    // MARK: Canaries

    private func canaries() -> Int32 {
        var status: Int32 = 0
        for rule in Canary.allCases where canary.map({ $0 == rule }) ?? true {
            var found: (Int, Violation)?
            for index in 0..<count {
                let seed = firstSeed &+ UInt64(index)
                Crash.note(seed)
                let list = StepList(seed: seed, count: History.steps)
                // What breaks without the canary as well proves nothing.
                if let violation = History.run(list, canary: rule).violation,
                    History.run(list, canary: nil).violation == nil
                {
                    found = (index + 1, violation)
                    break
                }
            }
            if let (histories, violation) = found {
                print("\(rule.rawValue): found in history \(histories): \(violation.text)")
            } else {
                print("\(rule.rawValue): NOT FOUND in \(count) histories")
                status = 1
            }
        }
        return status
    }
}
