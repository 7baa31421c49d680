import Disk
import ServerInterface
import Simulation
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// Changes are recorded, by production's stores over simulated directories.
extension ServerWorld: FileWorld {
    static let granularityShift: UInt64 = 12

    // MARK: A disk is opened

    /// What its home ring needs to record changes; nil where they are not recorded.
    ///
    /// Starts over storage that breaks are the core's histories' affair: here it works.
    func openTracking(_ disk: ServedDisk) -> TrackingSeed? {
        guard swarm.tracks else { return nil }
        return wellBehaved {
            let doubt = TrackingDoubt(places(disk), spare: shared.spare)
            if doubt.hasUnheardLoss {
                disk.live.source.expectLossToBeHeard()
                disk.hasFailed = true
            }
            if disk.live.source.earlierLoss != nil { doubt.say(isUnheard: true) }
            do throws(TrackingFault) {
                let store = try TrackingStore.open(
                    places(disk), source: identity(disk),
                    granularityBytes: 1 << UInt32(Self.granularityShift),
                    earlierLoss: disk.live.source.witness.earlier)
                doubt.prepare(store)
                server.state.withLock { state in
                    state.tracking[disk.id] = .store(store)
                    state.trackingCare.doubts[disk.id] = doubt
                }
                note("disk \(disk.number): checkpoints \(store.record.chain.checkpoints)")
                return TrackingSeed(recording: store.recording, log: store.log, doubt: doubt)
            } catch .sourceLost {
                guard doubt.declare().isDurable else {
                    fail("disk \(disk.number): that writes were lost cannot be said")
                    return nil
                }
                server.state.withLock { state in
                    state.tracking[disk.id] = .unavailable("the disk has lost writes")
                    state.trackingCare.doubts[disk.id] = doubt
                }
                note("disk \(disk.number): has lost writes, its changes are not recorded")
                return nil
            } catch {
                fail("disk \(disk.number): tracking cannot be opened: \(error)")
                return nil
            }
        }
    }

    func wellBehaved<Value>(_ body: () -> Value) -> Value {
        let wereOn = faults.areOn
        faults.areOn = false
        defer { faults.areOn = wereOn }
        return body()
    }

    private func places(_ disk: ServedDisk) -> TrackingPlaces {
        TrackingPlaces(
            files: SimulatedDirectory(
                "/state/\(disk.number)", disk: disk.number, isMemory: false, stage),
            memory: SimulatedDirectory(
                "/memory/\(disk.number)", disk: disk.number, isMemory: true, stage),
            isInMemory: true, mark: SimulatedMark(disk: disk.number, isLasting: true, stage),
            bootID: "boot \(boot)")
    }

    private func identity(_ disk: ServedDisk) -> SourceIdentity {
        SourceIdentity(
            path: "/disk\(disk.number)", sizeBytes: disk.source.shape.sizeBytes, inode: 7,
            changedNanoseconds: disk.source.changed)
    }

    /// The rings have stopped: the bits are exact.
    func closeTracking() {
        wellBehaved {
            for disk in disks {
                guard disk.sync(by: .server), var store = store(disk) else { continue }
                store.compressSealed()
                do throws(TrackingFault) {
                    try store.close(source: identity(disk))
                } catch {
                    fail("disk \(disk.number): its bits cannot be marked as exact: \(error)")
                }
            }
        }
    }

    /// The store of a disk whose changes are recorded.
    func store(_ disk: ServedDisk) -> TrackingStore? {
        guard case .success((_, let store)) = server.store(disk.id) else { return nil }
        return store
    }

    // MARK: Work of rings

    func carryOutTracking(_ work: RingWork) -> Bool {
        switch work {
        case .writeLog(let id, let log, let words, let generation):
            guard !hangs(id) else { return false }
            answer(id) {
                .intentLogWritten(id, $0)
            } after: { () throws(SystemFault) in
                try log.write(words, generation: generation)
            }
        case .saveBits(let id, let recording, _):
            guard !hangs(id) else { return false }
            answer(id) {
                .bitsSaved(id, $0)
            } after: { [self] () throws(SystemFault) in
                if canary != .forgetsDisk { try syncSource(id) }
                try recording.save()
            }
        case .declareLoss(let id, let doubt):
            guard let disk = disk(id), !hangs(id) else { return false }
            disk.isDoubtDue = !doubt.declare().isDurable
            shared.mailboxes[disk.live.homeRing].post(.lossDeclared(id))
        default: break
        }
        return true
    }

    private func disk(_ id: DiskID) -> ServedDisk? { disks.first { $0.id == id } }

    private func hangs(_ id: DiskID) -> Bool {
        disk(id).map { faults.hangs(.state($0.number)) } ?? false
    }

