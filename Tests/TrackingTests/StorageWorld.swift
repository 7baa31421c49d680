import SystemLayer
import Tracking
import TrackingFiles
import UnitSupport

/// A disk that is served, written and backed up over storage that goes wrong.
///
/// It drives the tracking as the server does: nothing is written before it is recorded or said not
/// to be. The oracle knows what was written since each checkpoint that a user was told of.
final class StorageWorld {
    /// Rules that are broken on purpose, to prove that it is noticed.
    enum Defect: Hashable, CaseIterable {
        /// A disk that cannot be tracked is served without a word.
        case servesSilently
        /// A change whose log write failed goes before that is said.
        case writesSilently
        /// Nobody looks at what syncs say.
        case hidesErrors
        /// What may be lost with a file system is taken for memory.
        case believesEveryMemory
    }
    enum Ending: Hashable, CaseIterable { case clean, kill, killAndRemount, killAndLose, power }
    /// One thing that happens while the disk is served.
    enum Step: Hashable { case write(Int), clear, checkpoint, delete(Int), compress }

    static let granularity: UInt32 = 1 << 16
    static let regionBlocks = 1 << (27 - 16)
    static let sizeBytes: UInt64 = 3 << 27

    let plan = FaultPlan()
    let files: SimulatedDirectory
    let memory: SimulatedDirectory
    let mark: SimulatedMark
    let defect: Defect?
    var random: SplitMix64
    private var boot = 0
    private var changed: UInt64 = 1

    /// By name, oldest first; only those that a user was told of.
    private(set) var oracle: [(name: String, blocks: DirtyBitmap)] = []
    private var names = 0
    /// It was said where power loss does not reach; otherwise a hole that is documented.
    private(set) var hasHole = false

    private var store: TrackingStore?
    private var doubt: TrackingDoubt?
    private var isServed = false
    private var marked: Set<Int> = []
    private var generation: UInt64 = 1

    init(markIsLasting: Bool = true, defect: Defect? = nil, seed: UInt64 = 1) {
        files = SimulatedDirectory("files", plan, hidesErrors: defect == .hidesErrors)
        memory = SimulatedDirectory("memory", plan)
        mark = SimulatedMark(plan, isLasting: markIsLasting)
        self.defect = defect
        random = SplitMix64(seed: seed)
    }

    private var places: TrackingPlaces {
        TrackingPlaces(
            files: files, memory: memory, isInMemory: true, mark: mark, bootID: "boot \(boot)")
    }

    private var source: SourceIdentity {
        // A device: no time of change tells anything.
        SourceIdentity(
            path: "/disk", sizeBytes: Self.sizeBytes, inode: 0, changedNanoseconds: 0)
    }

    private var blockCount: Int { Int(Self.sizeBytes >> 16) }

    // MARK: A session

    func start() {
        let doubt = TrackingDoubt(places, spare: SpareDescriptor())
        self.doubt = doubt
        do throws(TrackingFault) {
            let opened = try TrackingStore.open(
                places, source: source, granularityBytes: Self.granularity)
            doubt.prepare(opened)
            store = opened
            marked = opened.log.isAllMarked ? Set(0..<opened.log.shape.regionCount) : []
            generation = IntentLogFile.firstGeneration
            isServed = true
            // Some of it reaches the device, and what comes later does not.
            if defect == .believesEveryMemory { memory.remount(keeps: true) }
        } catch {
            store = nil
            isServed = defect == .servesSilently || declare()
        }
    }

    /// Says that changes are not recorded; whether that is said anywhere.
    private func declare() -> Bool {
        guard let doubt else { return false }
        let outcome = doubt.declare()
        // A process that is gone writes nothing any more.
        if plan.isStopped { return false }
        if !outcome.isDurable { hasHole = true }
        return outcome.isSaid
    }

    func perform(_ step: Step) {
        guard isServed, !plan.isStopped else { return }
        switch step {
        case .write(let block): write(block)
        case .clear: clear()
        case .checkpoint: checkpoint()
        case .delete(let index): delete(index)
        case .compress: store?.compressSealed()
        }
    }

