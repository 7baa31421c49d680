import Core
import Tracking
import TrackingFiles

/// A call that fixes an instant: the begin of a job, a checkpoint, or both.
///
/// `InstantFixing` decides; layers are made before and sealed after it, and whatever fails is taken
/// back.
final class InstantCall {
    unowned let world: World
    let job: SimulatedJob?
    let checkpoint: String?
    let disks: [SimulatedDisk]
    private var fixing: InstantFixing
    private var swaps: [Swap] = []
    private var snapshots: [Snapshot] = []
    private var sealedBits: [Int: DirtyBitmap] = [:]
    private var deadline: UInt64
    private(set) var isOver = false
    /// It waits for storage in the middle.
    private(set) var isInStorage = false
    /// Each disk at the moment when all were quiet.
    private var instants: [[Stamp]] = []

    private struct Swap {
        let disk: SimulatedDisk
        let old: RecordingLayer
        let next: RecordingLayer
    }

    private final class Snapshot {
        let part: JobDisk
        var bits: DirtyBitmap?
        init(_ part: JobDisk) { self.part = part }
    }

    init(
        _ world: World, job: SimulatedJob?, checkpoint: String?, disks: [SimulatedDisk]
    ) {
        self.world = world
        self.job = job
        self.checkpoint = checkpoint
        self.disks = disks
        fixing = InstantFixing(diskCount: 0, partCount: 0)
        deadline = world.now + World.holdTimeout
        for disk in disks { disk.isOwned = true }
    }

    // MARK: Before the instant

    /// Reads bases and makes layers; then the disks are asked to hold.
    func start() {
        let born = world.process
        isInStorage = true
        let isReady = prepare()
        guard world.isAlive(born) else { return }
        isInStorage = false
        guard isReady else { return giveUp() }
        fixing = InstantFixing(
            diskCount: disks.count, partCount: parts.count + swaps.count + snapshots.count)
        deadline = world.now + World.holdTimeout
        goOn()
    }

    private var parts: [JobDisk] { job?.parts ?? [] }

    private func prepare() -> Bool {
        let born = world.process
        for part in parts {
            guard let base = part.base else { continue }
            guard let store = part.disk.store, let bits = try? store.sealedUnion(since: base),
                world.isAlive(born)
            else { return false }
            sealedBits[part.disk.number] = bits
            if checkpoint == nil { snapshots.append(Snapshot(part)) }
        }
        guard checkpoint != nil else { return true }
        for disk in disks {
            guard let store = disk.store, let next = try? store.prepareNext(), world.isAlive(born)
            else { return false }
            swaps.append(Swap(disk: disk, old: store.recording, next: next))
        }
        return true
    }

    /// Layers that no ring records in go.
    private func giveUp() {
        let born = world.process
        for swap in swaps {
            swap.disk.store?.abandon(swap.next)
            guard world.isAlive(born) else { return }
        }
        end()
    }

    private func end() {
        isOver = true
        for disk in disks { disk.isOwned = false }
    }

    // MARK: The instant

    private func goOn() {
        while let action = fixing.nextAction() { perform(action) }
        guard let outcome = fixing.outcome, !isOver else { return }
        world.note("instant of \(disks.map(\.number)): \(outcome)")
        switch outcome {
        case .fixed: fixed()
        case .notQuiet: giveUp()
        // Ends when everything is taken back.
        case .stuck, .refused: break
        }
    }

    func tick() {
        guard !isOver, fixing.outcome == nil, world.now > deadline else { return }
        fixing.timeIsOver()
        goOn()
    }

    private func perform(_ action: InstantFixing.Action) {
        switch action {
        case .hold(let index):
            let disk = disks[index]
            world.post(disk.ring) { [self] in hold(disk, index) }
        case .carryOut(let part): carryOut(part)
        case .resume(let index):
            let disk = disks[index]
            world.post(disk.ring) { [self] in release(disk) }
        case .takeBack: takeBack()
        }
    }

    private func hold(_ disk: SimulatedDisk, _ index: Int) {
        disk.holdReply = { [self] in
            disk.holdReply = nil
            if world.canary == .fixesDiskByDisk, let part = parts.first(where: { $0.disk === disk })
            {
                _ = part.attach()
                release(disk)
            }
            reply { [self] in
                fixing.isQuiet(disk: index)
                if !fixing.isHolding, instants.isEmpty { allAreQuiet() }
            }
        }
        if world.canary == .quietBeforeChangesEnd { disk.pretendQuiet() }
        disk.changes.hold()
        disk.perform()
    }

    /// This is the instant: one moment of all disks.
    private func allAreQuiet() {
        deadline = world.now + World.ringTimeout
        instants = disks.map(\.source.sectors)
        guard let checkpoint else { return }
        for (index, disk) in disks.enumerated() {
            disk.checkpoints.append(CheckpointModel(name: checkpoint, content: instants[index]))
        }
    }

    private func release(_ disk: SimulatedDisk) {
        disk.holdReply = nil
        guard disk.changes.isHeld else { return }
        disk.changes.resume(now: world.now)
        disk.lastRelease = world.now
        disk.perform()
    }

