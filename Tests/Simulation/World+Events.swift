import Core

/// What happens in a step.
extension World {
    /// Of the clock.
    static let tick: UInt64 = 250_000_000
    static let trackingTimeout: UInt64 = 1_000_000_000
    static let lossTimeout: UInt64 = 1_000_000_000
    static let holdTimeout: UInt64 = 2_000_000_000
    static let ringTimeout: UInt64 = 2_000_000_000
    static let stopTimeout: UInt64 = 10_000_000_000

    func perform(_ kind: EventKind) {
        switch kind {
        case .start, .changeMeanwhile, .growMeanwhile, .removeFile, .cutPower:
            performBetweenProcesses(kind)
        case .spoil: spoil()
        case .heal: heal()
        case .evictScratch, .loseScratch: performOnScratch(kind)
        case .loseSource: if let disk = draw.pick(disks) { loseSource(disk) }
        default: if !isDown { performInProcess(kind) }
        }
    }

    private func performInProcess(_ kind: EventKind) {
        switch kind {
        case .guestWrite: draw.pick(disks)?.issue(.write)
        case .guestDurableWrite: draw.pick(disks)?.issue(.write, durable: true)
        case .guestZero: draw.pick(disks)?.issue(.zero, durable: draw.chance(20))
        case .guestDiscard: draw.pick(disks)?.issue(.discard, durable: draw.chance(20))
        case .guestFlush: draw.pick(disks)?.issue(.flush)
        case .io: moveOperation()
        case .deliver: deliver()
        case .thread: if !threads.isEmpty { runThread(at: draw.below(threads.count)) }
        case .tick: passTime()
        case .beginJob: beginJob()
        case .makeCheckpoint: makeCheckpoint()
        case .deleteCheckpoint: deleteCheckpoint()
        case .endJob: if let job = draw.pick(jobs) { end(job) }
        case .startRead: pickPart()?.startRead()
        case .moveReader: pickPart()?.moveReader()
        case .releaseClusters: pickPart()?.release()
        case .kill: kill()
        case .cleanStop: beginStop()
        case .checkTracking: draw.pick(disks)?.checkAnswers()
        default: break
        }
    }

    private func pickPart() -> JobDisk? { draw.pick(jobs.flatMap(\.parts)) }

    /// A ring, or the calls, look at their next message.
    private func deliver() {
        let waiting = (rings + [control]).filter { !$0.messages.isEmpty }
        guard let ring = draw.pick(waiting) else { return }
        ring.messages.removeFirst()()
    }

    func passTime() {
        now += Self.tick
        for disk in disks where disk.isServed {
            disk.tickJobs()
            disk.tickTracking()
            if draw.chance(20) { disk.retryDoubt() }
        }
        for call in calls { call.tick() }
        calls.removeAll(where: \.isOver)
        goOnStopping()
    }

    // MARK: Storage

    private func spoil() {
        let disk = draw.below(disks.count)
        if swarm.losesState {
            note("state(\(disk)) loses what it takes")
            return faults.set(.loses, at: .state(disk))
        }
        var places: [Place] = [
            .source(disk), .state(disk), .state(disk), .memory(disk), .mark(disk),
        ]
        for job in jobs {
            for part in job.parts {
                places.append(.scratch(job: job.number, disk: part.disk.number))
            }
        }
        guard let place = draw.pick(places) else { return }
        let errno = Faults.errnos[draw.below(Faults.errnos.count)]
        var condition = Condition.fails(errno)
        switch place {
        case .scratch, .state:
            let others: [Condition] = [.hangs, .hangsForEver, .loses]
            if draw.chance(70) { condition = others[draw.below(3)] }
        case .source: if draw.chance(50) { condition = .hangs }
        case .memory, .mark: break
        }
        note("\(place) \(condition)")
        faults.set(condition, at: place)
    }

    /// A place works again; what it has not answered it answers now.
    private func heal() {
        let broken = faults.broken
        guard let place = draw.pick(broken) else { return }
        note("\(place) is well")
        faults.set(nil, at: place)
        for operation in operations where operation.place == place {
            if operation.fate == .hangs { operation.fate = .answered }
        }
    }

    private func performOnScratch(_ kind: EventKind) {
        guard let part = pickPart(), part.scratch.hasContent else { return }
        if kind == .loseScratch {
            part.scratch.lose()
            if draw.chance(50) { part.scratch.evict() }
        } else if part.scratch.hasLost {
            part.scratch.evict()
        }
    }

    private func loseSource(_ disk: SimulatedDisk) {
        if disk.source.doom(&draw) { disk.hasFailed = true }
    }
}
