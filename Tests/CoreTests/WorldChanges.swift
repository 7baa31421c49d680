import Core
import PointInTime
import ScratchFiles
import Tracking

/// Guest writes, zeroing requests, and begins that hold them.
extension Stage {
    func addGuest(_ world: World, to events: inout [Event]) {
        for (index, write) in world.writes.enumerated() {
            switch write.phase {
            case .idle where write.left > 0:
                let own = UInt16(10 + index * 100 + write.left % 100)
                for clusters in scenario.writeRanges {
                    events.append(.submit(token: index, clusters: clusters, value: own))
                    if scenario.writesZeros {
                        events.append(.submit(token: index, clusters: clusters, value: 0))
                    }
                }
            case .letGo: events.append(.reach(token: index))
            case .idle, .waits: break
            }
        }
        for zeroer in world.zeroers.indices where world.zeroers[zeroer].phase == .idle {
            for clusters in scenario.zeroRanges {
                events.append(.startZeroing(zeroer: zeroer, clusters: clusters))
            }
        }
    }

    func addBegins(_ world: World, to events: inout [Event]) {
        guard scenario.holds else { return }
        if let job = world.beginning {
            if world.jobs[job].phase == .beginning, world.isQuiet {
                events.append(.attach(job: job))
            }
            if world.jobs[job].phase != .beginning || world.abandonedBeginsLeft > 0 {
                events.append(.letGuestsGo)
            }
        } else if let job = world.jobs.firstIndex(where: { $0.phase == .unborn }) {
            events.append(.hold(job: job))
        }
    }

    func applyBegin(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .hold(let job):
            world.beginning = job
            world.jobs[job].phase = .beginning
            world.changes.hold()
        case .attach(let job):
            try checkQuiet(world)
            try attach(job, in: &world)
        case .letGuestsGo:
            if let job = world.beginning, world.jobs[job].phase == .beginning {
                world.abandonedBeginsLeft -= 1
                world.jobs[job].phase = .unborn
            }
            world.beginning = nil
            world.isQuiet = false
            world.changes.resume(now: world.now)
        default: break
        }
        try drain(&world)
    }

    /// The job's instant is now.
    func attach(_ job: Int, in world: inout World) throws(Violation) {
        let plan = scenario.jobs[job]
        // Begins of other tests come at quiet moments and hold nobody.
        let isHeld = world.changes.isHeld
        if !isHeld { world.changes.hold() }
        let slot = world.changes.attach(
            ledgers[job].view, slotLimit: plan.slotLimit,
            copyTimeoutNanoseconds: plan.copyTimeoutNanoseconds)
        if !isHeld { world.changes.resume(now: world.now) }
        guard let slot else { throw Violation(text: "no room for job \(job)") }
        guard !world.jobs.contains(where: { $0.isKnownToGate && $0.slot == slot }) else {
            throw Violation(text: "job \(job) got the slot of a job that is not detached")
        }
        world.jobs[job].phase = .whole
        world.jobs[job].slot = slot
        world.jobs[job].instant = world.source
    }

    func applyGuest(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .submit(let index, let clusters, let value):
            world.writes[index].left -= 1
            world.writes[index].value = value
            try submit(index, change(index, clusters), in: &world)
        case .reach(let index): try reach(index, in: &world)
        case .startZeroing(let zeroer, let clusters):
            world.zeroers[zeroer].phase = .waiting
            // It neither starts nor ends at a page's edge.
            world.zeroers[zeroer].zeroing = Zeroing(
                ClusterGeometry.start(of: clusters.lowerBound) + 100..<ClusterGeometry.start(
                    of: clusters.upperBound) - 100,
                isDiscard: false, cut: .max)
            let answer = world.changes.admitZeroing(ZeroingID(zeroer), &world.ring)
            if answer == .go { try work(zeroer, in: &world) }
            try drain(&world)
        default: break
        }
    }

    /// A write of clusters, or of nearly all of them, where its blocks are then read and written
    /// back.
    private func change(_ index: Int, _ clusters: Range<Int>) -> Change {
        let start = ClusterGeometry.start(of: clusters.lowerBound)
        let end = ClusterGeometry.start(of: clusters.upperBound)
        let isUnaligned =
            scenario.driverRule != .hidesBlocks && scenario.unaligned?.contains(index) ?? false
        return Change(
            ChangeID(index), bytes: isUnaligned ? start + 1..<end - 1 : start..<end,
            blocks: start..<end)
    }

    private func submit(_ index: Int, _ change: Change, in world: inout World) throws(Violation) {
        world.writes[index].change = change
        world.writes[index].clusters = ClusterGeometry.clusters(
            touching: change.bytes.lowerBound, length: UInt64(change.bytes.count))
        world.writes[index].phase = .waits
        world.writes[index].waitingSince = world.now
        let answer = world.changes.admit(change, now: world.now)
        if answer == .go { try letGo(index, in: &world) }
        try drain(&world)
    }

    /// The change is in the source.
    private func reach(_ index: Int, in world: inout World) throws(Violation) {
        try checkUnneeded(index, in: world)
        let write = world.writes[index]
        for cluster in write.clusters { world.source[cluster] = write.value }
        if scenario.driverRule == .marksLate { try mark(index, in: &world) }
        world.writes[index] = WriteModel(left: write.left)
        if scenario.driverRule != .forgetsFinished { world.changes.finished(write.change) }
        try drain(&world)
        let zeroer = index - scenario.writers
        if zeroer >= 0 { try takePart(zeroer, in: &world) }
        try drain(&world)
    }

    /// The zeroing request is at work, for the first time or again.
    func work(_ zeroer: Int, in world: inout World) throws(Violation) {
        guard world.zeroers[zeroer].phase == .waiting else {
            throw Violation(text: "zeroing request \(zeroer) is begun twice")
        }
        world.zeroers[zeroer].phase = .working
        if world.isQuiet { try checkQuiet(world) }
        try takePart(zeroer, in: &world)
    }

    private func takePart(_ zeroer: Int, in world: inout World) throws(Violation) {
        switch world.zeroers[zeroer].zeroing.next() {
        case .pages(let pages, let isFirst):
            if !isFirst,
                world.changes.continueZeroing(ZeroingID(zeroer), &world.ring) == .waits
            {
                world.zeroers[zeroer].phase = .waiting
                return
            }
            let next = ClusterGeometry.start(of: ClusterGeometry.cluster(of: pages.lowerBound) + 1)
            let end = min(next, pages.upperBound)
            world.zeroers[zeroer].zeroing.took(upTo: end)
            try submitPart(zeroer, pages.lowerBound..<end, value: 0, in: &world)
        // Of the cluster's page only a piece is zeros then: some other content.
        case .edge(let bytes):
            try submitPart(zeroer, bytes, value: UInt16(9000 + zeroer), in: &world)
        case .sync:
            world.changes.zeroingChangedAll()
            world.zeroers[zeroer].left -= 1
            world.zeroers[zeroer].phase = world.zeroers[zeroer].left > 0 ? .idle : .done
            world.changes.endZeroing(&world.ring)
        case .done: throw Violation(text: "zeroing request \(zeroer) goes on after its end")
        }
    }

    private func submitPart(
        _ zeroer: Int, _ bytes: Range<UInt64>, value: UInt16, in world: inout World
    ) throws(Violation) {
        let index = scenario.writers + zeroer
        world.writes[index].value = value
        try submit(
            index,
            Change(
                ChangeID(index), bytes: bytes, blocks: bytes,
                isStep: scenario.driverRule != .hidesSteps),
            in: &world)
    }
}
