import ServerInterface
import Simulation
import SystemLayer

/// What happens in a step.
extension ServerWorld {
    static let tick: UInt64 = 100_000_000

    func happen(_ happening: Happening) {
        if canary == .entersLate { keepLedgers() }
        if canary == .returnsPastInflight { keepAreas() }
        switch happening {
        case .turn: turn(draw.below(boxes.count))
        case .kernel: for _ in 0..<1 + draw.below(6) { moveKernel() }
        case .goOn: moveEverything()
        case .work: doSomeWork()
        case .tick: passTime(Self.tick * (draw.chance(20) ? 10 : 1))
        case .control: stepCalls()
        case .rest: rest()
        case .watch:
            watch()
            retryDoubts()
        case .joinGuest, .joinClient, .talk, .listen, .ask, .leave: happenToPeers(happening)
        case .beginJob: beginJob()
        case .makeCheckpoint: makeCheckpoint()
        case .deleteCheckpoint: deleteCheckpoint()
        case .grow: grow()
        case .endJob: if let job = draw.pick(jobs) { endJob(job) }
        default: happenToStorage(happening)
        }
    }

    private func happenToPeers(_ happening: Happening) {
        switch happening {
        case .joinGuest: if let disk = draw.pick(disks) { joinGuest(disk) }
        case .joinClient:
            let running = jobs.filter { $0.isRunning }
            if let job = draw.pick(running), let part = draw.pick(job.parts) {
                join(part.disk, part, job)
            }
        default:
            happen(happening, to: draw.pick(peers.map(Guest.peer) + machines.map(Guest.machine)))
        }
    }

    private enum Guest {
        case peer(Peer)
        case machine(Machine)
    }

    private func happen(_ happening: Happening, to guest: Guest?) {
        switch (happening, guest) {
        case (.talk, .peer(let peer)): talk(peer)
        case (.listen, .peer(let peer)): listen(peer)
        case (.ask, .peer(let peer)): ask(peer)
        case (.leave, .peer(let peer)): leave(peer)
        case (.talk, .machine(let machine)): talk(machine)
        case (.listen, .machine(let machine)): listen(machine)
        case (.ask, .machine(let machine)): ask(machine)
        case (.leave, .machine(let machine)): leave(machine)
        default: break
        }
    }

    /// A guest of the kind that the disk has.
    private func joinGuest(_ disk: ServedDisk) {
        if disk.sharesMemory { connect(disk) } else { join(disk, nil, nil) }
    }

    private func happenToStorage(_ happening: Happening) {
        switch happening {
        case .spoil: spoil()
        case .heal: heal()
        case .loseScratch:
            guard let part = draw.pick(jobs.flatMap(\.parts)), part.scratch.hasContent else {
                return
            }
            note("scratch of job \(part.job) loses what was written")
            part.scratch.lose()
            if draw.chance(50) { part.scratch.evict() }
        case .loseSource:
            guard let disk = draw.pick(disks.filter { $0.alignment == 1 }) else { return }
            if disk.source.doom(&draw) {
                note("disk \(disk.number) is going to lose writes")
                disk.hasFailed = true
            }
        case .writeBack:
            guard let disk = draw.pick(disks) else { return }
            let count = disk.source.sectors.count
            let first = draw.below(count)
            disk.writeBack(Array(first..<min(first + 64, count)))
        case .kill: kill()
        case .cutPower: cutPower()
        case .cleanStop: stopCleanly()
        default: break
        }
    }

    /// What the files of ledgers hold now, and did some steps ago.
    private func keepLedgers() {
        for job in jobs where job.isRunning {
            for part in job.parts {
                guard let bytes = memory.content(of: part.ledgerName) else { continue }
                part.pastLedgers.append(bytes)
                if part.pastLedgers.count > 30 { part.pastLedgers.removeFirst() }
            }
        }
    }

    // MARK: Rings

    func turn(_ ring: Int) {
        kernels[ring].submit()
        if draw.chance(70) { kernels[ring].deliverEvents() }
        // Before it sleeps a ring asks for kicks.
        if !boxes[ring].loop.wantsTurn, draw.chance(50) { _ = boxes[ring].loop.askForKicks() }
        boxes[ring].loop.turn()
        makeLateWrites()
        fillLate()
    }

