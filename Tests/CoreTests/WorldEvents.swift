import Core
import PointInTime
import ScratchFiles

extension Stage {
    /// Everything that can happen next.
    func events(in world: World) -> [Event] {
        var events: [Event] = []
        addGuest(world, to: &events)
        addCopies(world, to: &events)
        addJobs(world, to: &events)
        addReaders(world, to: &events)
        addBegins(world, to: &events)
        addRecording(world, to: &events)
        return events
    }

    private func addCopies(_ world: World, to events: inout [Event]) {
        let mayFail = world.failuresLeft > 0
        for (index, copy) in world.copies.enumerated() {
            switch copy.phase {
            case .reading:
                events.append(.take(copy: index))
                if mayFail, scenario.trouble.contains(.sourceReadFails) {
                    events.append(.readFails(copy: index))
                }
            case .taken: events.append(.readDone(copy: index))
            case .saving: break
            }
        }
        for (index, save) in world.saves.enumerated() {
            events.append(save.hasLanded ? .saveDone(save: index) : .land(save: index))
            if mayFail, scenario.trouble.contains(.scratchWriteFails) {
                events.append(.saveFails(save: index))
            }
        }
    }

    private func addJobs(_ world: World, to events: inout [Event]) {
        for (job, model) in world.jobs.enumerated() {
            switch model.phase {
            case .unborn:
                if world.isDrained, !scenario.holds { events.append(.begin(job: job)) }
            case .whole, .broken:
                if scenario.trouble.contains(.jobsEnd) { events.append(.end(job: job)) }
                if model.phase == .whole, world.failuresLeft > 0,
                    scenario.trouble.contains(.scratchReadFails)
                {
                    events.append(.scratchReadFails(job: job))
                }
            case .beginning, .ending, .gone: break
            }
            if scenario.trouble.contains(.scratchIsLost), model.isKnownToGate {
                if !model.hasLost, world.failuresLeft > 0, !model.scratch.isEmpty {
                    events.append(.writeBackFails(job: job))
                }
                if model.hasLost, !model.isEvicted { events.append(.scratchIsEvicted(job: job)) }
            }
            if model.isKnownToGate { addReleases(job, world, to: &events) }
        }
        if world.ticksLeft > 0 { events.append(.timePasses) }
        if scenario.trouble.contains(.holesAreNoted) {
            for cluster in world.source.indices where world.source[cluster] == 0 {
                if world.jobs.indices.contains(where: { isNeeded(cluster, by: $0, in: world) }) {
                    events.append(.noteHole(cluster: cluster))
                }
            }
        }
    }

    private func addReleases(_ job: Int, _ world: World, to events: inout [Event]) {
        guard world.releasesLeft > 0 else { return }
        for clusters in scenario.releaseRanges
        where !clusters.allSatisfy({ world.jobs[job].released.contains($0) }) {
            events.append(.clientReleases(job: job, clusters: clusters))
        }
    }

    private func addReaders(_ world: World, to events: inout [Event]) {
        for (index, reader) in world.readers.enumerated() {
            if reader.phase != .idle {
                events.append(.readerMoves(reader: index))
            } else if reader.left > 0 {
                for job in world.jobs.indices where world.jobs[job].phase == .whole {
                    for clusters in scenario.readRanges {
                        events.append(
                            .readerBegins(reader: index, job: job, clusters: clusters))
                    }
                }
            }
        }
    }

