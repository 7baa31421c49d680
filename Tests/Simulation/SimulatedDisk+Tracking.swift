import Core
import SystemLayer
import Tracking
import TrackingFiles

/// Changes are recorded, as a ring and its threads do it.
extension SimulatedDisk {
    /// One descriptor for all histories: none of them opens a real file.
    private static let spare = SpareDescriptor()

    private var identity: SourceIdentity {
        SourceIdentity(
            path: "/disk\(number)", sizeBytes: sizeBytes, inode: world.swarm.isFile ? 7 : 0,
            changedNanoseconds: world.swarm.isFile ? source.changed : 0)
    }

    // MARK: Start and stop

    /// The disk is attached; not served when its changes can be neither recorded nor declared
    /// unrecorded.
    func start() {
        let born = world.process
        isOwned = true
        open(born, earlierLoss: source.reopen() ? Errno.io : nil)
        if world.isAlive(born) { isOwned = false }
        checkAnswers()
    }

    private func open(_ born: Int, earlierLoss: Int32?) {
        let places = TrackingPlaces(
            files: SimulatedDirectory(
                "/state/\(number)", disk: number, isMemory: false, world.stage),
            memory: SimulatedDirectory(
                "/memory/\(number)", disk: number, isMemory: true, world.stage),
            isInMemory: true,
            mark: SimulatedMark(disk: number, isLasting: world.swarm.isFile, world.stage),
            bootID: "boot \(world.boot)")
        let doubt = TrackingDoubt(places, spare: Self.spare)
        self.doubt = doubt
        do throws(TrackingFault) {
            seenLost = source.lostCount
            let store = try TrackingStore.open(
                places, source: identity, granularityBytes: 1 << UInt32(Self.blockShift),
                earlierLoss: earlierLoss)
            guard world.isAlive(born) else { return }
            doubt.prepare(store)
            serve(store)
        } catch {
            guard world.isAlive(born) else { return }
            world.note("disk \(number): tracking cannot be opened: \(error)")
            serveUntracked(doubt)
        }
    }

    private func serve(_ store: TrackingStore) {
        tracking = .store(store)
        recording = store.recording
        intentLog = store.log
        changes.record(
            in: WriteIntent(
                regionCount: store.log.shape.regionCount, changeLimit: Self.changeLimit,
                generation: IntentLogFile.firstGeneration, isAllMarked: store.log.isAllMarked),
            regionShift: store.log.regionShift)
        isServed = true
        world.resumeJobs(on: self)
        isOnlyInMemory = false
        world.note("disk \(number): served, checkpoints \(store.record.chain.checkpoints)")
    }

    private func serveUntracked(_ doubt: TrackingDoubt) {
        let born = world.process
        spoilExactness()
        if world.canary == .servesSilently {
            tracking = .unavailable
            isServed = true
            world.resumeJobs(on: self)
            return
        }
        let outcome = doubt.declare()
        guard world.isAlive(born) else { return }
        guard outcome.isSaid else { return }
        tracking = .unavailable
        isServed = true
        world.resumeJobs(on: self)
        retriesDoubt = !outcome.isDurable
        wasTold = retriesDoubt
    }

    /// The disk is no longer written and has been synced: its bits are exact.
    func closeTracking() {
        let born = world.process
        isOwned = true
        switch tracking {
        case .none: break
        case .unavailable:
            if world.canary == .servesSilently || world.canary == .forgetsToGiveUp { break }
            if !(doubt?.lastOutcome?.isDurable ?? false) { _ = doubt?.declare() }
        case .store(var store):
            guard !isSaving(store.recording) else { break }
            savingLayers.insert(store.recording.serial)
            store.compressSealed()
            guard world.isAlive(born) else { return }
            try? store.close(source: identity)
        }
        if world.isAlive(born) { doubt?.retire() }
    }

    // MARK: Under a change

    func record(_ bytes: Range<UInt64>) {
        for index in checkpoints.indices { checkpoints[index].touched.formUnion(blocks(bytes)) }
        if store == nil { hasUnrecorded = true }
        guard let recording else { return }
        if !recording.mark(offset: bytes.lowerBound, length: UInt64(bytes.count)) {
            hasUnrecorded = true
            loseTracking()
        }
    }

    // MARK: The log

    func writeLog(_ generation: UInt64) {
        guard let intentLog else { return }
        logDeadline = world.now + World.trackingTimeout
        let words = changes.logWords
        let born = world.process
        world.thread("log", disk: number) { [self] in
            var succeeded = true
            do throws(SystemFault) {
                try intentLog.write(words, generation: generation)
            } catch {
                succeeded = false
            }
            guard world.isAlive(born) else { return }
            world.post(ring) { [self] in
                logDeadline = .max
                lastRelease = world.now
                changes.logWritten(succeeded: succeeded)
                perform()
            }
        }
    }

