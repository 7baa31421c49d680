/// What was found in one of the places that bear witness.
package enum Finding<Value: Sendable & Hashable>: Sendable, Hashable {
    /// Certainly nothing is there.
    case nothing
    case found(Value)
    /// Something may be there and cannot be read, or makes no sense.
    case unreadable
}

/// Everything that is known of a disk's last session when the next one begins.
package struct TrackingEvidence: Sendable, Hashable {
    package var record: TrackingRecord
    /// What the last session said in memory.
    package var session: Finding<TrackingSession>
    /// Whether what lies beside it cannot be lost but with the machine's restart.
    package var sessionIsInMemory: Bool
    /// What is noted on the source.
    package var mark: Finding<String>
    /// The file's time of change, as it is now; zero for a device.
    package var changedNanoseconds: UInt64
    /// The boot that is now; empty when it is not known.
    package var bootID: String

    package init(
        record: TrackingRecord, session: Finding<TrackingSession>, sessionIsInMemory: Bool,
        mark: Finding<String>, changedNanoseconds: UInt64, bootID: String
    ) {
        self.record = record
        self.session = session
        self.sessionIsInMemory = sessionIsInMemory
        self.mark = mark
        self.changedNanoseconds = changedNanoseconds
        self.bootID = bootID
    }
}

/// How far the bits of a disk are believed when its tracking is taken up again.
package enum TrackingTrust: Sendable, Hashable {
    /// The layer's file has them all: its session has ended in good order and was the last.
    case file
    /// The last session was cut off, and its bits lie in memory as it left them.
    case memory
    /// The last session was cut off: the file's bits, and all of each region that the log marks.
    case log
    /// Changes may be missing: every block counts as dirty.
    ///
    /// Says why; nil when only the file's time of change differs, which is nobody's fault.
    case nothing(String?)
}

extension TrackingEvidence {
    /// What can be believed.
    ///
    /// A server that takes a disk first writes its own record, or says where it can that it does
    /// not: so a record is only believed when nothing speaks of another session after it. What
    /// cannot be read may have said so.
    package var trust: TrackingTrust {
        switch mark {
        case .unreadable: return .nothing("the mark on its source cannot be read")
        case .nothing where record.mark.isEmpty: break
        case .found(let text) where text == record.mark: break
        case .nothing, .found:
            return .nothing("its source says that it was served without its changes recorded")
        }
        switch session {
        case .unreadable: return .nothing("what its last session has left cannot be read")
        case .nothing: return record.isClean ? trustInFile : .log
        case .found(let last): return trust(after: last)
        }
    }

    private func trust(after last: TrackingSession) -> TrackingTrust {
        switch last.state {
        case .tracked: break
        case .untracked: return .nothing("it was served without its changes recorded")
        case .syncing:
            return .nothing("a sync of it had not ended when its server did, and may have failed")
        }
        let isThisBoot = !bootID.isEmpty && last.bootID == bootID
        guard last.id == record.session else {
            // A session is only announced when its record is durable: one of an earlier boot is
            // older than the record.
            if !isThisBoot { return record.isClean ? trustInFile : .log }
            return .nothing("its record is not that of its last session")
        }
        if record.isClean { return trustInFile }
        guard isThisBoot, record.bootID == bootID, sessionIsInMemory else { return .log }
        return .memory
    }

    private var trustInFile: TrackingTrust {
        record.source.changedNanoseconds == changedNanoseconds
            ? .file : .nothing(nil)
    }
}
