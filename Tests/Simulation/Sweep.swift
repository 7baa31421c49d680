import PointInTime

/// Lets each I/O of a scenario go wrong, one after the other.
///
/// The scenario runs with the first I/O failing, then with the second, and so on, until it passes
/// untouched. Afterwards storage works again, and the promises are looked at, as at the end of
/// every history.
package struct Sweep {
    /// What was done, and the first promise that was broken.
    package struct Result: Sendable {
        package let scenario: String
        package var runs = 0
        /// I/Os of the scenario.
        package var operations = 0
        package var failure: String?
    }

    struct Scenario: Sendable {
        let name: String
        let prepare: @Sendable (World) -> Void
        let body: @Sendable (World) -> Void
    }

    /// Each fault with each way to end, instead of one after the other.
    private let isFull: Bool

    package init(isFull: Bool) { self.isFull = isFull }

    /// Runs every scenario; tells of each when it is over.
    package func run(telling tell: (Result) -> Void) {
        for scenario in Self.scenarios { tell(run(scenario)) }
    }

    private static let faults: [Fault] = [
        .fails(5), .fails(28), .fails(30), .failsDone(5), .losesLater, .delays,
        .hangs(forEver: false), .hangs(forEver: true),
    ]

    private func run(_ scenario: Scenario) -> Result {
        var result = Result(scenario: scenario.name)
        for fault in Self.faults {
            for stays in [false, true] {
                var at = 0
                var isTouched = true
                while isTouched, result.failure == nil {
                    for ending in isFull ? [0, 1, 2] : [at % 3] {
                        let plan = Faults.Plan(at: at, fault: fault, stays: stays)
                        var world = world(scenario, plan, ending, isTraced: false)
                        if world.violation != nil {
                            world = self.world(scenario, plan, ending, isTraced: true)
                        }
                        result.runs += 1
                        isTouched = world.planWasReached
                        result.operations = max(result.operations, at)
                        if let violation = world.violation {
                            result.failure =
                                "\(fault) at I/O \(at)\(stays ? " and from then on" : ""), ending"
                                + " \(ending): \(violation.text)\n"
                                + (world.trace ?? []).joined(separator: "\n")
                            break
                        }
                    }
                    at += 1
                }
            }
        }
        return result
    }

    private func world(
        _ scenario: Scenario, _ plan: Faults.Plan, _ ending: Int, isTraced: Bool
    ) -> World {
        let world = World(StepList(seed: UInt64(plan.at), taken: []), swarm: .calm)
        if isTraced { world.trace = [] }
        world.ending = ending
        scenario.prepare(world)
        world.faults.begin(plan)
        if world.isGoing { scenario.body(world) }
        if world.isGoing { world.calm() }
        // Guests go on over what is left.
        for disk in world.disks where world.isGoing { disk.issue(.write, World.cluster(5, 6)) }
        if world.isGoing { world.calm() }
        world.planWasReached = world.faults.isReached
        world.end()
        world.dissolve()
        return world
    }
}

extension Swarm {
    /// Nothing happens by itself.
    static var calm: Swarm {
        var swarm = Swarm(seed: 1)
        swarm.diskCount = 2
        swarm.ringCount = 2
        swarm.regions = 2
        swarm.hasBlocks = false
        swarm.isFile = true
        swarm.slotLimit = 1000
        swarm.holdLimits = [1_000_000_000]
        swarm.zeroingPlaces = 2
        swarm.faultRate = 0
        swarm.shortRate = 0
        swarm.pauseRate = 0
        swarm.releases = false
        swarm.keepsJobs = true
        swarm.losesState = false
        swarm.startsCalm = true
        swarm.jobsAtOnce = 2
        return swarm
    }
}

extension World {
    /// Some clusters of the first region.
    static func cluster(_ first: Int, _ end: Int) -> Range<UInt64> {
        ClusterGeometry.start(of: first)..<ClusterGeometry.start(of: end)
    }

    /// Everything that can go on does; storage that hangs may hold some of it up.
    func calm() {
        for turn in 0..<40 where isGoing {
            moveEverything()
            if turn % 4 == 3 { passTime() }
        }
    }

    func writeEverywhere() {
        for disk in disks {
            disk.issue(.write, Self.cluster(0, 2))
            disk.issue(.write, disk.source.shape.regionRange(1))
        }
        calm()
    }
}

extension DiskShape {
    /// A cluster of a region.
    func regionRange(_ region: Int) -> Range<UInt64> {
        let start = UInt64(region) << Self.regionShift
        return start..<start + UInt64(ClusterGeometry.clusterBytes)
    }
}