    /// What a kernel that lies has put off.
    private func makeLateWrites() {
        guard !late.isEmpty, draw.chance(20) else { return }
        let (disk, position, stamps) = late.removeFirst()
        disk.write(stamps[...], at: disk.source.shape.index(of: position), isLost: false)
    }

    private func moveKernel() {
        let busy = kernels.filter { !$0.inFlight.isEmpty }
        guard let kernel = draw.pick(busy) else { return }
        kernel.move(draw.below(kernel.inFlight.count))
    }

    /// The kernel works while a ring does.
    func goOnMeanwhile(_ kernel: Kernel) {
        guard swarm.meanwhileRate > 0 else { return }
        while !kernel.inFlight.isEmpty, draw.chance(swarm.meanwhileRate) {
            kernel.move(draw.below(kernel.inFlight.count))
        }
    }

    func passTime(_ nanoseconds: UInt64) {
        now += nanoseconds
        ticksDue = Set(boxes.indices)
    }

    /// Time passes, and little else happens: marks leave the log.
    private func rest() {
        for round in 0..<110 where isGoing {
            passTime(Self.tick)
            for ring in boxes.indices {
                kernels[ring].submit()
                kernels[ring].deliverEvents()
                turn(ring)
            }
            if round % 10 == 0 { doSomeWork() }
        }
    }

    func takeMessages(_ ring: Int) -> [RingMessage] {
        let messages = shared.mailboxes[ring].take(atMost: 1 + draw.below(6))
        guard canary == .losesConnection else { return messages }
        return messages.filter { message in
            if case .adopt = message { draw.chance(80) } else { true }
        }
    }

    // MARK: Storage

    private func spoil() {
        var places: [Place] = disks.map { .source($0.number) }
        if swarm.tracks { places += disks.map { .state($0.number) } }
        for job in jobs where !job.isOver { places += job.parts.map(\.place) }
        guard let place = draw.pick(places) else { return }
        var condition = Condition.fails(Faults.errnos[draw.below(3)])
        if draw.chance(60) { condition = [.hangs, .hangsForEver][draw.below(2)] }
        if case .state = place, draw.chance(30) { condition = .loses }
        faults.set(condition, at: place)
        note("\(place) \(condition)")
    }

    private func heal() {
        guard let place = draw.pick(faults.broken) else { return }
        faults.set(nil, at: place)
        note("\(place) is well")
        for kernel in kernels { kernel.wake { _ in true } }
    }

    // MARK: Ends of a process

    /// `kill -9`, and a new process at once.
    private func kill() {
        note("kill")
        endProcess()
        restart()
    }

    private func cutPower() {
        note("the power is cut")
        endProcess()
        boot += 1
        for disk in disks {
            losePower(disk)
            disk.machine = nil
        }
        for job in jobs where !job.isOver {
            settle(job, isGood: false)
            job.isOver = true
        }
        memory.clear()
        restart()
    }

    func losePower(_ disk: ServedDisk) {
        disk.losePower()
        if let sector = disk.source.brokenPromise {
            fail("P5: disk \(disk.number): sector \(sector) has lost what a guest made durable")
        }
    }

    private func restart() {
        for disk in disks { disk.reopen() }
        do {
            try startProcess()
        } catch {
            return fail("the server does not start: \(error)")
        }
        comeBack()
    }

    /// Guests and clients connect at once, as they do.
    func comeBack() {
        for disk in disks where draw.chance(80) { joinGuest(disk) }
        for job in jobs where job.isRunning {
            if let part = draw.pick(job.parts) { join(part.disk, part, job) }
        }
        guard draw.chance(70) else { return }
        wellBehaved { for _ in 0..<12 where isGoing { moveEverything() } }
    }

    /// All rings stop, and another process serves; jobs were ended before.
    private func stopCleanly() {
        guard begin == nil, growth == nil, endings.isEmpty, jobs.allSatisfy(\.isOver),
            !somethingHangs, faults.broken.isEmpty
        else { return }
        note("the server stops")
        wellBehaved {
            for kernel in kernels { kernel.wake { _ in true } }
            settle("connections") { self.disconnect() }
        }
        guard isGoing else { return }
        closeTracking()
        endProcess()
        restart()
    }
}
