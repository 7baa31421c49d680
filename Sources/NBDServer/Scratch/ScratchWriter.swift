import IORing
import ScratchFiles
import Synchronization
import SystemLayer

/// What a ring calls a write to scratch: its number, and which tenant of the number it is.
struct ScratchTicket: Sendable, Hashable {
    let number: ScratchWriteIndex
    let serial: UInt64
}

/// What became of a write to scratch.
enum ScratchOutcome: Sendable, Hashable {
    case written
    /// The positive errno.
    case failed(Int32)
    /// Not done: the room that is left belongs to the machines' disks.
    case keptForGuests
}

/// Writes old content of one disk of one job to its scratch, on a thread of its own.
///
/// Scratch is whatever somebody named, and may hang for ever. Then this thread hangs, with at most
/// one write and its buffer, and nobody else: rings share their kernel workers among all disks, so
/// they never write scratch themselves. The thread begins with the first write.
final class ScratchWriter: Sendable {
    private let scratch: ScratchStorage
    private let home: Mailbox<RingMessage>
    private let kept: KeptRoom
    private let wakeups = WakeCount()
    private let state = Mutex(State())
    private let start: ThreadStart

    private enum Work: Sendable {
        case write(ScratchTicket, LentBytes, position: UInt64)
        case empty(@Sendable () -> Void)
        case look(@Sendable ((totalBytes: UInt64, freeBytes: UInt64)) -> Void)
    }

    private struct State {
        var queue: [Work] = []
        var next = 0
        var running: ScratchTicket?
        /// The ring knows of the running write that it is given up.
        var isRevoked = false
        /// A look has been asked for and not been made.
        var isLooking = false
        var hasThread = false
        var isClosed = false
    }

    init(
        _ scratch: ScratchStorage, home: Mailbox<RingMessage>, kept: KeptRoom,
        start: @escaping ThreadStart = WorkerThread.start
    ) {
        self.start = start
        self.scratch = scratch
        self.home = home
        self.kept = kept
    }

    // MARK: On any thread

    /// Has bytes written; `.scratchWritten` with the ticket follows, unless it is revoked before it
    /// has begun.
    func write(_ ticket: ScratchTicket, _ bytes: LentBytes, position: UInt64) {
        put(.write(ticket, bytes, position: position))
    }

    /// Forgets the writes that have not begun.
    ///
    /// One that has is returned, once: its bytes are in use until its `.scratchWritten` comes.
    func revoke() -> ScratchTicket? {
        state.withLock { state in
            state.queue = state.queue[state.next...].filter { work in
                if case .write = work { false } else { true }
            }
            state.next = 0
            guard let running = state.running, !state.isRevoked else { return nil }
            state.isRevoked = true
            return running
        }
    }

    /// Gives the room of a scratch file back that nobody may read any more, then calls `done`.
    func empty(done: @escaping @Sendable () -> Void) {
        put(.empty(done))
    }

    /// Reports the room of scratch's file system; nothing while an earlier look has no answer.
    func look(report: @escaping @Sendable ((totalBytes: UInt64, freeBytes: UInt64)) -> Void) {
        let isFirst = state.withLock { state in
            defer { state.isLooking = true }
            return !state.isLooking && !state.isClosed
        }
        if isFirst { put(.look(report)) }
    }

    /// Ends the thread when it is through with what it has.
    func close() {
        state.withLock { $0.isClosed = true }
        wakeups.signal()
    }

    private func put(_ work: Work) {
        let needsThread = state.withLock { state in
            state.queue.append(work)
            defer { state.hasThread = true }
            return !state.hasThread
        }
        if needsThread {
            do throws(SystemFault) {
                try start("nbdpull-scratch") { self.run() }
            } catch {
                return refuse(error.errno)
            }
        }
        wakeups.signal()
        // After the end a thread looks once more, and ends.
        if needsThread, state.withLock({ $0.isClosed }) { wakeups.signal() }
    }

    /// There is no thread: what was put in since one was wanted is answered.
    private func refuse(_ errno: Int32) {
        let left = state.withLock { state in
            defer {
                state.hasThread = false
                state.isLooking = false
                state.queue.removeAll()
                state.next = 0
            }
            return Array(state.queue[state.next...])
        }
        for work in left {
            switch work {
            case .write(let ticket, _, _): home.post(.scratchWritten(ticket, .failed(errno)))
            case .empty(let done): done()
            case .look: break
            }
        }
    }

    // MARK: On the writer's thread

    private func run() {
        while true {
            wakeups.wait()
            switch next() {
            case .write(let ticket, let bytes, let position):
                finish(ticket, perform(bytes, at: position))
            case .empty(let done):
                scratch.empty()
                done()
            case .look(let report):
                if let space = FileCalls.space(scratch.raw) { report(space) }
                state.withLock { $0.isLooking = false }
            case nil:
                if endsNow() { return }
            }
        }
    }

    /// Whether the thread has nothing left to do; the next request starts another.
    private func endsNow() -> Bool {
        state.withLock { state in
            guard state.isClosed, state.next >= state.queue.count else { return false }
            state.hasThread = false
            return true
        }
    }

    private func next() -> Work? {
        state.withLock { state in
            guard state.next < state.queue.count else {
                state.queue.removeAll(keepingCapacity: true)
                state.next = 0
                return nil
            }
            let work = state.queue[state.next]
            state.next += 1
            if state.next == state.queue.count {
                state.queue.removeAll(keepingCapacity: true)
                state.next = 0
            }
            if case .write(let ticket, _, _) = work { state.running = ticket }
            return work
        }
    }

    private func perform(_ bytes: LentBytes, at position: UInt64) -> ScratchOutcome {
        let keptBytes = kept.bytes
        if keptBytes > 0, let space = FileCalls.space(scratch.raw),
            space.freeBytes < keptBytes + UInt64(bytes.count)
        {
            return .keptForGuests
        }
        if let errno = bytes.write(to: scratch.raw, at: position) { return .failed(errno) }
        // Earlier writes may have been lost meanwhile; the sooner it is known the better.
        if !scratch.readsNeverWait, let errno = FileCalls.writeError(scratch.raw) {
            return .failed(errno)
        }
        return .written
    }

    private func finish(_ ticket: ScratchTicket, _ outcome: ScratchOutcome) {
        state.withLock { state in
            state.running = nil
            state.isRevoked = false
        }
        home.post(.scratchWritten(ticket, outcome))
    }
}
