import Scratch

extension Stage {
    /// A read begins; it neither starts nor ends at a cluster's edge.
    func begin(_ reader: Int, _ job: Int, _ clusters: Range<Int>, in world: inout World) {
        world.readers[reader].left -= 1
        world.readers[reader].job = job
        world.readers[reader].clusters = clusters
        world.readers[reader].position = ClusterGeometry.start(of: clusters.lowerBound) + 512
        world.readers[reader].phase = .ready
    }

    private func end(of reader: ReaderModel) -> UInt64 {
        min(ClusterGeometry.start(of: reader.clusters.upperBound), geometry.sizeBytes) - 100
    }

    private func clusters(of step: ReadStep) -> Range<Int> {
        ClusterGeometry.clusters(touching: step.offset, length: UInt64(step.count))
    }

    /// The next load or read of a backup read; anything else may happen between two of them.
    func move(_ reader: Int, in world: inout World) throws(Violation) {
        let model = world.readers[reader]
        let view = ledgers[model.job].view
        switch model.phase {
        case .idle: return
        case .ready:
            world.readers[reader].phase = .planned(
                view.step(from: model.position, to: end(of: model)),
                hadLost: world.jobs[model.job].hasLost)
        case .planned(let step, _) where step.place == .released:
            let first = clusters(of: step).lowerBound
            guard world.jobs[model.job].released.contains(first) else {
                throw Violation(text: "cluster \(first) is denied though nobody let go of it")
            }
            // The read ends with an error.
            world.readers[reader] = ReaderModel(left: model.left)
        case .planned(let step, let hadLost):
            world.readers[reader].phase = .taken(
                step, values(of: step, for: model, in: world),
                hadLost: hadLost)
        case .taken(let step, let values, let hadLost):
            var isLost = world.jobs[model.job].hasLost
            switch scenario.readerRule {
            case .trustsDevice: isLost = false
            case .asksDeviceTooEarly: isLost = hadLost
            default: break
            }
            if case .slot = step.place {} else { isLost = false }
            world.readers[reader].phase = judge(step, values, view, isLost: isLost)
        case .judged(let values, let next, let isLost):
            if isLost, !view.isClosed {
                // The reader closes the ledger at once; the home ring hears of it later.
                view.close()
                world.gate.breakJob(
                    try slot(of: model.job, in: world), cause: .scratchLost(errno: 28),
                    now: world.now)
                try drain(&world)
            }
            if view.isClosed, scenario.readerRule != .ignoresClosing {
                guard world.jobs[model.job].phase != .whole else {
                    throw Violation(text: "the ledger of whole job \(model.job) is closed")
                }
                world.readers[reader] = ReaderModel(left: model.left)
                return
            }
            world.readers[reader].collected += values
            world.readers[reader].position = next
            world.readers[reader].phase = .ready
            if next == end(of: model) { try finish(reader, in: &world) }
        }
    }

    private func values(
        of step: ReadStep, for reader: ReaderModel, in world: World
    ) -> [UInt16] {
        let clusters = clusters(of: step)
        switch step.place {
        case .source: return Array(world.source[clusters])
        case .zero: return Array(repeating: 0, count: clusters.count)
        case .released: return Array(repeating: World.garbage, count: clusters.count)
        case .slot(let slot):
            return Array(world.jobs[reader.job].scratch[Int(slot)...].prefix(clusters.count))
        }
    }

    private func judge(
        _ step: ReadStep, _ values: [UInt16], _ view: LedgerView, isLost: Bool
    ) -> ReaderModel.Phase {
        let clusters = clusters(of: step)
        let end = step.offset + UInt64(step.count)
        let found: Int?
        switch step.place {
        case .source where scenario.readerRule != .looksBeforeReading:
            found = view.firstPreserved(in: clusters)
        case .slot where scenario.readerRule != .trustsScratch:
            found = view.firstReleased(in: clusters)
        default: found = nil
        }
        guard let changed = found else {
            return .judged(values, next: end, isLost: isLost)
        }
        let good = Array(values.prefix(changed - clusters.lowerBound))
        return .judged(
            good, next: max(step.offset, ClusterGeometry.start(of: changed)), isLost: isLost)
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