    private func write(_ block: Int) {
        if let store {
            let region = block / Self.regionBlocks
            if marked.insert(region).inserted, !writeLog(store) {
                lose()
            }
            if plan.isStopped { return }
            if !store.recording.mark(offset: UInt64(block) << 16, length: 512) { lose() }
        }
        if plan.isStopped { return }
        for index in oracle.indices { oracle[index].blocks.mark(block..<block + 1) }
    }

    /// The log could not be written: said before the change is made.
    private func lose() {
        store = nil
        if defect != .writesSilently { _ = declare() }
    }

    private func writeLog(_ store: TrackingStore) -> Bool {
        var words = [UInt64](repeating: 0, count: (store.log.shape.regionCount + 63) / 64)
        for region in marked { words[region >> 6] |= 1 << UInt64(region & 63) }
        do throws(SystemFault) {
            try store.log.write(words, generation: generation + 1)
            generation += 1
            return true
        } catch {
            return false
        }
    }

    private func clear() {
        guard let store else { return }
        do throws(SystemFault) {
            try store.recording.save()
        } catch {
            return
        }
        let before = marked
        marked = []
        // Both slots count until they are written again.
        for _ in 0..<2 where !writeLog(store) {
            marked = before
            return
        }
    }

    private func checkpoint() {
        guard var sealing = store else { return }
        names += 1
        let name = "c\(names)"
        do throws(TrackingFault) {
            let next = try sealing.prepareNext()
            do throws(TrackingFault) {
                try sealing.seal(checkpoint: name, next: next)
            } catch {
                if !sealing.recording.formUnion(next.snapshot()) { lose() }
                sealing.abandon(next)
                return
            }
            store = sealing
            oracle.append((name, DirtyBitmap(blockCount: blockCount)))
        } catch {
            return
        }
    }

    private func delete(_ index: Int) {
        guard var deleting = store, oracle.indices.contains(index) else { return }
        let name = oracle[index].name
        do throws(TrackingFault) {
            if let bits = try deleting.bitsToAdd(deleting: name) {
                if !deleting.recording.formUnion(bits) { return lose() }
            }
            try deleting.delete(checkpoint: name)
            store = deleting
            oracle.remove(at: index)
        } catch {
            return
        }
    }

    func end(_ ending: Ending) {
        if ending == .clean, isServed, !plan.isStopped {
            if var closing = store {
                closing.compressSealed()
                try? closing.close(source: source)
            } else if doubt?.lastOutcome?.isDurable == false {
                _ = doubt?.declare()
            }
        }
        store = nil
        doubt = nil
        isServed = false
        switch ending {
        case .clean, .kill: break
        case .killAndRemount: remount(keeps: true)
        case .killAndLose: remount(keeps: false)
        case .power:
            boot += 1
            memory.forget()
            if !mark.isLasting { mark.text = nil }
            files.losePower { self.random.below(2) == 0 }
        }
    }

    private func remount(keeps: Bool) {
        files.remount(keeps: keeps)
        if defect == .believesEveryMemory { memory.remount(keeps: false) }
    }

    // MARK: The answer

    /// The checkpoints that can be used and miss a change.
    func missed() -> [String] {
        guard let store else { return [] }
        return oracle.compactMap { checkpoint in
            guard
                let answer = try? store.union(
                    since: checkpoint.name, recording: store.recording.snapshot())
            else { return nil }
            var both = answer
            both.formUnion(checkpoint.blocks)
            return both == answer ? nil : checkpoint.name
        }
    }

    /// The checkpoints that cannot be used.
    func lost() -> [String] {
        guard let store else { return oracle.map(\.name) }
        return oracle.map(\.name).filter {
            (try? store.union(since: $0, recording: store.recording.snapshot())) == nil
        }
    }

    /// Whether every answer is exactly what was written.
    var isExact: Bool {
        guard let store else { return false }
        return oracle.allSatisfy {
            (try? store.union(since: $0.name, recording: store.recording.snapshot())) == $0.blocks
        }
    }
}
