import LibvirtProtocol
import ServerInterface

/// Tells clients of the libvirt door what happens, each what it has asked for.
///
/// One reader of the event log for all of them: what a client costs is its own backlog.
actor LibvirtEvents {
    /// What was last said of a domain: an event is what differs.
    private struct Known {
        var wire: WireDomain
        var isRunning: Bool
    }

    private let door: LibvirtDoor
    private var known: [String: Known] = [:]
    private var lastSequence: UInt64?

    init(door: LibvirtDoor) { self.door = door }

    private var manager: JobManager { door.context.manager }

    /// Tells what happens until the log is closed or the task is cancelled.
    func run() async {
        await compare(tells: false)
        while !Task.isCancelled {
            // Others may follow already, as many as can: then a place is waited for.
            if let log = try? manager.events.follow() { return await follow(log) }
            try? await Task.sleep(for: .seconds(1))
        }
    }

    private func follow(_ log: AsyncStream<ControlEvent>) async {
        // What happened before the log was followed.
        await compare(tells: true)
        for await event in log {
            // A gap means that something was missed: then the current state tells what changed.
            if let last = lastSequence, event.sequence > last + 1 { await compare(tells: true) }
            lastSequence = event.sequence
            await handle(event)
        }
    }

    /// Hands an event to those who have asked for it.
    func tell(_ event: LibvirtEvent) {
        let uuid = UUIDText.text(event.domain.uuid)
        for session in door.sessions {
            let asked = session.registrations.filter {
                ($0.uuid == nil || $0.uuid == uuid)
                    && event.message(kind: $0.event, callback: $0.number) != nil
            }
            if !asked.isEmpty { session.tell(event, asked) }
        }
    }

    private func handle(_ event: ControlEvent) async {
        guard let name = event.domain else { return }
        switch event.event {
        case .domainDefined, .domainChanged, .domainUndefined:
            await look(at: name, isChanged: event.event == .domainChanged)
        case .clientConnect, .clientDisconnect:
            if event.id == nil { await look(at: name) }
        case .jobEnd:
            if let id = event.id { await tellEnd(of: id, domain: name) }
        default: break
        }
    }

    /// Compares all domains with the last time; `tells` says whether differences are events.
    private func compare(tells: Bool) async {
        let domains = await door.context.domains()
        guard tells else {
            for domain in domains {
                known[domain.name] = Known(wire: domain.wire, isRunning: domain.isRunning)
            }
            return
        }
        for name in Set(domains.map(\.name)).union(known.keys).sorted() { await look(at: name) }
    }

    /// Tells what differs from what was last known of a domain.
    private func look(at name: String, isChanged: Bool = false) async {
        let domain = await door.context.domain(name: name)
        let before = known[name]
        known[name] = domain.map { Known(wire: $0.wire, isRunning: $0.isRunning) }
        let isOther = domain.map { $0.wire.uuid != before?.wire.uuid } ?? true
        if let before, isOther {
            var wire = before.wire
            if before.isRunning { tell(.lifecycle(wire, .stopped)) }
            wire.id = -1
            tell(.lifecycle(wire, .undefined))
        }
        guard let domain else { return }
        if isOther {
            tell(.lifecycle(domain.wire, .defined))
        } else if isChanged {
            tell(.lifecycle(domain.wire, .changed))
        }
        switch (isOther ? false : before?.isRunning ?? false, domain.isRunning) {
        case (false, true): tell(.lifecycle(domain.wire, .started))
        case (true, false): tell(.lifecycle(before?.wire ?? domain.wire, .stopped))
        case (true, true), (false, false): break
        }
    }

    /// The end of a job, in libvirt's order: the job, then each of its disks.
    private func tellEnd(of id: String, domain name: String) async {
        guard let domain = await door.context.domain(name: name),
            let info = try? await manager.endedJobs(domain: name).last(where: { $0.id == id })
        else { return }
        tell(.jobCompleted(domain.wire, info.parameters))
        let status: LibvirtEvent.BlockJobStatus =
            switch (info.outcome, info.jobType) {
            case ("completed", _): .completed
            case ("failed", "Failed"): .failed
            default: .canceled
            }
        for disk in info.disks ?? [] {
            let path = await manager.shownPath(of: disk.disk, in: domain.definition)
            tell(
                .blockJob(domain.wire, target: disk.disk, path: path ?? disk.disk, status))
        }
    }
}
