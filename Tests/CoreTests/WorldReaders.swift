import Core
import PointInTime
import ScratchFiles

extension Stage {
    /// A read begins; it neither starts nor ends at a cluster's edge.
    func begin(_ reader: Int, _ job: Int, _ clusters: Range<Int>, in world: inout World) {
        let end = min(ClusterGeometry.start(of: clusters.upperBound), geometry.sizeBytes) - 100
        world.readers[reader].left -= 1
        world.readers[reader].job = job
        world.readers[reader].clusters = clusters
        world.readers[reader].read = PointInTimeRead(
            ClusterGeometry.start(of: clusters.lowerBound) + 512..<end)
        world.readers[reader].phase = .ready
    }

    /// The next load or read of a backup read; anything else may happen between two of them.
    func move(_ reader: Int, in world: inout World) throws(Violation) {
        let model = world.readers[reader]
        switch model.phase {
        case .idle: return
        case .ready: try plan(reader, in: &world)
        case .planned(let step, let hadLost):
            let values = values(of: step, for: model, in: world)
            if scenario.readerRule == .looksBeforeReading {
                collect(reader, values, in: &world)
            } else {
                world.readers[reader].phase = .taken(values, hadLost: hadLost)
            }
        case .taken(let values, let hadLost):
            if model.read.isOfScratch { world.readers[reader].hadLost = model.hadLost ?? hadLost }
            judge(reader, values, in: &world)
        case .asks: try ask(reader, in: &world)
        }
    }

    /// What the production's read says next.
    private func plan(_ reader: Int, in world: inout World) throws(Violation) {
        let model = world.readers[reader]
        let view = ledgers[model.job].view
        let hadLost = world.jobs[model.job].hasLost
        let step = world.readers[reader].read.next(view)
        switch step {
        case .source(let count), .scratch(_, let count), .zeros(let count):
            if scenario.readerRule == .looksBeforeReading {
                world.readers[reader].early = model.read.position
                world.readers[reader].read.got(count, view)
            }
            world.readers[reader].phase = .planned(step, hadLost: hadLost)
        case .askScratch: world.readers[reader].phase = .asks
        case .closed where scenario.readerRule != .ignoresClosing:
            guard world.jobs[model.job].phase != .whole else {
                throw Violation(text: "the ledger of whole job \(model.job) is closed")
            }
            world.readers[reader] = ReaderModel(left: model.left)
        case .closed, .done: try finish(reader, in: &world)
        case .released:
            let first = ClusterGeometry.cluster(of: model.read.position)
            guard world.jobs[model.job].released.contains(first) else {
                throw Violation(text: "cluster \(first) is denied though nobody let go of it")
            }
            // The read ends with an error.
            world.readers[reader] = ReaderModel(left: model.left)
        }
    }

    /// What the disk has, or scratch: a value for each cluster that a step touches.
    private func values(
        of step: PointInTimeRead.Step, for reader: ReaderModel, in world: World
    ) -> [UInt16] {
        let position = reader.early ?? reader.read.position
        func clusters(_ count: Int) -> Range<Int> {
            ClusterGeometry.clusters(touching: position, length: UInt64(count))
        }
        switch step {
        case .source(let count): return Array(world.source[clusters(count)])
        case .zeros(let count): return Array(repeating: 0, count: clusters(count).count)
        case .scratch(let position, let count):
            let slot = Int(position >> ClusterGeometry.shift)
            return Array(world.jobs[reader.job].scratch[slot...].prefix(clusters(count).count))
        case .askScratch, .done, .closed, .released: return []
        }
    }

    /// The read is told what was read, after the read, and keeps what is good of it.
    private func judge(_ reader: Int, _ values: [UInt16], in world: inout World) {
        let model = world.readers[reader]
        // Wrong rules ask nobody.
        let isTrusted = scenario.readerRule == .trustsScratch && model.read.isOfScratch
        let first = ClusterGeometry.cluster(of: model.read.position)
        let stepEnd = min(
            ClusterGeometry.start(of: first + values.count), model.read.end)
        world.readers[reader].read.got(
            Int(stepEnd - model.read.position), isTrusted ? nil : ledgers[model.job].view)
        world.readers[reader].early = model.read.position
        collect(reader, values, in: &world)
    }

    /// Keeps the values of the clusters that the read has accepted.
    private func collect(_ reader: Int, _ values: [UInt16], in world: inout World) {
        let model = world.readers[reader]
        let from = model.early ?? model.read.position
        if from < model.read.position {
            let clusters = ClusterGeometry.clusters(
                touching: from, length: model.read.position - from)
            world.readers[reader].collected += values.prefix(clusters.count)
        }
        world.readers[reader].early = nil
        world.readers[reader].phase = .ready
    }

    /// The kernel says whether a write-back has failed; a reader that hears so breaks the job.
    private func ask(_ reader: Int, in world: inout World) throws(Violation) {
        let model = world.readers[reader]
        let isLost =
            switch scenario.readerRule {
            case .trustsDevice: false
            case .asksDeviceTooEarly: model.hadLost ?? false
            default: world.jobs[model.job].hasLost
            }
        world.readers[reader].read.asked()
        world.readers[reader].phase = .ready
        let view = ledgers[model.job].view
        guard isLost, !view.isClosed else { return }
        view.close()
        world.changes.breakJob(
            try slot(of: model.job, in: world), .scratchLost(errno: 28), now: world.now)
        try drain(&world)
    }

    private func finish(_ reader: Int, in world: inout World) throws(Violation) {
        let model = world.readers[reader]
        let expected = Array(world.jobs[model.job].instant[model.clusters])
        guard model.collected == expected else {
            throw Violation(
                text: "a read of \(model.clusters) of job \(model.job) gave \(model.collected)"
                    + " where the point in time has \(expected)")
        }
        world.readers[reader] = ReaderModel(left: model.left)
    }
}
