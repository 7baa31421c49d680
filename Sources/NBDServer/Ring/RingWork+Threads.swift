import BoundedCalls
import Disk
import IORing
import ServerInterface
import SystemLayer
import TrackingFiles

/// Work is done on threads of its own: a call that never returns takes nothing from the ring,
/// neither its thread nor one of the kernel's workers for it.
extension RingWork {
    /// Has it done; what comes of it is told to `home`.
    func start(for home: Mailbox<RingMessage>, _ shared: ServerShared) -> Bool {
        switch self {
        case .writeLog(let disk, let log, let words, let generation):
            return DetachedThread.run(name: "nbdpull-intent") {
                let failure = fault { () throws(SystemFault) in
                    try log.write(words, generation: generation)
                }
                home.post(.intentLogWritten(disk, failure))
            }
        case .saveBits(let disk, let recording, let source):
            // The source goes with its disk, however long the tracking directory takes.
            let parting = Parting(source)
            return DetachedThread.run(name: "nbdpull-bits") {
                let failure = fault { () throws(SystemFault) in
                    try parting.take()?.makeDurable()
                    try recording.save()
                }
                home.post(.bitsSaved(disk, failure))
            }
        case .declareLoss(let disk, let doubt):
            return declare(doubt, of: disk, home, shared)
        case .writeScratch(let export, let ticket, let bytes, let position):
            return write(export, ticket, bytes, position)
        case .emptyScratch(let export): return empty(export)
        case .closeScratch(let export): return close(export)
        case .reclaim(let fileSystem, let piece, let isFirst):
            return reclaim(fileSystem, for: piece, isFirst: isFirst, home, shared)
        }
    }

    private func declare(
        _ doubt: TrackingDoubt, of disk: DiskID, _ home: Mailbox<RingMessage>,
        _ shared: ServerShared
    ) -> Bool {
        shared.declareOnThread(doubt, of: disk) { home.post(.lossDeclared(disk)) }
        return true
    }

    private func reclaim(
        _ fileSystem: UInt64, for piece: PieceIndex, isFirst: Bool, _ home: Mailbox<RingMessage>,
        _ shared: ServerShared
    ) -> Bool {
        let answer: @Sendable () -> Void = { home.post(.spaceReclaimed(piece: piece)) }
        switch shared.watch.reclaim(fileSystem, shared, answer: answer) {
        case .waiting: return true
        case .nothing: return false
        case .justGiven:
            if isFirst { answer() }
            return isFirst
        }
    }

    // What comes of a write of scratch that has no thread is a message as well.

    private func write(
        _ export: BackupExport, _ ticket: ScratchTicket, _ bytes: LentBytes, _ position: UInt64
    ) -> Bool {
        export.writer.write(ticket, bytes, position: position)
        return true
    }

    private func empty(_ export: BackupExport) -> Bool {
        export.writer.empty {}
        return true
    }

    private func close(_ export: BackupExport) -> Bool {
        export.writer.close()
        return true
    }
}

/// What a call has failed with, or nil.
private func fault(_ body: () throws(SystemFault) -> Void) -> SystemFault? {
    do throws(SystemFault) {
        try body()
        return nil
    } catch {
        return error
    }
}
