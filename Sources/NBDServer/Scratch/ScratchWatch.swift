import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer

/// Looks after the scratch of all running jobs from outside the data path.
///
/// A write error that the kernel reports late breaks the job although nobody reads. Where scratch
/// shares a file system with a machine's disk the job gives way before the machine runs out of
/// room, and when it has run out all the same, its write waits until the jobs there have given
/// theirs back.
final class ScratchWatch: Sendable {
    private let state = Mutex(State())
    private let wakeups = WakeCount()
    private let start: ThreadStart
    /// Nanoseconds of the monotonic clock.
    private let now: @Sendable () -> UInt64

    init(
        start: @escaping ThreadStart = WorkerThread.start,
        now: @escaping @Sendable () -> UInt64 = { MonotonicClock.now() }
    ) {
        self.start = start
        self.now = now
    }

    private struct State {
        var exports: [ExportID: BackupExport] = [:]
        /// Exports that have nothing left to give back.
        var given: Set<ExportID> = []
        /// Other files that can give room back; each goes when it has.
        var holders: [RoomHolder] = []
        /// When room was last given back, by file system.
        var givenAt: [UInt64: UInt64] = [:]
        var waiting: [Reclaim] = []
        var hasThread = false
    }

    /// A guest's change that waits for room.
    private final class Reclaim: Sendable {
        let deadline: UInt64
        private let missing: Atomic<Int>
        private let isAnswered = Atomic<Bool>(false)
        private let answer: @Sendable () -> Void

        init(_ count: Int, now: UInt64, answer: @escaping @Sendable () -> Void) {
            missing = Atomic(count)
            self.answer = answer
            deadline = now + Limits.reclaimNanoseconds
        }

        func oneIsDone() {
            if missing.subtract(1, ordering: .acquiringAndReleasing).newValue == 0 { finish() }
        }

        func finish() {
            if !isAnswered.exchange(true, ordering: .acquiringAndReleasing) { answer() }
        }

        var isOver: Bool { isAnswered.load(ordering: .acquiring) }
    }

    /// Begins to watch; `shared` is told of what is found.
    func add(_ exports: [BackupExport], _ shared: ServerShared) {
        state.withLock { state in
            for export in exports { state.exports[export.id] = export }
        }
        wakeups.signal()
        // Without a thread readers look for themselves; the next job's begin tries again.
        _ = ensureThread(shared)
    }

    /// Whether there is a thread, started if need be.
    private func ensureThread(_ shared: ServerShared) -> Bool {
        let isThere = state.withLock { state in
            defer { state.hasThread = true }
            return state.hasThread
        }
        if isThere { return true }
        do throws(SystemFault) {
            try start("nbdpull-watch") { self.run(shared) }
            return true
        } catch {
            state.withLock { $0.hasThread = false }
            return false
        }
    }

    func remove(_ exports: [ExportID]) {
        state.withLock { state in
            for export in exports {
                state.exports[export] = nil
                state.given.remove(export)
            }
        }
        wakeups.signal()
    }

    /// In place of what was known of that job's target.
    func hold(_ holder: RoomHolder) {
        state.withLock { state in
            state.holders.removeAll { $0.job == holder.job && $0.target == holder.target }
            state.holders.append(holder)
        }
    }

    func dropHolders(ofJob id: String) {
        state.withLock { state in state.holders.removeAll { $0.job == id } }
    }

