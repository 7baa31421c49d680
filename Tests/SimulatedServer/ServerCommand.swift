import Glibc
import Simulation

/// The command line of the server's simulator.
struct ServerCommand {
    private enum Mode { case histories, canaries }

    /// Steps of a history.
    private static let steps = 800

    private var mode = Mode.histories
    private var count = 1000
    private var seconds: Int?
    private var firstSeed: UInt64 = 1
    private var replays: UInt64?
    private var steps: [Int]?
    private var canary: ServerCanary?
    private var problem: String?

    private static let usage = """
        usage: nbdpull-simulate smoke --server [--histories N] [--first SEED]
               nbdpull-simulate soak --server --seconds N [--offset N]
               nbdpull-simulate replay --server --seed SEED [--steps LIST] [--canary NAME]
               nbdpull-simulate canaries --server [--canary NAME] [--histories N]
        """

    init(_ arguments: [String]) {
        var left = arguments.dropFirst()
        while let word = left.popFirst() {
            switch word {
            case "smoke", "replay": break
            case "soak": firstSeed = UInt64(time(nil)) &* 1_000_003
            case "canaries": mode = .canaries
            case "--histories": count = left.popFirst().flatMap { Int($0) } ?? 0
            case "--seconds": seconds = left.popFirst().flatMap { Int($0) }
            case "--first": firstSeed = left.popFirst().flatMap { UInt64($0) } ?? 1
            case "--seed": replays = left.popFirst().flatMap { UInt64($0) }
            case "--offset":
                firstSeed &+= (left.popFirst().flatMap { UInt64($0) } ?? 0) &* 1_000_000_007
            case "--steps": steps = left.popFirst().flatMap { StepList.steps($0) }
            case "--canary":
                let name = left.popFirst() ?? ""
                canary = ServerCanary(rawValue: name)
                if canary == nil { problem = "unknown canary '\(name)'" }
            default: problem = "unknown argument '\(word)'"
            }
        }
    }

    /// The status to exit with.
    func run() -> Int32 {
        if let problem {
            print("\(problem)\n\(Self.usage)")
            return 64
        }
        if let replays { return replay(replays) }
        switch mode {
        case .histories: return histories()
        case .canaries: return canaries()
        }
    }

    private func live(
        _ list: StepList, _ canary: ServerCanary?, isTraced: Bool = false
    ) -> (violation: Violation?, trace: [String]) {
        Crash.note(list.seed)
        do {
            let world = try ServerWorld(list, canary: canary, isTraced: isTraced)
            let violation = world.run()
            return (violation, world.trace ?? [])
        } catch {
            return (Violation(text: "the rings cannot be made: \(error)", step: -1), [])
        }
    }

    private func histories() -> Int32 {
        let start = time(nil)
        var done = 0
        var seed = firstSeed
        while seconds.map({ time(nil) - start < $0 }) ?? (done < count) {
            let list = StepList(seed: seed, count: Self.steps)
            if let violation = live(list, nil).violation {
                report(list, violation)
                return 1
            }
            done += 1
            seed &+= 1
        }
        print("\(done) histories of rings in \(time(nil) - start) s: every promise kept")
        return 0
    }

    private func report(_ list: StepList, _ violation: Violation) {
        print("seed \(list.seed), step \(violation.step): \(violation.text)")
        let short = History.shrink(list) { live($0, nil).violation != nil }
        let (found, trace) = live(short, nil, isTraced: true)
        print("shrunk to \(short.taken.count) steps: \(found?.text ?? "nothing")")
        for line in trace { print("  \(line)") }
        print("replay --server --seed \(list.seed) --steps \(short.text)")
    }

    private func replay(_ seed: UInt64) -> Int32 {
        var list = StepList(seed: seed, count: Self.steps)
        if let steps { list.taken = steps }
        let (violation, trace) = live(list, canary, isTraced: true)
        for line in trace { print(line) }
        // Whatever is not decided by the seed would show here.
        if live(list, canary, isTraced: true).trace != trace {
            print("the same steps once more are another history")
            return 1
        }
        guard let violation else {
            print("every promise kept")
            return 0
        }
        print("step \(violation.step): \(violation.text)")
        return 1
    }

    private func canaries() -> Int32 {
        var status: Int32 = 0
        for rule in ServerCanary.allCases where canary.map({ $0 == rule }) ?? true {
            var found: (Int, Violation)?
            for index in 0..<count {
                let list = StepList(seed: firstSeed &+ UInt64(index), count: Self.steps)
                // What breaks without the canary as well proves nothing.
                if let violation = live(list, rule).violation, live(list, nil).violation == nil {
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
