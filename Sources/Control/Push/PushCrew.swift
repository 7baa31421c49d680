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
    }

    /// Of so many times the time that storage has otherwise, the last flush may take.
    private static let flushTimes = 20
    private static let lookMilliseconds: Int64 = 10

    private let orders: [String: PushOrder]
    private let starter: any PushStarting
    private let storageMilliseconds: Int64
    private let bytesPerSecond: UInt64?
    private let members: Mutex<[String: Member]>
    private let isStopped = Atomic(false)

    /// - Parameter orders: by target of the disk.
    init(
        orders: [String: PushOrder], starter: any PushStarting, storageMilliseconds: Int32,
        bytesPerSecond: UInt64?
    ) {
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
            for (target, order) in orders.sorted(by: { $0.key < $1.key }) {
                var order = order
                order.bytesPerSecond = share(of: orders.count)
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

    private func hear(_ target: String, _ report: PushReport) {
        members.withLock { members in
            guard var member = members[target] else { return }
            member.lastNews = .now
            switch report {
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
        while true {
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
