import Synchronization
package import SystemLayer
import Tracking

/// What became of the attempt to say that a disk's tracking is not to be believed.
package struct DoubtOutcome: Sendable, Hashable {
    /// It is said where it outlives the machine's restart.
    package var isDurable = false
    /// It is recorded where the next one to open the disk sees it.
    package var isSaid = false
    /// What could not be done: `'path': call: text`.
    package var failures: [String] = []
    /// A call failed because no descriptor was left.
    package var lackedDescriptors = false

    package init() {}
}

/// Says that changes of a disk were made, or may have been, that are not recorded.
///
/// Each place alone is enough for the next start: no record, a mark on the source that the record
/// does not know, a session in memory that says so. All are tried, because any of them may be full,
/// read-only, broken or gone.
package final class TrackingDoubt: Sendable {
    private let places: TrackingPlaces
    private let spare: SpareDescriptor
    private let session = Mutex(OpenSession())
    private let outcome = Mutex<DoubtOutcome?>(nil)

    private struct OpenSession {
        /// The session's file, open beforehand, so that it can be written over without waiting.
        var file: (any TrackedFile)?
        /// Its name; empty before it is announced.
        var id = ""
        /// It was said that changes are not recorded: nothing takes that back.
        var isUntracked = false
    }

    package init(_ places: TrackingPlaces, spare: SpareDescriptor) {
        self.places = places
        self.spare = spare
    }

    /// The tracking directory that it is about.
    package var directory: String { places.files.path }

    /// What the last `declare` came to; nil when there was none.
    package var lastOutcome: DoubtOutcome? { outcome.withLock { $0 } }

    /// Whether nobody is to say anything any more: the disk is held by a later session.
    private let isRetired = Atomic<Bool>(false)
    private let retired = Latch(count: 1)
    package var isOver: Bool { isRetired.load(ordering: .acquiring) }

    /// Tries until it is said durably, or this object retires; for a thread of its own.
    package func keepDeclaring(everyMilliseconds: Int32) {
        while !(lastOutcome?.isDurable ?? false) {
            if retired.wait(milliseconds: everyMilliseconds) { return }
            _ = declare()
        }
    }

    /// Nothing is said any more; a call that is at work may still end.
    package func retire() {
        guard !isRetired.exchange(true, ordering: .acquiringAndReleasing) else { return }
        retired.arrive()
    }

    /// The session that has these places writes no record any more, nor removes what a later one
    /// says; may wait as long as the storage does.
    package func bar() { places.gate.close() }

    /// Opens what `sayInMemory` needs, after `store` has announced its session.
    package func prepare(_ store: TrackingStore) {
        guard places.isInMemory, let memory = places.memory else { return }
        let file = try? memory.open(TrackingPlaces.sessionName, writable: true)
        session.withLock {
            $0.file = file
            $0.id = store.record.session
        }
    }

    private func encoded(_ state: TrackingSession.State, id: String) -> [UInt8] {
        TrackingSession(
            id: id, bootID: places.bootID, state: state, directory: places.files.path
        ).encode()
    }

    private var untracked: [UInt8] { encoded(.untracked, id: TrackingSession.freshID()) }

    /// Says it in memory alone, without a call that can wait for a device; false when that failed.
    package func sayInMemory() -> Bool {
        session.withLock { session in
            session.isUntracked = true
            return Self.write(untracked, to: session.file)
        }
    }

    /// Says in memory that the disk has lost writes, and that its machine has not heard of it.
    ///
    /// Without a call that can wait for a device.
    package func sayLossInMemory() {
        _ = sayInMemory()
        say(isUnheard: true)
    }

    /// Says in memory that a sync of the disk hangs, or that it has ended well: what the kernel
    /// tells of a sync it tells once, and a process that is killed meanwhile takes it along.
    ///
    /// Without a call that can wait for a device; says nothing once changes are not recorded.
    package func say(syncHangs: Bool) {
        session.withLock { session in
            guard !session.isUntracked, !session.id.isEmpty else { return }
            _ = Self.write(
                encoded(syncHangs ? .syncing : .tracked, id: session.id), to: session.file)
        }
    }

    /// Says in memory that the disk has lost writes of which its machine has not heard, or that it
    /// has, so that a process that comes after a kill tells it.
    ///
    /// Without a call that can wait for a device.
    package func say(isUnheard: Bool) {
        guard places.isInMemory, let memory = places.memory else { return }
        if isUnheard {
            try? memory.make()
            _ = try? memory.create(TrackingPlaces.unheardName, reserving: 0)
        } else {
            try? memory.remove(TrackingPlaces.unheardName)
            try? memory.removeIfEmpty()
        }
    }

    /// Whether the machine is to be told yet that writes were lost.
    package var hasUnheardLoss: Bool {
        guard places.isInMemory, let memory = places.memory else { return false }
        return (try? memory.openIfThere(TrackingPlaces.unheardName)) ?? nil != nil
    }

    private static func write(_ bytes: [UInt8], to file: (any TrackedFile)?) -> Bool {
        do throws(SystemFault) {
            guard let file else { return false }
            try file.write(bytes, at: 0)
            return true
        } catch {
            return false
        }
    }

    /// Says it in every place; may wait as long as the storage does.
    ///
    /// Called again after a failure, it tries again.
    package func declare() -> DoubtOutcome {
        var found = attempt()
        if !found.isDurable, found.lackedDescriptors {
            spare.lend { found = attempt() }
        }
        let result = found
        outcome.withLock { $0 = result }
        return result
    }

    private func attempt() -> DoubtOutcome {
        var outcome = DoubtOutcome()
        if isRetired.load(ordering: .acquiring) { return outcome }
        sayInSession(&outcome)
        // Before the record: its directory may hang, and where the source hangs, so do its changes.
        markSource(&outcome)
        removeRecord(&outcome)
        return outcome
    }

    private func note(_ path: String, _ fault: SystemFault, _ outcome: inout DoubtOutcome) {
        outcome.failures.append("'\(path)': \(fault.call): \(fault.errorText)")
        if fault.errno == Errno.tooManyFiles || fault.errno == Errno.tooManyFilesInSystem {
            outcome.lackedDescriptors = true
        }
    }

    private func sayInSession(_ outcome: inout DoubtOutcome) {
        guard let memory = places.memory else { return }
        if sayInMemory() { outcome.isSaid = true }
        do throws(SystemFault) {
            try memory.make()
            try memory.replace(TrackingPlaces.sessionName, with: untracked)
            outcome.isSaid = true
            return
        } catch {
            note(memory.path + "/" + TrackingPlaces.sessionName, error, &outcome)
        }
        if outcome.isSaid { return }
        // Written over where it is, which needs no room; else an empty file, which nobody can read.
        do throws(SystemFault) {
            let file = try memory.open(TrackingPlaces.sessionName, writable: true)
            try file.write(untracked, at: 0)
            outcome.isSaid = true
        } catch {
            if (try? memory.create(TrackingPlaces.sessionName, reserving: 0)) != nil {
                outcome.isSaid = true
            }
        }
    }

    private func removeRecord(_ outcome: inout DoubtOutcome) {
        let path = places.files.path + "/" + TrackingPlaces.recordName
        var isGone = false
        bar()
        do throws(SystemFault) {
            try places.files.remove(TrackingPlaces.recordName)
            isGone = true
            outcome.isSaid = true
            try places.files.sync()
            outcome.isDurable = true
            return
        } catch {
            note(path, error, &outcome)
        }
        if isGone { return }
        do throws(SystemFault) {
            // A record that is torn is none.
            let file = try places.files.open(TrackingPlaces.recordName, writable: true)
            try file.write([UInt8](repeating: 0, count: 16), at: 0)
            outcome.isSaid = true
            try file.sync()
            outcome.isDurable = true
        } catch {
            note(path, error, &outcome)
        }
    }

    private func markSource(_ outcome: inout DoubtOutcome) {
        guard let mark = places.mark else { return }
        do throws(SystemFault) {
            try mark.write("untracked " + TrackingSession.freshID())
            outcome.isSaid = true
            if mark.isLasting { outcome.isDurable = true }
        } catch {
            note("the source's attribute", error, &outcome)
        }
    }
}
