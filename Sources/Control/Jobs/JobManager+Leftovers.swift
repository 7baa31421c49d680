import BoundedCalls
import ServerInterface

/// Files that jobs make at paths that users named: examined and removed away from the actor,
/// because a path may hang.
extension JobManager {
    /// How long the start waits for a path that it examines, in milliseconds.
    static let startLookMilliseconds: Int32 = 5_000

    /// Scratch that a job is going to make: a file that is there already is not its own.
    func scratchToMake(by plan: BackupPlan) async throws(ControlError) -> [StoredJob.Scratch] {
        let paths = plan.disks.compactMap { disk -> String? in
            guard disk.participates, let scratch = disk.scratch, scratch.kind == .file,
                !scratch.reuseExternal
            else { return nil }
            return scratch.path
        }
        var missing: [StoredJob.Scratch] = []
        for (path, look) in await looks(at: paths, settings.storageMilliseconds) {
            switch look {
            case .failure(let fault): throw controlError(from: fault)
            case .success(nil): missing.append(StoredJob.Scratch(path: path))
            case .success: break
            }
        }
        return missing
    }

    /// Examines all paths at once; the answers are in their order.
    func looks(
        at paths: [String], _ milliseconds: Int32
    ) async -> [(String, Result<SystemCalls.FileIdentity?, ServerFault>)] {
        let storage = storage
        return await withTaskGroup(
            of: (Int, Result<SystemCalls.FileIdentity?, ServerFault>).self
        ) { group in
            for (index, path) in paths.enumerated() {
                group.addTask {
                    let look = await storage.run(
                        at: .of(path), what: "'\(path)'", .begin(milliseconds: milliseconds)
                    ) { .success(SystemCalls.identity(of: path)?.identity) }
                    return (index, look)
                }
            }
            var found = paths.map { path in
                (path, Result<SystemCalls.FileIdentity?, ServerFault>.success(nil))
            }
            for await (index, look) in group { found[index].1 = look }
            return found
        }
    }

    // MARK: What the last server left behind

    /// Removes scratch and sockets of jobs that were cut off, all at once; a storage that does not
    /// answer now is left to the thread that waits for it, and to the next start.
    ///
    /// Returns the records, in their order, with what stays, and a line for each file that does.
    func clean(
        _ records: [StoredJob]
    ) async -> [(record: StoredJob, warnings: [String])] {
        await withTaskGroup(of: (Int, StoredJob, [String]).self) { group in
            for (index, record) in records.enumerated() {
                group.addTask { [storage] in
                    let (left, problems) = await Self.clean(record, storage)
                    return (index, left, problems)
                }
            }
            var cleaned = records.map { (record: $0, warnings: [String]()) }
            for await (index, record, problems) in group { cleaned[index] = (record, problems) }
            return cleaned
        }
    }

    // Only what this very job made is removed, and the record forgets it, so that a later file of
    // the same name is safe; it keeps what could not be examined, if it can be told from another.
    private static func clean(
        _ record: StoredJob, _ storage: StorageCalls
    ) async -> (StoredJob, [String]) {
        var record = record
        var warnings: [String] = []
        var kept: [StoredJob.Scratch] = []
        for scratch in record.scratch {
            let removal = await storage.run(
                at: .of(scratch.path), what: "'\(scratch.path)'",
                .end(milliseconds: startLookMilliseconds)
            ) { () -> Result<String?, ServerFault> in .success(remove(scratch)) }
            switch removal {
            case .success(nil): break
            case .success(let problem?):
                kept.append(scratch)
                warnings.append("scratch '\(scratch.path)' is left behind: \(problem)")
            case .failure:
                if scratch.identity != nil { kept.append(scratch) }
                warnings.append(
                    "scratch '\(scratch.path)' is left behind for now: its storage does not answer")
            }
        }
        if let path = record.socketPath {
            _ = await storage.run(
                at: .of(path), what: "'\(path)'", .end(milliseconds: startLookMilliseconds)
            ) { () -> Result<Bool, ServerFault> in
                removeSocket(path)
                return .success(true)
            }
        }
        var unmarked: [StoredJob.Target] = []
        for target in record.targets ?? [] {
            let answer = await storage.run(
                at: .of(target.path), what: "'\(target.path)'",
                .end(milliseconds: startLookMilliseconds)
            ) { () -> Result<TargetMark.Outcome, ServerFault> in
                .success(PushFiles.spoil(target))
            }
            switch answer {
            case .success(let outcome):
                if case .failed = outcome { unmarked.append(target) }
                if let problem = outcome.problem { warnings.append(problem) }
            case .failure:
                unmarked.append(target)
                warnings.append(
                    "target '\(target.path)' is not marked as failed: its storage does not answer")
            }
        }
        record.targets = unmarked.isEmpty ? nil : unmarked
        record.scratch = kept
        record.socketPath = nil
        return (record, warnings)
    }

    private static func remove(_ scratch: StoredJob.Scratch) -> String? {
        guard let found = SystemCalls.identity(of: scratch.path), found.kind == .regular,
            scratch.identity == nil || scratch.identity == found.identity
        else { return nil }
        do {
            try SystemCalls.unlink(scratch.path)
            return nil
        } catch {
            return error.text
        }
    }

    private static func removeSocket(_ path: String) {
        guard let found = SystemCalls.identity(of: path), found.kind == .socket,
            !SystemCalls.isListening(unixPath: path)
        else { return }
        _ = try? SystemCalls.unlink(path)
    }
}
