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
                warnings += restore(record, discarding)
            }
            warnings += await restoreJobs(state)
        }
        for start in given {
            do throws(ControlError) {
                if start.isStored {
                    try state?.save(
                        StoredDomain(name: start.definition.name, xml: start.definition.xml))
                }
            } catch {
                warnings.append(error.message)
            }
            warnings += adopt(
                start.definition, isStored: start.isStored, discarding: discarding)
        }
        return warnings + (await openAll())
    }

    private func restore(
        _ record: StoredDomain, _ discarding: Set<String>
    ) -> [String] {
        do throws(ControlError) {
            let definition = try DomainDefinition.parse(record.xml)
            guard definition.name == record.name else {
                return ["domain '\(record.name)' is left out: its file holds another domain"]
            }
            return adopt(
                definition, isStored: true, granularityBytes: record.granularityBytes,
                discarding: discarding)
        } catch {
            return ["domain '\(record.name)' is left out: \(error.message)"]
        }
    }

    private func restoreJobs(_ state: StateDirectory) async -> [String] {
        let kept = state.jobs()
        var warnings = kept.damaged.map { "state file '\($0.path)' is left out: \($0.detail)" }
        warnings += await clean(kept.records, state)
        for record in kept.records.sorted(by: { $0.begun < $1.begun }) {
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
}
