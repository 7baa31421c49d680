import PointInTime
import ScratchFiles
import SystemLayer
import Tracking
import UnitSupport

/// One disk under a job whose process may die at any step, and everything that outlives it: the
/// disk, the job's scratch, and the ledger's file.
///
/// Contents are one number for each cluster; 0 is all zeros.
struct CrashWorld {
    static let clusterCount = 12
    private static let changeLimit = 8
    private static let slotLimit: UInt32 = 12

    private let path: String
    /// False: the ledger is kept from its file, as if entries came after the writes.
    private let keepsFile: Bool
    private var random: SplitMix64
    private let mappedWordsMin: Int
    private var ledger: Ledger
    private var gate = CopyBeforeWrite(changeLimit: Self.changeLimit)
    private var job = JobIndex(0)

    private var source: [Int]
    private let instant: [Int]
    private var scratch: [UInt32: Int] = [:]
    private var released: Set<Int> = []
    private var nextValue = 100

    private struct Change {
        var clusters: Range<Int>
        var value: Int
        var isSubmitted = false
    }
    private var changes: [Int: Change] = [:]
    private var reading: [CopyIndex: Range<Int>] = [:]
    private var buffers: [CopyIndex: (clusters: Range<Int>, values: [Int])] = [:]
    private var saving: [ScratchWrite] = []

    private(set) var deaths = 0
    /// Slots that were used a second time.
    private(set) var reused = 0
    /// What the next process would have served wrongly.
    private(set) var problems: [String] = []

    init(path: String, seed: UInt64, keepsFile: Bool = true) throws {
        self.path = path
        self.keepsFile = keepsFile
        random = SplitMix64(seed: seed)
        // Every other one has the words where they are in the file.
        mappedWordsMin = seed.isMultiple(of: 2) ? 1 : .max
        instant = (0..<Self.clusterCount).map { $0 % 4 == 3 ? 0 : $0 + 1 }
        source = instant
        let facts = LedgerFacts(
            bootID: "boot", jobID: "job", target: "vda",
            sizeBytes: UInt64(Self.clusterCount) << ClusterGeometry.shift, source: "1:2",
            scratch: "1:3")
        let file = try LedgerFile.create(path: path, facts: facts)
        ledger = try Ledger(
            geometry: ClusterGeometry(sizeBytes: facts.sizeBytes), file: keepsFile ? file : nil)
        attach()
    }

    private mutating func attach() {
        gate = CopyBeforeWrite(changeLimit: Self.changeLimit)
        let attached = gate.attach(
            ledger.view, slotLimit: Self.slotLimit, copyTimeoutNanoseconds: .max,
            found: ledger.found)
        guard let attached else { preconditionFailure("a gate without jobs has a place") }
        job = attached
    }

    private mutating func pick(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }

    // MARK: Steps

    mutating func step() throws {
        switch pick(11) {
        case 0...3: write()
        case 4, 5: finishReading()
        case 6, 7: finishSaving()
        case 8: land()
        case 9: release()
        default:
            if pick(4) == 0 { try die() } else { noteHole() }
        }
        perform()
        try judge()
    }

    private mutating func write() {
        guard let number = (0..<Self.changeLimit).first(where: { changes[$0] == nil }) else {
            return
        }
        let first = pick(Self.clusterCount)
        let end = min(first + 1 + pick(3), Self.clusterCount)
        nextValue += 1
        changes[number] = Change(clusters: first..<end, value: pick(5) == 0 ? 0 : nextValue)
        if gate.admit(ChangeID(number), clusters: first..<end, now: 0) == .go {
            changes[number]?.isSubmitted = true
        }
    }

    private mutating func finishReading() {
        guard let copy = reading.keys.min(by: { $0.number < $1.number }),
            let clusters = reading.removeValue(forKey: copy)
        else { return }
        let values = clusters.map { source[$0] }
        buffers[copy] = (clusters, values)
        var zeros: UInt64 = 0
        for (position, value) in values.enumerated() where value == 0 {
            zeros |= 1 << UInt64(position)
        }
        gate.readFinished(copy: copy, errno: nil, zeroClusters: zeros, now: 0)
    }

    private mutating func save(_ write: ScratchWrite) {
        guard let values = buffers[write.copy]?.values else { return }
        for index in 0..<write.count {
            let slot = write.slot + UInt32(index)
            if scratch[slot] != nil { reused += 1 }
            scratch[slot] = values[write.position + index]
        }
    }

    private mutating func finishSaving() {
        guard !saving.isEmpty else { return }
        let write = saving.remove(at: pick(saving.count))
        save(write)
        gate.scratchWriteFinished(write, errno: nil, now: 0)
    }

    /// A write that was submitted is complete.
    private mutating func land() {
        let submitted = changes.filter(\.value.isSubmitted).keys.sorted()
        guard !submitted.isEmpty, let change = changes[submitted[pick(submitted.count)]] else {
            return
        }
        for cluster in change.clusters { source[cluster] = change.value }
        changes = changes.filter { $0.value.value != change.value || !$0.value.isSubmitted }
    }

    private mutating func release() {
        let first = pick(Self.clusterCount)
        released.insert(first)
        gate.releaseClusters(job: job, first..<first + 1, now: 0)
    }

    private func isUnderWay(_ cluster: Int) -> Bool {
        changes.values.contains { $0.isSubmitted && $0.clusters.contains(cluster) }
    }

    private mutating func noteHole() {
        let cluster = pick(Self.clusterCount)
        guard source[cluster] == 0, !isUnderWay(cluster) else { return }
        gate.noteHole(cluster..<cluster + 1)
    }

    private mutating func perform() {
        while let action = gate.nextAction() {
            switch action {
            case .readSource(let copy, let clusters): reading[copy] = clusters
            case .writeScratch(let write): saving.append(write)
            case .copyDone(let copy): buffers[copy] = nil
            case .pass(let change): changes[change.number]?.isSubmitted = true
            case .jobBroken, .jobDetached: problems.append("the job broke")
            }
        }
    }

    // MARK: The process dies

    /// What was in flight has happened or not, a cluster at a time; then the next process goes on.
    private mutating func die() throws {
        // Nobody could go on without the file.
        guard keepsFile else { return }
        deaths += 1
        for change in changes.values where change.isSubmitted {
            for cluster in change.clusters where pick(2) == 0 { source[cluster] = change.value }
        }
        for write in saving where pick(2) == 0 { save(write) }
        changes = [:]
        reading = [:]
        buffers = [:]
        saving = []
        ledger = try Ledger(
            try LedgerFile.open(path: path), slotLimit: Self.slotLimit,
            mappedWordsMin: mappedWordsMin)
        attach()
    }

    /// Whether the next process would serve the instant if this one died now.
    private mutating func judge() throws {
        let left = try Ledger(
            try LedgerFile.open(path: path), slotLimit: Self.slotLimit,
            mappedWordsMin: mappedWordsMin)
        for cluster in 0..<Self.clusterCount {
            let isRight =
                switch left.view.place(of: cluster) {
                case .source: source[cluster] == instant[cluster] && !isUnderWay(cluster)
                case .zero: instant[cluster] == 0
                case .slot(let slot): scratch[slot] == instant[cluster]
                case .released: released.contains(cluster)
                }
            if !isRight { problems.append("cluster \(cluster): \(left.view.place(of: cluster))") }
        }
        withExtendedLifetime(left) {}
    }
}
