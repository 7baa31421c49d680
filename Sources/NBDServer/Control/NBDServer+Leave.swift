import BoundedCalls
import Disk
import NBDProtocol
import ScratchFiles
package import ServerInterface
import Synchronization
import SystemLayer
import TrackingFiles

/// The server leaves everything to the next one, which goes on as after a kill, only that no
/// request was lost.
///
/// Every step can be taken back until the rings let go of their disks, and they do so when nothing
/// at all is at work: unlike a kill's, this process lives on, and what it still had under way could
/// reach a disk that the next server has by then.
extension NBDServer {
    package func leave() async throws(ServerFault) { _ = try await leaveDisks() }

    /// The same; whether nobody in this process has a disk or scratch open any more.
    ///
    /// The next server would wait for whoever has.
    func leaveDisks() async throws(ServerFault) -> Bool {
        try checkMayLeave()
        state.withLock { $0.isStopping = true }
        try await becomeQuiet()
        return await letGo()
    }

    // A function of its own: the listener of a guest with vhost-user knows its disk, and nobody may
    // know one when the disks are let go of.
    private func becomeQuiet() async throws(ServerFault) {
        var stopped: [RingListener] = []
        if let obstacle = await quiet(&stopped) {
            stay(stopped)
            throw .cannotLeave(detail: obstacle)
        }
    }

    private var allRings: Range<Int> { 0..<shared.mailboxes.count }

    /// What the next server could not know is a reason to stay.
    private func checkMayLeave() throws(ServerFault) {
        let (disks, jobs) = state.withLock { (Array($0.disks.values), Array($0.jobs.values)) }
        for job in jobs {
            for export in job.exports where export.brokenReason == nil && !export.isLasting {
                let reason =
                    export.boundToProcess
                    ?? "its ledger is not kept in memory that does (/dev/shm may be full, or"
                    + " missing)"
                throw .cannotLeave(
                    detail: "job '\(job.id)' cannot outlive this server: \(reason); end the job"
                        + " first")
            }
        }
        for disk in disks where !disk.source.isReadOnly && disk.source.hasLostWrites {
            throw Self.lostWrites("disk '\(disk.description.name)'")
        }
        for disk in disks where hasUnsaidDoubt(disk.disk) {
            throw .cannotLeave(
                detail:
                    "changes of disk '\(disk.description.name)' are not recorded, and that could"
                    + " not be written down anywhere: the next server would believe its checkpoints"
            )
        }
    }

    /// Only this process knows that the disk's checkpoints are not to be believed.
    private func hasUnsaidDoubt(_ disk: DiskID) -> Bool {
        let (tracking, doubt) = state.withLock { ($0.tracking[disk], $0.trackingCare.doubts[disk]) }
        guard case .unavailable = tracking, let doubt else { return false }
        return doubt.lastOutcome?.isSaid != true
    }

    private static func lostWrites(_ what: String) -> ServerFault {
        .cannotLeave(
            detail:
                "\(what) has lost writes or failed a flush, which the next server would not know:"
                + " attach it anew, or stop this server and start the other")
    }

    // MARK: Until nothing is at work

    /// Why it does not become quiet; nil when it has.
    private func quiet(_ stopped: inout [RingListener]) async -> String? {
        guard await callsEnd() else { return "a call is at work that does not end" }
        guard
            await AllRingsCall(
                allRings, milliseconds: Limits.closingMilliseconds, shared, { .mayLeave($0) }
            ).runLater()
        else { return controlDetail(Self.lostWrites("a disk")) }
        // Machines are served while backup clients are sent away.
        let (guests, backups) = state.withLock { state in
            (
                state.liveListeners + state.vhostListeners.values,
                state.jobs.values.map(\.listener)
            )
        }
        let ringsForBackups = shared.layout.rings(for: .backups)
        let ringsForGuests = shared.layout.rings(for: .guests)
        guard await stopAccepting(backups, &stopped), await depart(ringsForBackups) else {
            return "clients of a backup have requests that do not end"
        }
        guard await stopAccepting(guests, &stopped), await depart(ringsForGuests) else {
            return "machines have requests that their disks do not answer"
        }
        let end = MonotonicClock.now() + UInt64(Limits.hushMilliseconds) * 1_000_000
        while MonotonicClock.now() < end {
            let isQuiet = await AllRingsCall(
                allRings, milliseconds: Limits.hushMilliseconds, shared, { .hush($0) }
            ).runLater()
            if isQuiet { return await flushUpstreams() }
            try? await Task.sleep(for: .milliseconds(2))
        }
        return "writes of tracking or scratch are under way that do not end"
    }

    /// What an upstream has answered and not flushed is known to this process alone.
    private func flushUpstreams() async -> String? {
        let exports = state.withLock { Array($0.disks.values) }
        for export in exports where export.source.remote != nil && !export.source.isReadOnly {
            let source = export.source
            let flushed = await storage.run(
                at: .of(source.path), what: "'\(source.path)'",
                .end(milliseconds: Limits.hushMilliseconds)
            ) { () -> Result<Bool, ServerFault> in
                .success((try? source.makeDurable()) != nil)
            }
            guard case .success(true) = flushed else {
                return "the upstream of disk '\(export.description.name)' does not flush"
            }
        }
        return nil
    }