    /// Lets an event happen and checks every promise that it touches.
    func apply(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .submit, .reach, .startZeroing: try applyGuest(event, to: &world)
        case .hold, .attach, .letGuestsGo: try applyBegin(event, to: &world)
        case .logIsWritten, .bitsAreSynced, .startClearing, .logIsOverdue, .lossIsDeclared,
            .nextMarkFails:
            try applyRecording(event, to: &world)
        case .take, .readDone, .readFails, .land, .saveDone, .saveFails:
            try applyCopy(event, to: &world)
        case .begin, .end, .scratchReadFails, .timePasses, .noteHole, .clientReleases,
            .writeBackFails, .scratchIsEvicted:
            try applyJob(event, to: &world)
        case .readerBegins(let reader, let job, let clusters):
            begin(reader, job, clusters, in: &world)
        case .readerMoves(let reader): try move(reader, in: &world)
        }
        world.copies = world.copies.filter { !isOver($0, in: world) }
        let inFlight = world.changes.copies.copiesInFlight
        guard inFlight == world.copies.count else {
            throw Violation(text: "the disk counts \(inFlight) copies")
        }
    }

    private func applyCopy(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .take(let index):
            world.copies[index].buffer = Array(world.source[world.copies[index].clusters])
            world.copies[index].phase = .taken
        case .readDone(let index):
            world.copies[index].phase = .saving
            var zeros: UInt64 = 0
            for (position, value) in world.copies[index].buffer.enumerated() where value == 0 {
                zeros |= 1 << UInt64(position)
            }
            world.changes.sourceRead(
                world.copies[index].copy, errno: nil, zeroClusters: zeros, now: world.now)
        case .readFails(let index):
            world.failuresLeft -= 1
            world.copies[index].phase = .saving
            world.changes.sourceRead(
                world.copies[index].copy, errno: 5, zeroClusters: 0, now: world.now)
        case .land(let index):
            let save = world.saves[index]
            for (position, value) in save.values.enumerated() {
                world.jobs[save.job].scratch[Int(save.write.slot) + position] = value
            }
            world.saves[index].hasLanded = true
        case .saveDone(let index):
            let save = world.saves.remove(at: index)
            world.changes.scratchWritten(save.write, errno: nil, now: world.now)
        case .saveFails(let index):
            world.failuresLeft -= 1
            let save = world.saves.remove(at: index)
            world.changes.scratchWritten(save.write, errno: 28, now: world.now)
        default: break
        }
        try drain(&world)
    }

    /// What the gate counts as used is what clusters lie in, and what is on its way to scratch.
    private func checkScratchIsFrugal(_ job: Int, in world: World) throws(Violation) {
        guard world.jobs[job].phase == .whole else { return }
        let view = ledgers[job].view
        let kept = (0..<geometry.clusterCount).count {
            if case .slot = view.place(of: $0) { true } else { false }
        }
        let coming = world.saves.reduce(0) { $0 + ($1.job == job ? $1.write.count : 0) }
        let used = Int(world.changes.copies.slotsUsed(job: try slot(of: job, in: world)))
        guard used == kept + coming else {
            throw Violation(text: "job \(job) uses \(used) slots for \(kept) and \(coming)")
        }
    }

    /// The slot that the gate gave a job when it began.
    func slot(of job: Int, in world: World) throws(Violation) -> JobIndex {
        guard let slot = world.jobs[job].slot else {
            throw Violation(text: "job \(job) has not begun")
        }
        return slot
    }

    /// Whatever hangs: a write that waited for longer than every job allows goes on.
    private func checkNobodyWaitsTooLong(in world: World) throws(Violation) {
        let limits = scenario.jobs.map(\.copyTimeoutNanoseconds)
        guard let longest = limits.max() else { return }
        for (token, write) in world.writes.enumerated()
        where write.phase == .waits && world.now - write.waitingSince > longest {
            throw Violation(text: "write \(token) waits although every job's limit is over")
        }
    }

    private func applyJob(_ event: Event, to world: inout World) throws(Violation) {
        switch event {
        case .begin(let job):
            try attach(job, in: &world)
        case .end(let job):
            world.jobs[job].phase = .ending
            world.changes.detach(try slot(of: job, in: world), now: world.now)
            giveUp(job, in: &world)
        case .scratchReadFails(let job):
            world.failuresLeft -= 1
            world.changes.breakJob(
                try slot(of: job, in: world), .scratchRead(errno: 5), now: world.now)
        case .writeBackFails(let job):
            world.failuresLeft -= 1
            world.jobs[job].hasLost = true
        case .scratchIsEvicted(let job):
            world.jobs[job].isEvicted = true
            world.jobs[job].scratch = world.jobs[job].scratch.map { _ in World.garbage }
        case .clientReleases(let job, let clusters):
            world.releasesLeft -= 1
            if world.jobs[job].phase == .whole { world.jobs[job].released.formUnion(clusters) }
            world.changes.releaseClusters(
                clusters, of: try slot(of: job, in: world), now: world.now)
            try checkScratchIsFrugal(job, in: world)
        case .timePasses:
            world.ticksLeft -= 1
            world.now += 10
            world.changes.expire(now: world.now)
            try drain(&world)
            try checkNobodyWaitsTooLong(in: world)
        case .noteHole(let cluster): world.changes.noteHole(cluster..<(cluster + 1))
        default: break
        }
        try drain(&world)
    }
}
