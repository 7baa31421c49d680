import Dispatch
import Foundation
import Glibc
import Synchronization
import VhostClient
import VhostFrontEnd

/// The threads of a load, and what they found.
struct Load {
    private let plan: LoadPlan
    private let frontEnd: FrontEnd

    /// Connects, and starts the queues.
    init(_ path: String, _ given: LoadPlan, hasEventIndex: Bool) throws {
        var plan = given
        var options = FrontEndOptions()
        options.queues = plan.queues
        options.queueSize = plan.queueSize
        options.hasEventIndex = hasEventIndex
        options.hasIndirect = plan.usesIndirect
        options.dataBytes = plan.slotBytes * plan.depth * plan.queues
        options.regions = 1
        frontEnd = try FrontEnd(path, options)
        if plan.usesIndirect, !frontEnd.usesIndirect {
            throw ClientViolation("no indirect tables are offered")
        }
        if plan.spanBytes == 0 { plan.spanBytes = frontEnd.diskBytes }
        guard plan.spanBytes <= frontEnd.diskBytes,
            plan.spanBytes / plan.blockBytes >= plan.queues
        else {
            throw ClientViolation(
                "the disk has \(frontEnd.diskBytes) bytes, \(plan.spanBytes) are to be used")
        }
        self.plan = plan
    }

    private func rings(_ index: Int) throws -> LoadRings {
        let queue = frontEnd.queues[index]
        return try LoadRings(
            base: frontEnd.memory.startAddress, descriptors: queue.driver.descriptors,
            available: queue.driver.available, used: queue.driver.used, size: queue.driver.size,
            hasEventIndex: queue.driver.hasEventIndex,
            slots: frontEnd.dataStart + UInt64(index * plan.depth * plan.slotBytes),
            kick: queue.kick, callEdge: queue.call.edge())
    }

    /// Places to touch, dealt out to the queues.
    private func places() -> [[UInt64]] {
        var dealt = [[UInt64]](repeating: [], count: plan.queues)
        guard plan.order == .touch else { return dealt }
        let inStride = max(plan.strideBytes / plan.blockBytes, 1)
        var all = (0..<plan.spanBytes / plan.strideBytes).map {
            UInt64($0 * plan.strideBytes + Int.random(in: 0..<inStride) * plan.blockBytes)
        }
        all.shuffle()
        for (index, place) in all.enumerated() { dealt[index % plan.queues].append(place) }
        return dealt
    }

    /// Runs it; throws if the back-end goes, or does not answer in the end.
    func run() throws -> Report {
        let results = try threads(limit: plan.order == .touch ? 300 : plan.seconds + 30)
        let processor = Report.processorSeconds()
        for index in frontEnd.queues.indices { try frontEnd.stop(queue: index) }
        return Report(plan, results, processorSeconds: processor)
    }

    /// Runs for a time, and is gone with whatever is in flight then.
    func vanish(after seconds: Double) throws -> Never {
        try start { _ in }
        Thread.sleep(forTimeInterval: seconds)
        _exit(0)
    }

    private func start(_ finished: @escaping @Sendable (WorkerResult?) -> Void) throws {
        for (index, places) in places().enumerated() {
            let setup = WorkerSetup(
                plan: plan, index: index, rings: try rings(index), places: places)
            Thread.detachNewThread {
                guard let worker = Worker(setup) else { return finished(nil) }
                finished(worker.run())
            }
        }
    }

    private func threads(limit: Double) throws -> [WorkerResult] {
        let results = Results()
        try start { results.add($0) }
        let deadline = ContinuousClock.now + .seconds(limit)
        while results.count < plan.queues {
            results.wait()
            guard !frontEnd.socket.isClosed() else {
                throw ClientViolation("the back-end has closed the connection")
            }
            guard ContinuousClock.now < deadline else {
                throw ClientViolation("requests are not answered after \(limit) s")
            }
        }
        return results.all
    }
}

/// Results of threads that have ended.
private final class Results: Sendable {
    private let collected = Mutex<[WorkerResult]>([])
    private let arrived = DispatchSemaphore(value: 0)

    func add(_ result: WorkerResult?) {
        if let result { collected.withLock { $0.append(result) } }
        arrived.signal()
    }

    var count: Int { collected.withLock { $0.count } }
    var all: [WorkerResult] { collected.withLock { $0 } }

    /// Waits for one more, or for a moment.
    func wait() { _ = arrived.wait(timeout: .now() + 0.2) }
}