    private func controlDetail(_ fault: ServerFault) -> String {
        if case .cannotLeave(let detail) = fault { detail } else { "" }
    }

    /// Calls that were past their checks when the leaving began; disks that wait for their storage
    /// do not count.
    private func callsEnd() async -> Bool {
        let deadline = MonotonicClock.now() + UInt64(Limits.stopCallsMilliseconds) * 1_000_000
        while MonotonicClock.now() < deadline {
            let isDone = state.withLock { state in
                state.beginning.isEmpty && state.ending.isEmpty && state.detaching.isEmpty
                    && state.growing.isEmpty && state.attaching.values.allSatisfy(\.yields)
                    && state.trackingCare.closing.isEmpty
            }
            if isDone { return true }
            try? await Task.sleep(for: .milliseconds(5))
        }
        return false
    }

    private func stopAccepting(
        _ listeners: [RingListener], _ stopped: inout [RingListener]
    ) async -> Bool {
        for listener in listeners {
            stopped.append(listener)
            let removed = await RingQuestion(acceptor(of: listener)) {
                .removeListener(number: listener.number, $0)
            }.runLater()
            guard case .done = removed else { return false }
        }
        return true
    }

    private func depart(_ rings: Range<Int>) async -> Bool {
        await AllRingsCall(
            rings, milliseconds: Limits.departureMilliseconds, shared, { .depart($0) }
        ).runLater()
    }

    /// Goes on as before.
    private func stay(_ stopped: [RingListener]) {
        state.withLock { $0.isStopping = false }
        for mailbox in shared.mailboxes { mailbox.post(.stay) }
        for listener in stopped {
            acceptor(of: listener).post(.addListener(listener))
        }
    }

    // MARK: Letting go

    private func letGo() async -> Bool {
        // First: what is cut short by the rest is no reason to give a job up.
        state.withLock { $0.hasLeft = true }
        storage.stop()
        shared.setEventHandler { _ in }
        let held = await giveUp()
        await stopRings()
        return await released(held)
    }

    /// Takes everything from the rings and forgets it; returns what is to be closed by that.
    private func giveUp() async -> [Held] {
        let (exports, listeners) = state.withLock { state in
            state.hasLeft = true
            return (
                state.jobs.values.flatMap(\.exports)
                    + state.expected.values.flatMap { Array($0.exports.values) },
                state.liveListeners + state.vhostListeners.values
                    + state.jobs.values.map(\.listener)
            )
        }
        shared.watch.remove(exports.map(\.id))
        // Everything that was asked has been answered, syncs too.
        for export in exports { export.source.doubt = nil }
        noteLastLosses()
        for export in exports {
            export.keepFigures()
            export.writer.close()
        }
        _ = await AllRingsCall(
            allRings, milliseconds: Limits.ringMilliseconds, shared, { .leave($0) }
        ).runLater()
        for listener in listeners { listener.leave() }
        // All at once: each is waited for when its disk is forgotten.
        for disk in state.withLock({ Array($0.disks.values) }) { disk.source.remote?.leave() }
        return forgetAll(exports)
    }

    /// What was lost since the rings have become quiet, and told to somebody who asked for a job,
    /// is told to nobody else: it is left for the next server.
    private func noteLastLosses() {
        for disk in state.withLock({ Array($0.disks.values) })
        where !disk.source.isReadOnly && disk.source.hasLostWrites {
            disk.source.doubt = .lostWrites
            doubt(disk.disk)?.sayLossInMemory()
        }
    }

    /// Nothing is known any more; returns what is to be closed by that.
    private func forgetAll(_ exports: [BackupExport]) -> [Held] {
        let (disks, jobs, expected) = state.withLock { state in
            defer {
                state.disks = [:]
                state.jobs = [:]
                state.expected = [:]
                state.liveListeners = []
                state.vhostListeners = [:]
            }
            return (state.disks, state.jobs, state.expected)
        }
        live.removeAll()
        for job in jobs.values { job.scope.removeAll() }
        for job in expected.values { job.scope.removeAll() }
        // Who still tries to say something of a disk's tracking is silent from now on.
        for disk in disks.keys { dropTracking(disk) }
        return disks.values.map { Held($0.source) } + exports.map { Held($0.scratch) }
    }

    /// An open file that goes with the last who uses it.
    private struct Held: Sendable {
        weak let object: (any AnyObject & Sendable)?
        init(_ object: any AnyObject & Sendable) { self.object = object }
    }

    /// Waits until nobody has the files open; whoever opens them next waits as well, where one
    /// stays.
    private func released(_ held: [Held]) async -> Bool {
        let deadline = MonotonicClock.now() + UInt64(Limits.releaseMilliseconds) * 1_000_000
        while held.contains(where: { $0.object != nil }) {
            guard MonotonicClock.now() < deadline else { return false }
            try? await Task.sleep(for: .milliseconds(1))
        }
        return true
    }
}