    private func reply(_ answer: @escaping () -> Void) {
        world.postToControl { [self] in
            guard !isOver else { return }
            answer()
            goOn()
        }
    }

    /// Asks the part's ring: jobs, then layers, then snapshots.
    private func carryOut(_ part: Int) {
        if part < parts.count, parts[part].index != nil {
            checkInstant(parts[part])
            return reply { [self] in fixing.carriedOut(part: part, succeeded: true) }
        }
        if part < parts.count {
            let disk = parts[part]
            return ask(part, disk.disk) { [self] in
                let isIn = disk.attach()
                if isIn { checkInstant(disk) }
                return isIn
            }
        }
        if part < parts.count + swaps.count {
            let swap = swaps[part - parts.count]
            return ask(part, swap.disk) { [world] in
                if world.canary != .sealsWithoutSwap {
                    swap.disk.setRecording(swap.next, isClearingHeld: true)
                }
                return true
            }
        }
        let snapshot = snapshots[part - parts.count - swaps.count]
        ask(part, snapshot.part.disk) {
            snapshot.bits = snapshot.part.disk.recording?.snapshot()
            return true
        }
    }

    private func ask(_ part: Int, _ disk: SimulatedDisk, _ body: @escaping () -> Bool) {
        world.post(disk.ring) { [self] in
            let succeeded = disk.changes.isQuiet && body()
            reply { [self] in fixing.carriedOut(part: part, succeeded: succeeded) }
        }
    }

    /// P1: the instant is one moment of all its disks.
    private func checkInstant(_ part: JobDisk) {
        guard let index = disks.firstIndex(where: { $0 === part.disk }), index < instants.count
        else { return }
        if part.instant != instants[index], part.lostBefore == part.disk.source.lostCount {
            world.fail("P1: disk \(part.disk.number) changes while an instant is fixed")
        }
        part.instant = instants[index]
    }

    // MARK: After the instant

    private func fixed() {
        let born = world.process
        freeze()
        if let checkpoint {
            isInStorage = true
            let isSealed = seal(checkpoint)
            guard world.isAlive(born) else { return }
            isInStorage = false
            guard isSealed else { return takeBack() }
            for disk in disks {
                disk.makeKnown(checkpoint)
                disk.compressLater()
            }
        }
        job?.isPublished = true
        end()
        for disk in disks { disk.checkAnswers() }
    }

    private func freeze() {
        for part in parts {
            guard let base = part.base, var union = sealedBits[part.disk.number] else { continue }
            let bits =
                swaps.first { $0.disk === part.disk }?.old.snapshot()
                ?? snapshots.first { $0.part === part }?.bits
            guard let bits, bits.blockCount == union.blockCount else { continue }
            union.formUnion(bits)
            part.dirty = union
            // Else the job breaks when that is noticed.
            guard part.lostBefore == part.disk.source.lostCount else { continue }
            part.disk.check(union, since: base, against: part.instant, "a job's bitmap")
        }
    }

    /// Makes the checkpoint durable on all disks; on a failure on none.
    private func seal(_ name: String) -> Bool {
        let born = world.process
        var sealed: [(Swap, TrackingStore)] = []
        for swap in swaps {
            guard let before = swap.disk.store, !swap.disk.isSaving(swap.old) else {
                unseal(sealed)
                return false
            }
            var store = before
            swap.disk.savingLayers.insert(swap.old.serial)
            let isSealed = (try? store.seal(checkpoint: name, next: swap.next)) != nil
            guard world.isAlive(born) else { return false }
            swap.disk.savingLayers.remove(swap.old.serial)
            guard isSealed, swap.disk.keep(store) else {
                unseal(sealed)
                return false
            }
            sealed.append((swap, before))
        }
        for swap in swaps {
            world.post(swap.disk.ring) { swap.disk.isClearingHeld = false }
        }
        return true
    }

    private func unseal(_ sealed: [(Swap, TrackingStore)]) {
        let born = world.process
        for (swap, before) in sealed {
            do throws(TrackingFault) {
                try before.rewrite()
                guard world.isAlive(born) else { return }
                _ = swap.disk.keep(before)
            } catch {
                guard world.isAlive(born) else { return }
                if error != .lost { swap.disk.trackingIsLost() }
            }
        }
    }

    /// Nothing is preserved for the instant, and changes are recorded as before.
    private func takeBack() {
        for part in parts { world.post(part.disk.ring) { part.detach() } }
        if let checkpoint {
            for disk in disks { disk.checkpoints.removeAll { $0.name == checkpoint } }
        }
        var left = swaps.count
        if left == 0 { end() }
        for swap in swaps {
            world.post(swap.disk.ring) { [self] in
                if swap.disk.recording === swap.next { swap.disk.unswap(swap.old) }
                world.postToControl { [self] in
                    let born = world.process
                    swap.disk.store?.abandon(swap.next)
                    left -= 1
                    if left == 0, world.isAlive(born) { end() }
                }
            }
        }
    }
}
