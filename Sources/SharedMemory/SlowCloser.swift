import Glibc
import Synchronization
import SystemLayer

/// Closes what a front-end has sent, and unmaps what it has shared, where nobody waits for it.
///
/// The last close of a socket may wait for its peer, that of a file for its file system, and to
/// give a large guest's memory back takes seconds. One thread does that, which is there while there
/// is work; when it hangs, what comes later waits behind it, and `isFull` says when that is too
/// much.
package final class SlowCloser: Sendable {
    private struct State {
        var descriptors: [Int32] = []
        var mappings: [GuestMapping] = []
        /// Of these, what the thread has taken.
        var takenDescriptors = 0
        var isRunning = false
        var hasSaidFull = false
    }
    private let state = Mutex(State())
    private let startThread: @Sendable (String, @escaping @Sendable () -> Void) -> Bool

    /// Descriptors that may wait: those of twice as many regions of memory as a guest has.
    package static let waitingMax = 1024

    /// `startThread` says whether the thread was started.
    package init(
        startThread: @escaping @Sendable (String, @escaping @Sendable () -> Void) -> Bool =
            DetachedThread.run(name:_:)
    ) {
        self.startThread = startThread
    }

    /// Closes descriptors, whatever they are; an event, whose close never waits, at once.
    package func close(_ descriptors: [Int32]) {
        let slow = descriptors.filter { descriptor in
            guard DescriptorSocket.isEvent(descriptor) else { return true }
            _ = Glibc.close(descriptor)
            return false
        }
        if !slow.isEmpty { add { $0.descriptors += slow } }
    }

    /// Unmaps memory that nobody uses any more.
    package func unmap(_ mappings: [GuestMapping]) {
        if !mappings.isEmpty { add { $0.mappings += mappings } }
    }

    /// Descriptors that wait for their close.
    package var waiting: Int {
        state.withLock { $0.descriptors.count + $0.takenDescriptors }
    }

    /// Whether so much waits that no more is to be taken from the front-end.
    package var isFull: Bool { waiting > Self.waitingMax }

    /// Whether that is to be said now: once each time that it is full.
    package func saysFull() -> Bool {
        state.withLock { state in
            defer { state.hasSaidFull = true }
            return !state.hasSaidFull
        }
    }

    private func add(_ change: (inout State) -> Void) {
        let starts = state.withLock { state in
            change(&state)
            defer { state.isRunning = true }
            return !state.isRunning
        }
        guard starts, !startThread("nbdpull-close", { self.run() }) else { return }
        // It stays open, which costs a number and keeps nobody waiting, until the next one comes.
        state.withLock { $0.isRunning = false }
    }

    private func run() {
        while let (descriptors, mappings) = take() {
            for mapping in mappings { mapping.unmap() }
            for descriptor in descriptors {
                _ = Glibc.close(descriptor)
                state.withLock { $0.takenDescriptors -= 1 }
            }
        }
    }

    private func take() -> (descriptors: [Int32], mappings: [GuestMapping])? {
        state.withLock { state in
            guard !state.descriptors.isEmpty || !state.mappings.isEmpty else {
                state.isRunning = false
                state.hasSaidFull = false
                return nil
            }
            let taken = (state.descriptors, state.mappings)
            state.takenDescriptors = taken.0.count
            state.descriptors = []
            state.mappings = []
            return taken
        }
    }
}