    private func answer(
        _ id: DiskID, _ message: (SystemFault?) -> RingMessage,
        after body: () throws(SystemFault) -> Void
    ) {
        var fault: SystemFault?
        do throws(SystemFault) {
            try body()
        } catch {
            fault = error
        }
        guard let disk = disk(id) else { return }
        shared.mailboxes[disk.live.homeRing].post(message(fault))
    }

    /// By a descriptor of the server's own: guests must hear of what is lost as well.
    private func syncSource(_ id: DiskID) throws(SystemFault) {
        guard let disk = disk(id) else { return }
        if faults.next(.source(disk.number), rate: swarm.faultRate, &draw) != nil {
            disk.hasFailed = true
            throw SystemFault(call: "fdatasync", errno: 5)
        }
        if !disk.sync(by: .server) {
            disk.hasFailed = true
            throw SystemFault(call: "fdatasync", errno: 5)
        }
    }

    /// Tries again to say durably that changes are not recorded.
    func retryDoubts() {
        for disk in disks where disk.isDoubtDue && !faults.hangs(.state(disk.number)) {
            let doubt = server.state.withLock { $0.trackingCare.doubts[disk.id] }
            if let doubt { disk.isDoubtDue = !doubt.declare().isDurable }
        }
    }

    // MARK: Checkpoints

    func makeCheckpoint() {
        let chosen = disks.filter { store($0) != nil && draw.chance(70) }
        guard begin == nil, growth == nil, deletion == nil, !chosen.isEmpty else { return }
        checkpointCount += 1
        let name = "c\(checkpointCount)"
        note("checkpoint \(name) of disks \(chosen.map(\.number))")
        start(nil, checkpoint: name, on: chosen)
    }

    func deleteCheckpoint() {
        let possible = disks.filter { !bases(of: $0).isEmpty }
        guard begin == nil, growth == nil, deletion == nil, let disk = draw.pick(possible),
            let name = draw.pick(bases(of: disk))
        else { return }
        note("disk \(disk.number): checkpoint \(name) is deleted")
        deletion = (DeleteCheckpointCall(name, disk.id, server), disk, name)
    }

    /// Checkpoints that an incremental backup can start from.
    func bases(of disk: ServedDisk) -> [String] {
        guard let store = store(disk) else { return [] }
        let unsettled = jobs.filter { !$0.isSettled }.compactMap(\.checkpoint) + disk.takenBack
        return disk.checkpoints.map(\.name).filter {
            store.record.chain.checkpoints.contains($0) && !unsettled.contains($0)
        }
    }

    // MARK: What is known

    /// P3: everything that was changed since a checkpoint, or differs from it, is named.
    func checkTracking() {
        guard begin == nil, growth == nil, deletion == nil else { return }
        wellBehaved {
            for disk in disks where disk.source.lostCount == 0 {
                guard let store = store(disk) else { continue }
                for checkpoint in disk.checkpoints
                where store.record.chain.checkpoints.contains(checkpoint.name) {
                    let bits = store.recording.snapshot()
                    guard
                        let answer = try? store.union(since: checkpoint.name, recording: bits)
                    else { continue }
                    check(answer, since: checkpoint, of: disk, "the answer")
                }
            }
        }
    }

    func check(
        _ answer: DirtyBitmap, since checkpoint: ServedCheckpoint, of disk: ServedDisk,
        _ what: String
    ) {
        let missed = disk.needed(since: checkpoint).first {
            $0 >= answer.blockCount || !answer.isDirty($0)
        }
        guard let missed else { return }
        fail(
            "P3: disk \(disk.number): \(what) since \(checkpoint.name) misses block \(missed)"
                + (checkpoint.changed.contains(missed)
                    ? ", which was written" : ", which is not what it was"))
    }

    // MARK: The world of its files

    var process: Int { processCount }
    func isAlive(_ process: Int) -> Bool { process == processCount }

    func nextFault(_ place: Place) -> Fault? {
        // Memory and the source's attribute work: what is said there counts in the core's
        // histories.
        guard case .state = place else { return nil }
        let fault = faults.next(place, rate: swarm.faultRate, &draw)
        if let fault { note("\(fault) at \(place)") }
        return fault
    }

    func dawdle() {}
    func pause() {}
    func hang(forEver: Bool) -> Bool { false }

    func table(of disk: Int, isMemory: Bool) -> FileTable {
        isMemory ? disks[disk].memoryFiles : disks[disk].stateFiles
    }

    func markText(of disk: Int) -> String? { disks[disk].markText }
    func setMarkText(_ text: String, of disk: Int) { disks[disk].markText = text }
    var hidesErrors: Bool { false }
}

/// What the world knows of a checkpoint that a user was told of.
struct ServedCheckpoint {
    let name: String
    /// The disk at its instant.
    let content: [Stamp]
    /// Blocks that were changed since.
    var changed: Set<Int> = []
}
