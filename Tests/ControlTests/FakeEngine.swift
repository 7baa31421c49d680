import Control
import Foundation
import ServerInterface
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
        /// Clients of live exports, by export name.
        var clients: [String: Int] = [:]
        /// Sizes of disks that have grown, by path.
        var sizes: [String: UInt64] = [:]
        /// A detach answers this once, for the export of this name: the disk stays, or is gone.
        var detachFaults: [String: (fault: ServerFault, isGone: Bool)] = [:]
        /// What an attach and a detach do before they answer, given the export's name.
        var onAttach: (@Sendable (String) async -> Void)?
        var onDetach: (@Sendable (String) async -> Void)?
        var growFault: ServerFault?
        /// Whether a chain goes with its directory.
        var keepsChainsInDirectories = false
        /// At the instant.
        var beginFault: ServerFault?
        /// Why jobs end with their server.
        var notLasting: String?
        /// What jobs that are begun keep for the next server.
        var memory: String?
        /// Jobs that an earlier engine has left.
        var expected: [JobResumption] = []
        var resumeFault: ServerFault?
        /// How the server before crashed.
        var crash: CrashReport?
        var endFault: ServerFault?
        /// How long an end takes.
        var endMilliseconds = 0
        /// By tracking directory, as a real engine keeps them: oldest first.
        var chains: [String: [String]] = [:]
        var createFault: ServerFault?
        var deleteFault: ServerFault?
        /// Checkpoints whose bitmap is invalid, by tracking directory.
        var invalid: [String: Set<String>] = [:]
        var recoveredBytes: UInt64 = 0
        var trackingProblem: String?
        /// Clients of every job.
        var jobClients = 1
        /// How often anybody asked for the state of a job.
        var reportsAsked = 0
        /// What a begin does before it answers.
        var onBegin: (@Sendable (JobConfiguration) -> Void)?
        /// What it does at the instant.
        var onInstant: (@Sendable () -> Void)?
        /// Told of each step of a move.
        var onMove: (@Sendable (String) -> Void)?
        var checkFault: ServerFault?
        var adoptFault: ServerFault?
        /// What is noted on every disk's file.
        var sourceNote = MovingStatus.Note.none
        var sourceMark = ""
        /// How the last disk was taken over.
        var terms: MoveTerms?
        var room = MachineRoom()
        var holders: [RoomHolder] = []
    }

    private let state = Mutex(State())

    func change(_ body: @Sendable (inout State) -> Void) { state.withLock { body(&$0) } }
    func look<Value: Sendable>(_ body: @Sendable (inout State) -> Value) -> Value {
        state.withLock { body(&$0) }
    }
    var attachedCount: Int { state.withLock { $0.attached.count } }
    var jobCount: Int { state.withLock { $0.jobs.count } }

    var machineRoom: MachineRoom { state.withLock { $0.room } }
    func holdRoom(_ holder: RoomHolder) { state.withLock { $0.holders.append(holder) } }
    func dropRoom(ofJob id: String) {
        state.withLock { state in state.holders.removeAll { $0.job == id } }
    }

    /// Breaks a job as the server would: its reports say so, and an event is sent.
    func breakJob(_ id: String, _ reason: String) {
        let handler = state.withLock { state in
            state.broken[id] = reason
            return state.handler
        }
        handler?(.jobBroken(id: id, reason: reason))
    }

    func attachDisk(_ configuration: DiskConfiguration) async throws(ServerFault) -> DiskID {
        if let onAttach = state.withLock({ $0.onAttach }) {
            await onAttach(configuration.exportName)
        }
        let result: Result<DiskID, ServerFault> = state.withLock { state in
            guard !state.unusablePaths.contains(configuration.path) else {
                return .failure(
                    .sourceUnusable(path: configuration.path, detail: "open: No such file"))
            }
            let holders = state.attached.values.filter { $0.path == configuration.path }
            guard holders.allSatisfy({ $0.readOnly && configuration.readOnly }) else {
                return .failure(.sourceLocked(path: configuration.path, detail: "held"))
            }
            let names = state.attached.values.map(\.exportName)
            guard !names.contains(configuration.exportName) else {
                return .failure(.exportNameTaken(name: configuration.exportName))
            }
            let id = DiskID(number: state.nextDisk)
            state.nextDisk += 1
            state.attached[id] = configuration
            if state.keepsChainsInDirectories,
                let directory = configuration.tracking?.directory,
                !FileManager.default.fileExists(atPath: directory)
            {
                // As a real engine: the chain lies in the directory.
                try? FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true)
                state.chains[directory] = nil
            }
            return .success(id)
        }
        return try result.get()
    }

    func detachDisk(_ disk: DiskID) async throws(ServerFault) {
        try await detach(disk, isForced: true)
    }

    func detachDiskIfUnused(_ disk: DiskID) async throws(ServerFault) {
        try await detach(disk, isForced: false)
    }

    private func detach(_ disk: DiskID, isForced: Bool) async throws(ServerFault) {
        let (name, onDetach) = state.withLock { ($0.attached[disk]?.exportName, $0.onDetach) }
        if let name, let onDetach { await onDetach(name) }
        let fault = state.withLock { state -> ServerFault? in
            guard let name = state.attached[disk]?.exportName else { return .unknownDisk }
            let clients = state.clients[name] ?? 0
            guard isForced || clients == 0 else {
                return .diskInUse(name: name, clients: clients)
            }
            if let planned = state.detachFaults.removeValue(forKey: name) {
                if planned.isGone { state.attached.removeValue(forKey: disk) }
                return planned.fault
            }
            state.clients[name] = nil
            state.attached.removeValue(forKey: disk)
            return nil
        }
        if let fault { throw fault }
    }

    func growDisk(
        _ disk: DiskID, sizeBytes: UInt64?
    ) async throws(ServerFault) -> UInt64 {
        let result = state.withLock { state -> Result<UInt64, ServerFault> in
            if let fault = state.growFault { return .failure(fault) }
            guard let path = state.attached[disk]?.path else { return .failure(.unknownDisk) }
            let bytes = sizeBytes ?? 4 << 20
            state.sizes[path] = bytes
            return .success(bytes)
        }
        return try result.get()
    }

    func diskStatus(_ disk: DiskID) async throws(ServerFault) -> DiskStatus {
        let status: DiskStatus? = state.withLock { state in
            guard let configuration = state.attached[disk] else { return nil }
            var status = DiskStatus(
                sizeBytes: state.sizes[configuration.path] ?? 1 << 20,
                clientCount: state.clients[configuration.exportName] ?? 0, dirtyBytes: 65536)
            guard let tracking = configuration.tracking else { return status }
            let invalid = state.invalid[tracking.directory] ?? []
            status.tracking = TrackingStatus(
                granularityBytes: tracking.granularityBytes,
                checkpoints: (state.chains[tracking.directory] ?? [])
                    .filter { !invalid.contains($0) },
                dirtyBytes: 4096, recoveredBytes: state.recoveredBytes,
                problem: state.trackingProblem)
            return status
        }
        guard let status else { throw .unknownDisk }
        return status
    }

    func createCheckpoint(_ configuration: CheckpointConfiguration) async throws(ServerFault) {
        let fault = state.withLock { state -> ServerFault? in
            if let fault = state.createFault { return fault }
            return Self.create(configuration, &state)
        }
        if let fault { throw fault }
    }

    func deleteCheckpoint(_ name: String, disk: DiskID) async throws(ServerFault) {
        let fault = state.withLock { state -> ServerFault? in
            if let fault = state.deleteFault { return fault }
            guard let directory = state.attached[disk]?.tracking?.directory else {
                return .unknownDisk
            }
            state.chains[directory]?.removeAll { $0 == name }
            return nil
        }
        if let fault { throw fault }
    }

    func dirtyReport(
        since checkpoint: String, disk: DiskID, extentLimit: Int
    ) async throws(ServerFault) -> DirtyReport {
        let isHeld = state.withLock { state in
            guard let directory = state.attached[disk]?.tracking?.directory else { return false }
            return state.chains[directory]?.contains(checkpoint) == true
                && state.invalid[directory]?.contains(checkpoint) != true
        }
        guard isHeld else {
            throw .checkpointUnusable(checkpoint: checkpoint, target: "", detail: "not held")
        }
        return DirtyReport(
            dirtyBytes: 131_072, extents: [DirtyExtent(offset: 65_536, length: 65_536)])
    }

    // All disks or none, as the engine does it.
    private static func create(
        _ configuration: CheckpointConfiguration, _ state: inout State
    ) -> ServerFault? {
        var directories: [String] = []
        for disk in configuration.disks {
            guard let attached = state.attached[disk] else { return .unknownDisk }
            guard let directory = attached.tracking?.directory else {
                return .notTracked(export: attached.exportName, detail: "no directory")
            }
            guard state.chains[directory]?.contains(configuration.name) != true else {
                return .checkpointExists(
                    checkpoint: configuration.name, export: attached.exportName)
            }
            directories.append(directory)
        }
        for directory in directories {
            state.chains[directory, default: []].append(configuration.name)
        }
        return nil
    }

    // The first disk whose chain does not hold the checkpoint it is to start from.
    private static func unusableBase(
        _ configuration: JobConfiguration, _ state: State
    ) -> ServerFault? {
        for disk in configuration.disks {
            guard let base = disk.incremental?.checkpoint else { continue }
            let directory = state.attached[disk.disk]?.tracking?.directory ?? ""
            if state.chains[directory]?.contains(base) != true {
                return .checkpointUnusable(
                    checkpoint: base, target: disk.target, detail: "broken at the last moment")
            }
        }
        return nil
    }

    var lastCrash: CrashReport? { look { $0.crash } }

    func expectJobs(_ jobs: [JobResumption]) async { state.withLock { $0.expected = jobs } }

    func forgetJob(id: String) async {
        state.withLock { state in
            state.expected.removeAll { $0.configuration.id == id }
            state.jobs[id] = nil
        }
    }

    func resumeJob(id: String) async throws(ServerFault) -> JobStarted {
        if let fault = state.withLock({ $0.resumeFault }) { throw fault }
        let found = state.withLock { state -> JobConfiguration? in
            let job = state.expected.first { $0.configuration.id == id }
            state.jobs[id] = job?.configuration
            return job?.configuration
        }
        guard let found else { throw .unknownJob(id: id) }
        return JobStarted(endpoint: found.endpoint, holdNanoseconds: 0, diskSizes: [:])
    }

    func beginJob(
        _ configuration: JobConfiguration, beforeInstant: @escaping @Sendable () async -> Bool
    ) async throws(ServerFault) -> JobStarted {
        let (fault, onBegin) = state.withLock { ($0.beginFault, $0.onBegin) }
        onBegin?(configuration)
        guard await beforeInstant() else { throw .givenUp }
        if let fault { throw fault }
        look { $0.onInstant }?()
        let refusal = state.withLock { state -> ServerFault? in
            if let fault = Self.unusableBase(configuration, state) { return fault }
            if let checkpoint = configuration.checkpoint,
                let fault = Self.create(checkpoint, &state)
            {
                return fault
            }
            state.jobs[configuration.id] = configuration
            return nil
        }
        if let refusal { throw refusal }
        var endpoint = configuration.endpoint
        if case .tcp(let host, nil) = endpoint { endpoint = .tcp(host: host, port: 10809) }
        let sizes = configuration.disks.map { ($0.target, UInt64(1 << 20)) }
        var started = JobStarted(
            endpoint: endpoint, holdNanoseconds: 1000,
            diskSizes: Dictionary(uniqueKeysWithValues: sizes))
        started.notLasting = state.withLock { $0.notLasting }
        started.memory = look { $0.memory }
        return started
    }

    func jobReport(id: String) async throws(ServerFault) -> JobReport {
        let report = state.withLock { state in
            state.reportsAsked += 1
            return Self.report(state, id)
        }
        guard let report else {
            throw .unknownJob(id: id)
        }
        return report
    }

    func endJob(id: String) async throws(ServerFault) -> JobReport {
        let wait = state.withLock { $0.endMilliseconds }
        if wait > 0 { try? await Task.sleep(for: .milliseconds(wait)) }
        if let fault = state.withLock({ $0.endFault }) { throw fault }
        let report = state.withLock { state in
            let report = Self.report(state, id)
            state.jobs.removeValue(forKey: id)
            return report
        }
        guard let report else { throw .unknownJob(id: id) }
        return report
    }

    func listenLive(
        _ endpoint: ListenEndpoint, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint { endpoint }

    func reloadSecurity() async throws(ServerFault) {}

    func adoptLive(
        descriptor: Int32, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint {
        .tcp(host: "127.0.0.1", port: 10809)
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
                preservedClusters: 2, zeroClusters: 1, bytesRead: 4096,
                bytesToRead: 16384)
        }
        return JobReport(
            disks: disks, clientCount: state.jobClients, holdNanoseconds: 1000,
            brokenReason: state.broken[id])
    }
}