    /// Marks leave the log when the bits are durable, and what they stand for is: or else a loss of
    /// power could undo a change that no checkpoint calls one.
    func saveBits() {
        // The layer that records now, whichever records when the thread comes to run.
        guard let recording else { return }
        let born = world.process
        if world.canary == .clearsBeforeSync {
            changes.bitsSynced(succeeded: true)
            return
        }
        world.thread("bits", disk: number, saves: recording.serial) { [self] in
            var succeeded = syncSource()
            do throws(SystemFault) {
                try recording.save()
            } catch {
                succeeded = false
                if world.canary == .believesAfterError {
                    table(files, recording)
                    succeeded = true
                }
            }
            guard world.isAlive(born) else { return }
            world.post(ring) { [self] in
                changes.bitsSynced(succeeded: succeeded)
                perform()
            }
        }
    }

    /// Makes everything durable that was written to the disk; false when some of it is lost.
    ///
    /// By a descriptor of the server's own: guests must hear of what is lost as well.
    func syncSource() -> Bool {
        if world.canary == .forgetsDisk { return true }
        return world.nextFault(.source(number)) == nil && source.sync(by: .server)
    }

    /// A driver that syncs the same file once more and believes it.
    private func table(_ files: FileTable, _ recording: RecordingLayer) {
        _ = files.inode("layer-\(recording.serial).bits")?.content.sync()
    }

    var isLogOverdue: Bool { world.now > logDeadline }

    func tickTracking() {
        guard recording != nil else { return }
        if isLogOverdue, changes.isLogAwaited { loseTracking() }
        noticeLoss()
        if world.now > lossDeadline { lossDeclared() }
        ticks += 1
        let isHeld = isClearingHeld && world.canary != .clearsWhileSealing
        guard ticks >= 2, !isHeld else { return }
        ticks = 0
        changes.startClearing()
        perform()
    }

    // MARK: Loss

    /// Writes were lost by the disk after they had succeeded: it changes without a change.
    func noticeLoss() {
        guard seenLost != source.lostCount, world.canary != .ignoresLostWrites else { return }
        seenLost = source.lostCount
        hasUnrecorded = true
        loseTracking()
    }

    private func loseTracking() {
        changes.loseRecord()
        if changes.takeLoss() { declareLoss() }
        perform()
    }

    func declareLoss() {
        world.note("disk \(number): tracking is lost")
        tracking = .unavailable
        spoilExactness()
        if world.canary == .losesSilently {
            changes.lossDeclared()
            return
        }
        isLossUnderWay = true
        isSaidInMemory = doubt?.sayInMemory() ?? false
        lossDeadline = world.now + World.lossTimeout
        declareLater { [self] in
            world.post(ring) { [self] in lossDeclared() }
        }
    }

    private func lossDeclared() {
        if world.now > lossDeadline { wasTold = true }
        lossDeadline = .max
        lastRelease = world.now
        changes.lossDeclared()
        perform()
    }

    /// Says on a thread that changes are not recorded, again and again until it is durable.
    func declareLater(_ said: @escaping () -> Void) {
        guard let doubt else { return }
        let born = world.process
        world.thread("doubt", disk: number) { [self] in
            let outcome = doubt.declare()
            guard world.isAlive(born) else { return }
            said()
            retriesDoubt = !outcome.isDurable && world.canary != .forgetsToGiveUp
            if retriesDoubt { wasTold = true }
        }
    }

    func retryDoubt() {
        guard retriesDoubt else { return }
        retriesDoubt = false
        declareLater {}
    }

    /// A checkpoint can neither be made nor taken back.
    func trackingIsLost() {
        isLossUnderWay = true
        tracking = .unavailable
        spoilExactness()
        declareLater {}
    }

    // MARK: Layers

    func setRecording(_ layer: RecordingLayer, isClearingHeld: Bool) {
        recording = layer
        self.isClearingHeld = isClearingHeld
    }

    /// The checkpoint could not be made: the old layer goes on with what the new one has.
    func unswap(_ old: RecordingLayer) {
        guard let recording else { return }
        let isRight = old.formUnion(recording.snapshot())
        setRecording(old, isClearingHeld: false)
        if !isRight { loseTracking() }
    }

    func add(_ bits: DirtyBitmap) {
        if recording?.formUnion(bits) == false { loseTracking() }
    }

    /// Sealed layers are compressed when a call has returned.
    func compressLater() {
        let born = world.process
        world.thread("compress", disk: number) { [self] in
            guard !isOwned, let store else { return }
            isOwned = true
            store.compressSealed()
            if world.isAlive(born) { isOwned = false }
        }
    }

    /// The disk's store, while changes are recorded.
    var store: TrackingStore? {
        if case .store(let store) = tracking { store } else { nil }
    }

    /// Takes over what the record says by now; false when tracking was lost meanwhile.
    func keep(_ store: TrackingStore) -> Bool {
        guard case .store = tracking else { return false }
        tracking = .store(store)
        return true
    }
}
