import SystemLayer
import Tracking

/// Every place in which something of one disk's tracking is kept.
package struct TrackingPlaces: Sendable {
    /// The tracking directory: it outlives the machine's restart.
    package let files: any TrackedDirectory
    /// Where the session and the live bits are; nil: nowhere.
    package let memory: (any TrackedDirectory)?
    /// Whether `memory` loses nothing but with the machine's restart (tmpfs).
    package let isInMemory: Bool
    /// The source itself; nil when nothing can be noted there.
    package let mark: (any SourceMark)?
    /// Names the time since the machine was started; empty when that is not known.
    package let bootID: String
    /// Whether the session to which these places belong may still write its record.
    let gate = RecordGate()

    /// The places of a disk that nobody has open.
    package init(closed files: any TrackedDirectory) {
        self.init(files: files, memory: nil, isInMemory: false, mark: nil)
    }

    package init(
        files: any TrackedDirectory, memory: (any TrackedDirectory)?, isInMemory: Bool,
        mark: (any SourceMark)?, bootID: String = StateFiles.bootID()
    ) {
        self.files = files
        self.memory = memory
        self.isInMemory = isInMemory
        self.mark = mark
        self.bootID = bootID
    }

    /// The name of the record in the tracking directory.
    package static let recordName = "record"
    /// The name of the record once another server has the disk.
    package static let movedName = "record-moved"
    /// The name of the write-intent log in the tracking directory.
    package static let intentName = "intent"
    /// The name of the session in the memory directory.
    package static let sessionName = "session"

    /// The name in the memory directory of what says that the disk has lost writes, and that its
    /// machine has not heard of it.
    static let unheardName = "unheard"

    // MARK: What the last session has left

    func findSession() -> Finding<TrackingSession> {
        guard let memory else { return .nothing }
        do throws(SystemFault) {
            guard
                let bytes = try memory.read(Self.sessionName, limit: TrackingSession.bytesMax)
            else { return .nothing }
            guard let session = TrackingSession.decode(bytes) else { return .unreadable }
            // Another disk's, by an accident of names: it says nothing about this one.
            return session.directory == files.path ? .found(session) : .nothing
        } catch {
            return error.errno == Errno.notDirectory ? .nothing : .unreadable
        }
    }

    /// Removes what a memory directory says of a tracking directory; what cannot be removed stays,
    /// and does no harm.
    package static func forgetSession(in memory: any TrackedDirectory, of directory: String) {
        let bytes = try? memory.read(sessionName, limit: TrackingSession.bytesMax)
        // By an accident of names it may be another disk's.
        if let bytes, let session = TrackingSession.decode(bytes), session.directory != directory {
            return
        }
        for name in (try? memory.names()) ?? [] { try? memory.remove(name) }
        try? memory.removeIfEmpty()
    }

    func findMark() -> Finding<String> {
        do throws(SystemFault) {
            return try mark?.read().map { .found($0) } ?? .nothing
        } catch {
            return .unreadable
        }
    }

    /// Says in memory who has the disk now; true when it is said.
    func announce(_ session: TrackingSession) -> Bool {
        guard let memory else { return false }
        do throws(SystemFault) {
            try memory.make()
            try memory.replace(Self.sessionName, with: session.encode())
            return true
        } catch {
            return false
        }
    }
}
