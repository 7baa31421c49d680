import Foundation
import ServerInterface

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
    /// Reports the jobs that the last server left behind, once, takes back the checkpoints made
    /// with them, and removes their scratch and sockets. Nothing here fails the start: what went
    /// wrong is returned, one line each. A domain given at the start replaces a kept one of the
    /// same name.
    ///
    /// `serving` is run before the first disk is opened: a machine that comes waits for its own
    /// disk, and for nothing else.
    package func restore(
        _ given: [StartDomain] = [], serving: @Sendable () async -> Void = {}
    ) async -> [String] {
        var warnings: [String] = []
        warnings += noteLastCrash()
        let names = Set(given.map(\.definition.name))
        // Before any domain: what these jobs made must not be taken up with it.
        let found = state.map(loadJobs)
        let cutOff = found?.cutOff ?? []
        warnings += found?.warnings ?? []
        let discarding = Set(cutOff.map(\.id))
        if let state {
            let kept = state.domains()
            warnings += note(kept.damaged)
            for record in kept.records where !names.contains(record.name) {
                warnings += restore(record, discarding)
            }
        }
        for start in given {
            if start.isStored, let state { warnings += keep(start.definition, state) }
            warnings += adopt(
                start.definition, isStored: start.isStored, discarding: discarding)
        }
        await expect(found?.left ?? [])
        engine.expectDisks(exportsToOpen)
        await serving()
        let opening = beginOpening()
        let resuming = beginResuming(found?.left ?? [])
        warnings += await finishOpening(opening)
        // Those disks are not there: no machine waits for this.
        for domain in domains.values { warnings += dropStrayTracking(of: domain.definition) }
        await finishResuming(resuming)
        if let state {
            for cleaned in await clean(cutOff) { warnings += await report(cleaned, state) }
            warnings += await setAside(found?.damaged ?? [], state)
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
    ) -> [String] {
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
                + adopt(
                    definition, isStored: true, granularityBytes: granularity,
                    discarding: discarding)
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

    /// Takes up a domain at the start; its disks are opened by `openAll`.
    ///
    /// Returns a line for each thing that is wrong with it.
    func adopt(
        _ definition: DomainDefinition, isStored: Bool, granularityBytes: UInt32? = nil,
        discarding jobIDs: Set<String> = []
    ) -> [String] {
        if let refusal = refusal(of: definition) {
            return ["domain '\(definition.name)' is left out: \(refusal.message)"]
        }
        var domain = ManagedDomain(
            definition: definition, isStored: isStored,
            granularityBytes: granularityBytes ?? settings.granularityBytes)
        var warnings = loadCheckpoints(into: &domain, discarding: jobIDs)
        warnings += loadMoves(into: &domain)
        for disk in definition.disks {
            domain.attachments[disk.target] =
                if let unserved = disk.unserved {
                    .failed(reason: unserved.reason)
                } else if disk.path == nil {
                    .noMedia
                } else {
                    .failed(
                        reason: reasonAside(disk, of: definition) ?? domain.reasonAway(disk)
                            ?? "not opened yet")
                }
        }
        domains[definition.name] = domain
        return warnings
    }

    /// Checkpoints and tracking are kept by uuid: two domains must never share one.
    private func refusal(of definition: DomainDefinition) -> ControlError? {
        if domains[definition.name] != nil { return .domainExists(definition.name) }
        let other = domains.values.first { $0.definition.uuid == definition.uuid }
        return other.map { .uuidTaken(definition.uuid, by: $0.definition.name) }
    }

    // The records of jobs that did not end well, and the history of those that have ended.
    private func loadJobs(
        _ state: StateDirectory
    ) -> LoadedJobs {
        var warnings = loadHistory(state)
        let kept = state.jobs()
        let (left, cutOff) = sorted(kept.records, state)
        for record in cutOff {
            unsettled[record.id] = Unsettled(domain: record.domain, checkpoint: record.checkpoint)
        }
        warnings += note(kept.damaged)
        for file in kept.damaged {
            // Its name is the job's id; that there is a record at all says how the job ended.
            unsettled[file.name] = Unsettled(domain: "", isForeign: file.isNewer)
        }
        return LoadedJobs(
            left: left.sorted { $0.begun < $1.begun },
            cutOff: cutOff.sorted { $0.begun < $1.begun }, damaged: kept.damaged,
            warnings: warnings)
    }

    /// Jobs as the state directory has them.
    private struct LoadedJobs {
        /// Those that may go on.
        let left: [StoredJob]
        let cutOff: [StoredJob]
        let damaged: [StateDirectory.DamagedFile]
        let warnings: [String]
    }

    // A damaged record has done its duty once the checkpoint of its job is gone. While a domain is
    // left out nobody knows whether it was one of that domain's.
    private func setAside(
        _ files: [StateDirectory.DamagedFile], _ state: StateDirectory
    ) async -> [String] {
        let ours = files.filter { !$0.isNewer && $0.path.hasSuffix(".state") }
        guard !ours.isEmpty, state.domains().damaged.isEmpty else { return [] }
        var aside: [String] = []
        do throws(ControlError) {
            for file in ours {
                if unsettled[file.name]?.checkpoint != nil {
                    // Settled, the record itself is gone.
                    await settle(file.name)
                } else {
                    try state.setAside(file)
                    aside.append(file.name)
                }
            }
            if !aside.isEmpty { try state.syncJobs() }
            for name in aside { unsettled[name] = nil }
            return []
        } catch {
            return [error.message]
        }
    }

    // A job is reported when it is met for the first time, and its record goes when nothing of it
    // is left.
    private func report(
        _ cleaned: (record: StoredJob, warnings: [String]), _ state: StateDirectory
    ) async -> [String] {
        var (record, warnings) = cleaned
        let known = history[record.domain]?.jobs.first { $0.id == record.id }
        if record.ended == nil, known == nil || known?.success == true {
            let info = JobInfo(cutOff: record)
            record.ended = info
            keepInHistory(info)
            endedCounts[info.outcome ?? "failed", default: 0] += 1
            events.append(
                ControlEvent(
                    .jobEnd, domain: record.domain, id: record.id,
                    message: "\(info.jobType): \(info.errorMessage ?? "")"))
        } else {
            record.ended = record.ended ?? known
        }
        do throws(ControlError) {
            if record.scratch.isEmpty, record.targets == nil, domains[record.domain] != nil {
                await settle(record.id)
                if unsettled[record.id] == nil { return warnings }
            }
            if !record.scratch.isEmpty || record.targets != nil {
                unsettled[record.id]?.keepsFiles = true
            }
            try state.save(record)
        } catch {
            warnings.append(error.message)
        }
        return warnings
    }

}

extension JobInfo {
    /// What there is to say of a job that its server did not live to end.
    init(cutOff record: StoredJob) {
        self.init(jobType: record.cancelledReason == nil ? "Failed" : "Cancelled")
        operation = "Backup"
        id = record.id
        domain = record.domain
        state = "ended"
        begun = record.begun
        ended = Date()
        timeElapsed = record.elapsedMilliseconds
        tempTotal = record.tempTotalBytes
        success = false
        outcome = record.cancelledReason == nil ? "failed" : "cancelled"
        errorMessage =
            record.cancelledReason ?? record.brokenReason
            ?? "the server stopped while the job ran"
            + (record.notLasting.map { ", and the job with it, as \($0)" } ?? "")
        checkpoint = record.checkpoint
        checkpointKept = record.checkpoint == nil ? nil : false
    }
}
