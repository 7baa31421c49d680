import Handover
import ServiceLifecycle
import Synchronization
import UnixSignals

/// What people, and other servers, want of this one.
final class Wishes: Sendable {
    enum Wish: Sendable {
        /// End, and end the jobs.
        case stop
        /// End, and leave the jobs to the next server.
        case leave
        /// Make way for this newcomer.
        case handOver(HandoverRequest)
    }

    private struct State {
        var wish: Wish?
        var isStopWished = false
        var wake: (@Sendable () -> Void)?
        var reload: (@Sendable () -> Void)?
    }

    private let next: NextServer
    private let state = Mutex(State())

    init(next: NextServer) { self.next = next }

    /// Whether a stop is wished, whatever is done first.
    var isStopWished: Bool { state.withLock { $0.isStopWished } }

    /// What is to be done now.
    var current: Wish? { state.withLock { $0.wish } }

    /// Wishes something; a stop comes after what is being done, anything else is kept only when
    /// nothing is wished.
    ///
    /// Returns whether it is.
    @discardableResult
    func wish(_ wish: Wish) -> Bool {
        let (isTaken, wake) = state.withLock { state in
            if case .stop = wish { state.isStopWished = true }
            guard state.wish == nil else { return (false, nil as (@Sendable () -> Void)?) }
            state.wish = wish
            return (true, state.wake)
        }
        wake?()
        return isTaken
    }

    /// The wish is fulfilled, or cannot be; what is left is a stop that was wished meanwhile.
    func settle() {
        state.withLock { state in
            state.wish = state.isStopWished ? .stop : nil
            state.wake = nil
        }
    }

    /// Calls `wake` as soon as something is wished; at once when something is.
    func whenWished(_ wake: @escaping @Sendable () -> Void) {
        let isWished = state.withLock { state in
            state.wake = wake
            return state.wish != nil
        }
        if isWished { wake() }
    }

    /// Calls `reload` whenever credentials and access rules are to be read again.
    func whenReloadWished(_ reload: @escaping @Sendable () -> Void) {
        state.withLock { $0.reload = reload }
    }

    // MARK: Signals

    /// Signals that would end a process which does not know them, also while it makes way for
    /// another and has nothing to do with them.
    func hearOtherSignals() {
        hear([.sighup, .sigusr1, .sigusr2]) { signal in
            switch signal {
            case .sigusr1: self.wish(.leave)
            case .sigusr2: self.startNext()
            default: self.state.withLock { $0.reload }?()
            }
        }
    }

    /// The signals that end the server.
    func hearStopSignals() {
        let isFirst = stopsAreHeard.exchange(true, ordering: .relaxed) == false
        if isFirst { hear([.sigterm, .sigint]) { _ in self.wish(.stop) } }
    }

    private let stopsAreHeard = Atomic<Bool>(false)

    private func hear(
        _ signals: [UnixSignal], _ body: @escaping @Sendable (UnixSignal) -> Void
    ) {
        Task {
            for await signal in await UnixSignalsSequence(trapping: signals) { body(signal) }
        }
    }

    private func startNext() {
        do throws(HandoverFault) {
            let process = try next.start { process, status in
                guard status != 0 else { return }
                Console.error(
                    "error: the new server, process \(process), has ended with status \(status)")
            }
            Console.error("nbdpull: '\(next.path)' was started to take over, process \(process)")
        } catch {
            Console.error("error: no new server: \(error.text)")
        }
    }
}