    /// A guest has found its file system full: breaks the jobs that have scratch there, has other
    /// files there give their room back, and calls `answer` when that is done, or after a while.
    ///
    /// A write may have failed before room was given back, and be heard of afterwards: then it is
    /// to be tried again at once.
    func reclaim(
        _ fileSystem: UInt64, _ shared: ServerShared, answer: @escaping @Sendable () -> Void
    ) -> Reclaimed {
        let found = state.withLock { state -> Found? in
            // A file that was there before keeps its room: to break its job would help nobody.
            let exports = state.exports.values.filter {
                $0.scratch.fileSystem == fileSystem && $0.scratch.isOurs
                    && !state.given.contains($0.id)
            }
            let holders = state.holders.filter { $0.fileSystem == fileSystem }
            guard !exports.isEmpty || !holders.isEmpty else { return nil }
            let reclaim = Reclaim(exports.count + holders.count, now: now(), answer: answer)
            // From here on the thread stays until it is answered.
            state.waiting.append(reclaim)
            return Found(exports: exports, holders: holders, reclaim: reclaim)
        }
        guard let found else {
            let givenAt = state.withLock { $0.givenAt[fileSystem] }
            let isRecent = givenAt.map {
                now() < $0 + Limits.reclaimNanoseconds
            }
            return isRecent == true ? .justGiven : .nothing
        }
        guard ensureThread(shared) else {
            // Nobody would notice the deadline.
            state.withLock { $0.waiting.removeAll { $0 === found.reclaim } }
            return .nothing
        }
        for export in found.exports {
            shared.breakNow(export, .spaceForGuest)
            export.writer.empty {
                self.state.withLock { state in
                    state.given.insert(export.id)
                    state.givenAt[fileSystem] = self.now()
                }
                found.reclaim.oneIsDone()
            }
        }
        for holder in found.holders {
            holder.give {
                self.state.withLock { state in
                    state.holders.removeAll {
                        $0.job == holder.job && $0.target == holder.target
                    }
                    state.givenAt[fileSystem] = self.now()
                }
                found.reclaim.oneIsDone()
            }
        }
        return .waiting
    }

    /// What can give room back, and who waits for it.
    private struct Found {
        let exports: [BackupExport]
        let holders: [RoomHolder]
        let reclaim: Reclaim
    }

    /// What there is to give back to a guest.
    enum Reclaimed {
        /// `answer` will be called.
        case waiting
        /// Nothing more, but there was a moment ago.
        case justGiven
        /// The file system is full of other things.
        case nothing
    }

    // MARK: On the watch's thread

    private func run(_ shared: ServerShared) {
        var pause = Limits.scratchWatchMilliseconds
        var round = 0
        while true {
            let isWoken = wakeups.wait(milliseconds: pause)
            let (exports, waiting, isIdle) = state.withLock { state in
                state.waiting.removeAll { $0.isOver }
                let isIdle = state.exports.isEmpty && state.waiting.isEmpty
                if isIdle, !isWoken { state.hasThread = false }
                return (Array(state.exports.values), state.waiting, isIdle)
            }
            if isIdle, !isWoken { return }
            // The next job may begin soon.
            pause = isIdle ? Limits.idleMilliseconds : Limits.scratchWatchMilliseconds
            let now = self.now()
            for reclaim in waiting where now > reclaim.deadline { reclaim.finish() }
            round &+= 1
            for export in exports where !export.ledger.view.isClosed {
                look(at: export, shared, isForPeople: round % Limits.scratchLooksPerFigure == 0)
            }
        }
    }

    private func look(
        at export: BackupExport, _ shared: ServerShared, isForPeople: Bool
    ) {
        if let loss = export.loss { return shared.breakNow(export, loss) }
        export.keepFigures()
        guard export.kept.bytes > 0 || isForPeople, export.scratch.deviceBytes == 0 else { return }
        // On the writer's thread: the file system may hang.
        export.writer.look { space in
            export.scratchFreeBytes.store(space.freeBytes, ordering: .relaxed)
            let keptBytes = export.kept.bytes
            guard keptBytes > 0 else { return }
            if space.freeBytes < keptBytes {
                shared.breakNow(export, .spaceForGuest)
            } else if space.freeBytes - keptBytes
                < export.roomBytes / 100 * (100 - Limits.scratchWatermarkPercent)
            {
                shared.noteWatermark(export)
            }
        }
    }
}
