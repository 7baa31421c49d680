import ServerInterface
import Synchronization

/// The workers of one push job, one for each disk.
final class PushCrew: Sendable {
    /// How far one disk has come.
    struct Progress: Sendable, Hashable {
        var bytes: UInt64 = 0
        var total: UInt64 = 0
    }

    private struct Member: Sendable {
        var run: (any PushRun)?
        var isReady = false
        var isDone = false
        var isFlushing = false
        var progress: Progress?
        var failure: String?
        var lastNews = ContinuousClock.now
        /// Who waits for the room that its target takes.
        var waiting: [@Sendable () -> Void] = []
        var fileSystem: UInt64?
        /// What it has been told last: whether a machine's disk lies there, too.
        var isBesideDisk = false
    }

    /// What a crew has to do with machines that share a file system with its targets.
    struct Neighbours: Sendable {
        /// Where machines' disks take their room now.
        var room: @Sendable () -> MachineRoom = { MachineRoom() }
        /// Has a new target's room given back when a machine needs it.
        var hold: @Sendable (RoomHolder) -> Void = { _ in }
    }

    /// Of so many times the time that storage has otherwise, the last flush may take.
    private static let flushTimes = 20
    private static let lookMilliseconds: Int64 = 10
    /// Of so many looks, one is for disks that have come or gone.
    private static let looksPerRoom = 10

    private let job: String
    private let neighbours: Neighbours
    private let orders: [String: PushOrder]
    private let starter: any PushStarting
    private let storageMilliseconds: Int64
    private let bytesPerSecond: UInt64?
    private let members: Mutex<[String: Member]>
    private let isStopped = Atomic(false)

    /// - Parameter orders: by target of the disk.
    init(
        job: String, orders: [String: PushOrder], starter: any PushStarting,
        storageMilliseconds: Int32, bytesPerSecond: UInt64?, neighbours: Neighbours
    ) {
        self.job = job
        self.neighbours = neighbours
        self.orders = orders
        self.starter = starter
        self.storageMilliseconds = Int64(storageMilliseconds)
        self.bytesPerSecond = bytesPerSecond
        members = Mutex(orders.mapValues { _ in Member() })
    }

    /// By target of the disk.
    var progress: [String: Progress] {
        members.withLock { $0.compactMapValues(\.progress) }
    }

    /// Starts the workers and waits until all targets can be written.
    ///
    /// On an error none of them is left.
    func prepare() async throws(ControlError) {
        do throws(ControlError) {
            let room = neighbours.room()
            for (target, order) in orders.sorted(by: { $0.key < $1.key }) {
                var order = order
                order.bytesPerSecond = share(of: orders.count)
                order.room = room
                let run = try starter.start(order) { [weak self] in self?.hear(target, $0) }
                members.withLock { members in
                    guard members[target] != nil else { return }
                    members[target]?.run = run
                }
                // Whoever has stopped them meanwhile did not see this one.
                if isStopped.load(ordering: .sequentiallyConsistent) { run.stop() }
            }
        } catch {
            stop()
            throw error
        }
        guard let failure = await settled({ $0.isReady }) else { return }
        stop()
        throw .pushFailed(orders[failure.target]?.path ?? failure.target, failure.reason)
    }

    /// How a push has gone.
    enum Outcome: Sendable, Hashable {
        /// All targets are whole and durable.
        case done
        /// What went wrong first.
        case failed(String)
        /// Somebody has stopped the workers.
        case stopped
    }

    /// Lets the workers copy, and waits for all of them; none of them is left then.
    func work(_ sources: [String: PushSource]) async -> Outcome {
        for (target, source) in sources {
            members.withLock { members in
                guard let run = members[target]?.run else { return }
                members[target]?.lastNews = .now
                run.tell(.copy(source))
            }
        }
        let failure = await settled({ $0.isDone })
        if isStopped.load(ordering: .sequentiallyConsistent) { return .stopped }
        stop()
        return failure.map { Outcome.failed("disk '\($0.target)': \($0.reason)") } ?? .done
    }

    /// Ends all workers.
    func stop() {
        // Another crew may use the same places by the second time.
        guard !isStopped.exchange(true, ordering: .sequentiallyConsistent) else { return }
        for run in members.withLock({ $0.values.compactMap(\.run) }) { run.stop() }
        for order in orders.values { _ = try? SystemCalls.unlink(order.socketPath) }
    }

