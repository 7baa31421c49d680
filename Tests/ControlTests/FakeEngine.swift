import Control
import NBDServer
import Synchronization

/// An engine without disks: it remembers what it was asked and does as it is told.
final class FakeEngine: BackupEngine {
    struct State {
        var attached: [DiskID: DiskConfiguration] = [:]
        var jobs: [String: JobConfiguration] = [:]
        var broken: [String: String] = [:]
        var nextDisk: UInt64 = 1
        var handler: (@Sendable (ServerEvent) -> Void)?
        var isShutDown = false
        var unusablePaths: Set<String> = []
        var beginFault: ServerFault?
        var endFault: ServerFault?
        /// What a begin does before it answers.
        var onBegin: (@Sendable (JobConfiguration) -> Void)?
    }

    private let state = Mutex(State())

    func change(_ body: @Sendable (inout State) -> Void) { state.withLock { body(&$0) } }
    func look<Value: Sendable>(_ body: @Sendable (inout State) -> Value) -> Value {
        state.withLock { body(&$0) }
    }
    var attachedCount: Int { state.withLock { $0.attached.count } }
    var jobCount: Int { state.withLock { $0.jobs.count } }

    /// Breaks a job as the server would: its reports say so, and an event is sent.
    func breakJob(_ id: String, _ reason: String) {
        let handler = state.withLock { state in
            state.broken[id] = reason
            return state.handler
        }
        handler?(.jobBroken(id: id, reason: reason))
    }

    func attachDisk(_ configuration: DiskConfiguration) async throws(ServerFault) -> DiskID {
        let result: Result<DiskID, ServerFault> = state.withLock { state in
            guard !state.unusablePaths.contains(configuration.path) else {
                return .failure(
                    .sourceUnusable(path: configuration.path, detail: "open: No such file"))
            }
            let names = state.attached.values.map(\.exportName)
            guard !names.contains(configuration.exportName) else {
                return .failure(.exportNameTaken(name: configuration.exportName))
            }
            let id = DiskID(number: state.nextDisk)
            state.nextDisk += 1
            state.attached[id] = configuration
            return .success(id)
        }
        return try result.get()
    }

    func detachDisk(_ disk: DiskID) async throws(ServerFault) {
        guard state.withLock({ $0.attached.removeValue(forKey: disk) }) != nil else {
            throw .unknownDisk
        }
    }

    func diskStatus(_ disk: DiskID) async throws(ServerFault) -> DiskStatus {
        guard state.withLock({ $0.attached[disk] }) != nil else { throw .unknownDisk }
        return DiskStatus(sizeBytes: 1 << 20, clientCount: 1, dirtyBytes: 65536)
    }

    func beginJob(_ configuration: JobConfiguration) async throws(ServerFault) -> JobStarted {
        let (fault, onBegin) = state.withLock { ($0.beginFault, $0.onBegin) }
        if let fault { throw fault }
        onBegin?(configuration)
        state.withLock { $0.jobs[configuration.id] = configuration }
        var endpoint = configuration.endpoint
        if case .tcp(let host, nil) = endpoint { endpoint = .tcp(host: host, port: 10809) }
        let sizes = configuration.disks.map { ($0.target, UInt64(1 << 20)) }
        return JobStarted(
            endpoint: endpoint, holdNanoseconds: 1000,
            diskSizes: Dictionary(uniqueKeysWithValues: sizes))
    }

    func jobReport(id: String) async throws(ServerFault) -> JobReport {
        guard let report = state.withLock({ Self.report($0, id) }) else {
            throw .unknownJob(id: id)
        }
        return report
    }

    func endJob(id: String) async throws(ServerFault) -> JobReport {
        if let fault = state.withLock({ $0.endFault }) { throw fault }
        let report = state.withLock { state in
            let report = Self.report(state, id)
            state.jobs.removeValue(forKey: id)
            return report
        }
        guard let report else { throw .unknownJob(id: id) }
        return report
    }

    func listenLive(_ endpoint: ListenEndpoint) async throws(ServerFault) -> ListenEndpoint {
        endpoint
    }

    func setEventHandler(_ handler: @escaping @Sendable (ServerEvent) -> Void) {
        state.withLock { $0.handler = handler }
    }

    func shutdown() async {
        state.withLock {
            $0.isShutDown = true
            $0.attached = [:]
        }
    }

    private static func report(_ state: State, _ id: String) -> JobReport? {
        guard let job = state.jobs[id] else { return nil }
        let disks = job.disks.map {
            JobDiskReport(
                target: $0.target, sizeBytes: 1 << 20, scratchUsedBytes: 65536,
                preservedClusters: 2, zeroClusters: 1, bytesRead: 4096)
        }
        return JobReport(
            disks: disks, clientCount: 1, holdNanoseconds: 1000, brokenReason: state.broken[id])
    }
}
