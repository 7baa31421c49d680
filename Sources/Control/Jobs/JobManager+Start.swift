import Foundation

/// A domain that the server is given when it starts.
package struct StartDomain: Sendable {
    package var definition: DomainDefinition
    /// Whether it is kept in the state directory.
    package var isStored: Bool
    package init(definition: DomainDefinition, isStored: Bool) {
        self.definition = definition
        self.isStored = isStored
    }
}

extension JobManager {
    /// Takes up what the state directory holds and the domains given at the start.
    ///
    /// Reports the jobs that the last server left behind and removes their scratch and sockets.
    /// Nothing here fails the start: what went wrong is returned, one line each. A domain given at
    /// the start stands in place of a kept one of the same name.
    package func restore(_ given: [StartDomain] = []) async -> [String] {
        var warnings: [String] = []
        let names = Set(given.map(\.definition.name))
        let discarding = Set(
            state?.jobs().records.filter { $0.discardsCheckpoint == true }.map(\.id) ?? [])
        if let state {
            let kept = state.domains()
            warnings += kept.damaged.map { "state file '\($0.path)' is left out: \($0.detail)" }
            for record in kept.records where !names.contains(record.name) {
                warnings += await restore(record, discarding)
            }
            warnings += restoreJobs(state)
        }
        for start in given {
            if start.isStored, let state { warnings += keep(start.definition, state) }
            warnings += await adopt(
                start.definition, isStored: start.isStored, discarding: discarding)
        }
        return warnings
    }

    /// Keeps a domain given at the start, in place of others of its name.
    private func keep(_ definition: DomainDefinition, _ state: StateDirectory) -> [String] {
        do throws(ControlError) {
            for other in state.domains().records
            where other.name == definition.name && other.uuid != definition.uuid {
                try state.removeDomain(other.name, uuid: other.uuid)
            }
            try state.save(
                StoredDomain(
                    name: definition.name, uuid: definition.uuid, xml: definition.xml))
            return []
        } catch {
            return [error.message]
        }
    }

    private func restore(
        _ record: StoredDomain, _ discarding: Set<String>
    ) async -> [String] {
        do throws(ControlError) {
            let (definition, remarks) = try DomainDefinition.kept(record.xml)
            guard definition.name == record.name,
                definition.uuid == record.uuid ?? definition.uuid
            else {
                return ["domain '\(record.name)' is left out: its file holds another domain"]
            }
            var warnings = remarks.map { "domain '\(record.name)': \($0)" }
            warnings += renew(record, definition)
            let (granularity, problem) = Self.granularity(of: record)
            return warnings + problem
                + (await adopt(
                    definition, isStored: true, granularityBytes: granularity,
                    discarding: discarding))
        } catch {
            return ["domain '\(record.name)' is left out: \(error.message)"]
        }
    }

    /// A record of an earlier version is kept in the present form from now on.
    private func renew(_ record: StoredDomain, _ definition: DomainDefinition) -> [String] {
        guard record.uuid == nil else { return [] }
        var record = record
        record.uuid = definition.uuid
        do throws(ControlError) {
            try state?.save(record)
            return []
        } catch {
            return [error.message]
        }
    }

    /// A file may say anything; the disks are served all the same.
    private static func granularity(of record: StoredDomain) -> (UInt32?, [String]) {
        guard let bytes = record.granularityBytes else { return (nil, []) }
        do throws(ControlError) {
            return (try TrackingGranularity.checked(UInt64(bytes)), [])
        } catch {
            return (nil, ["domain '\(record.name)': \(error.message)"])
        }
    }

    /// Serves a domain at the start: a disk that cannot be opened costs only itself.
    ///
    /// Returns a line for each such disk.
    func adopt(
        _ definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32? = nil,
        discarding jobIDs: Set<String> = []
    ) async -> [String] {
        if let refusal = refusal(of: definition) {
            return ["domain '\(definition.name)' is left out: \(refusal.message)"]
        }
        var domain = ManagedDomain(
            definition: definition, isStored: isStored,
            granularityBytes: granularityBytes ?? settings.granularityBytes)
        var warnings = loadCheckpoints(into: &domain, discarding: jobIDs)
        warnings += dropStrayTracking(of: definition)
        for disk in definition.disks {
            domain.attachments[disk.target] =
                if let unserved = disk.unserved {
                    .failed(reason: unserved.reason)
                } else if disk.path == nil {
                    .noMedia
                } else {
                    .failed(reason: "not opened yet")
                }
        }
        domains[definition.name] = domain
        await retryFailedDisks(of: definition.name)
        return warnings
            + definition.disks.compactMap { disk in
                guard case .failed(let reason) = domains[definition.name]?.attachments[disk.target]
                else { return nil }
                return "disk '\(disk.target)' of domain '\(definition.name)': \(reason)"
            }
    }

    /// Checkpoints and tracking are kept by uuid: two domains must never share one.
    private func refusal(of definition: DomainDefinition) -> ControlError? {
        if domains[definition.name] != nil { return .domainExists(definition.name) }
        let other = domains.values.first { $0.definition.uuid == definition.uuid }
        return other.map { .uuidTaken(definition.uuid, by: $0.definition.name) }
    }

    private func restoreJobs(_ state: StateDirectory) -> [String] {
        let kept = state.jobs()
        var warnings = kept.damaged.map { "state file '\($0.path)' is left out: \($0.detail)" }
        for record in kept.records.sorted(by: { $0.begun < $1.begun }) {
            warnings += clean(record, state)
            var info = JobInfo(jobType: record.cancelledReason == nil ? "Failed" : "Cancelled")
            info.operation = "Backup"
            info.id = record.id
            info.domain = record.domain
            info.state = "ended"
            info.begun = record.begun
            info.timeElapsed = record.elapsedMilliseconds
            info.tempTotal = record.tempTotalBytes
            info.success = false
            info.errorMessage =
                record.cancelledReason ?? "the server stopped while the job ran"
            forgetFinished(record.domain)
            finished[record.domain] = FinishedJob(info: info, isStored: true)
            events.append(
                ControlEvent(
                    .jobEnd, domain: record.domain, id: record.id,
                    message: "\(info.jobType): \(info.errorMessage ?? "")"))
        }
        return warnings
    }

    // Only what this very job made is removed, and the record forgets it, so that a later file of
    // the same name is safe.
    private func clean(_ record: StoredJob, _ state: StateDirectory) -> [String] {
        var warnings: [String] = []
        var record = record
        for scratch in record.scratch {
            guard let found = SystemCalls.identity(of: scratch.path),
                found.kind == .regular,
                scratch.identity == nil || scratch.identity == found.identity
            else { continue }
            do {
                try SystemCalls.unlink(scratch.path)
            } catch {
                warnings.append("scratch '\(scratch.path)' is left behind: \(error.text)")
            }
        }
        if let path = record.socketPath, let found = SystemCalls.identity(of: path),
            found.kind == .socket, !SystemCalls.isListening(unixPath: path)
        {
            do {
                try SystemCalls.unlink(path)
            } catch {
                warnings.append("socket '\(path)' is left behind: \(error.text)")
            }
        }
        record.scratch = []
        record.socketPath = nil
        do throws(ControlError) {
            try state.save(record)
        } catch {
            warnings.append(error.message)
        }
        return warnings
    }
}