    // Those that still copy share the limit.
    private func share(of count: Int) -> UInt64? {
        bytesPerSecond.map { max($0 / UInt64(max(count, 1)), 1) }
    }

    /// Has a target give its room back to a machine, and calls `done` when there is nothing more to
    /// come.
    private func give(_ target: String, _ done: @escaping @Sendable () -> Void) {
        let isWaiting = members.withLock { members in
            guard let member = members[target], !member.isDone, member.failure == nil else {
                return false
            }
            members[target]?.waiting.append(done)
            if member.waiting.isEmpty { member.run?.tell(.giveRoom) }
            return true
        }
        if !isWaiting { done() }
    }

    /// Answers all who still wait for room: whatever these workers had made is marked by now.
    func answerAll() { for target in orders.keys { answer(target) } }

    private func answer(_ target: String) {
        let waiting = members.withLock { members in
            defer { members[target]?.waiting = [] }
            return members[target]?.waiting ?? []
        }
        for done in waiting { done() }
    }

    // What was there before is not ours to be emptied.
    private func hold(_ target: String, on fileSystem: UInt64) {
        guard orders[target]?.isNew == true else { return }
        neighbours.hold(
            RoomHolder(job: job, target: target, fileSystem: fileSystem) { [weak self] done in
                guard let self else { return done() }
                self.give(target, done)
            })
    }

    // Says so where it has changed: a worker that hangs reads nothing, and its pipe has an end.
    private func tellRoom() {
        let room = neighbours.room()
        members.withLock { members in
            for (target, member) in members {
                guard let fileSystem = member.fileSystem,
                    room.fileSystems.contains(fileSystem) != member.isBesideDisk
                else { continue }
                members[target]?.isBesideDisk.toggle()
                let places: Set<UInt64> = member.isBesideDisk ? [] : [fileSystem]
                member.run?.tell(.room(MachineRoom(fileSystems: places, reserve: room.reserve)))
            }
        }
    }

    private func hear(_ target: String, _ report: PushReport) {
        note(target, report)
        switch report {
        case .place(let fileSystem): hold(target, on: fileSystem)
        // The worker has emptied it; of one that was ended others see to that.
        case .failed: if !isStopped.load(ordering: .sequentiallyConsistent) { answer(target) }
        case .ready, .progress, .flushing, .done: break
        }
    }

    private func note(_ target: String, _ report: PushReport) {
        members.withLock { members in
            guard var member = members[target] else { return }
            member.lastNews = .now
            switch report {
            case .place(let fileSystem): member.fileSystem = fileSystem
            case .ready: member.isReady = true
            case .progress(let bytes, let total):
                member.progress = Progress(bytes: bytes, total: total)
                member.isFlushing = false
            case .flushing: member.isFlushing = true
            case .done: member.isDone = true
            case .failed(let reason): member.failure = member.failure ?? reason
            }
            members[target] = member
            guard report == .done else { return }
            let left = members.values.filter { !$0.isDone }
            guard let share = share(of: left.count) else { return }
            for member in left { member.run?.tell(.limit(share)) }
        }
    }

    // Waits until all are what is asked, one has failed, or one has had no news for too long.
    private func settled(
        _ isSettled: @Sendable (Member) -> Bool
    ) async -> (target: String, reason: String)? {
        var looks = 0
        while true {
            if looks % Self.looksPerRoom == 0 { tellRoom() }
            looks += 1
            if isStopped.load(ordering: .sequentiallyConsistent) { return ("", "it was stopped") }
            let all = members.withLock { $0 }
            for (target, member) in all.sorted(by: { $0.key < $1.key }) {
                if let failure = member.failure { return (target, failure) }
                guard !isSettled(member) else { continue }
                let limit =
                    member.isFlushing
                    ? storageMilliseconds * Int64(Self.flushTimes) : storageMilliseconds
                if ContinuousClock.now - member.lastNews > .milliseconds(limit) {
                    let path = orders[target]?.path ?? target
                    return (target, "'\(path)' does not answer: no progress for \(limit) ms")
                }
            }
            if all.values.allSatisfy(isSettled) { return nil }
            try? await Task.sleep(for: .milliseconds(Self.lookMilliseconds))
        }
    }
}

extension ControlError {
    /// A target cannot be written.
    static func pushFailed(_ path: String, _ detail: String) -> ControlError {
        ControlError(
            .systemError, code: "target-unusable", status: 422,
            detail: "target '\(path)' of the backup cannot be written: \(detail)")
    }
}
