import Dispatch
import ServerInterface
import Synchronization

/// One disk's adapter: a program that is started again whenever it is needed and has ended.
final class AdapterRun: Adapter {
    private enum State {
        case ended(String), starting, ready
        /// It is not to run again; `isOver`: nor does it run still.
        case stopped(isOver: Bool)
    }

    private struct Content {
        var state = State.ended("")
        var waiters: [DispatchSemaphore] = []

        var isOver: Bool {
            if case .stopped(isOver: true) = state { true } else { false }
        }
    }

    let address: UpstreamAddress
    let zeroingUnit: UInt64
    private let order: AdapterOrder
    private let adapters: Adapters
    /// Whether the image is still what it was found to be.
    private let check: @Sendable () throws(AdapterFault) -> Void
    private let content = Mutex(Content())

    /// A program that was told to end has closed its image within a moment; one that takes longer
    /// is left to its keeper, which kills it in the end.
    private static let stopSeconds = 2.0

    init(
        _ order: AdapterOrder, of adapters: Adapters, _ address: UpstreamAddress,
        zeroingUnit: UInt64, check: @escaping @Sendable () throws(AdapterFault) -> Void
    ) {
        self.check = check
        self.order = order
        self.adapters = adapters
        self.address = address
        self.zeroingUnit = zeroingUnit
    }

    func ensureRuns(milliseconds: Int32) throws(AdapterFault) {
        let deadline = DispatchTime.now() + .milliseconds(Int(milliseconds))
        var hasStarted = false
        while true {
            let signal = DispatchSemaphore(value: 0)
            let (state, starts) = content.withLock { content in
                var starts = false
                if case .ended = content.state, !hasStarted {
                    content.state = .starting
                    starts = true
                }
                content.waiters.append(signal)
                return (content.state, starts)
            }
            defer { content.withLock { $0.waiters.removeAll { $0 === signal } } }
            switch state {
            case .ready: return
            case .stopped: throw AdapterFault("it was stopped")
            case .ended(let text): throw AdapterFault(text)
            case .starting: break
            }
            hasStarted = true
            if starts {
                do throws(AdapterFault) {
                    try check()
                    try adapters.tell(.start(order))
                } catch {
                    hasEnded(error.detail)
                    throw error
                }
            }
            guard signal.wait(timeout: deadline) == .success else {
                throw AdapterFault("'\(order.program)' did not become ready in time")
            }
        }
    }

    func stop() {
        let signal = DispatchSemaphore(value: 0)
        let runs = content.withLock { content in
            content.waiters.append(signal)
            switch content.state {
            case .ended, .stopped(isOver: true): content.state = .stopped(isOver: true)
            case .starting, .ready, .stopped(isOver: false):
                content.state = .stopped(isOver: false)
            }
            return !content.isOver
        }
        if runs, (try? adapters.tell(.stop(id: order.id))) != nil {
            let deadline = DispatchTime.now() + Self.stopSeconds
            while signal.wait(timeout: deadline) == .success, !content.withLock({ $0.isOver }) {}
        }
        content.withLock { $0.waiters.removeAll { $0 === signal } }
        adapters.forget(order.id)
    }

    // MARK: What the keeper says

    func becameReady() {
        change { state in
            if case .starting = state { state = .ready }
        }
    }

    func hasEnded(_ text: String) {
        change { state in
            if case .stopped = state {
                state = .stopped(isOver: true)
            } else {
                state = .ended(text.isEmpty ? "it has ended" : text)
            }
        }
    }

    private func change(_ body: (inout State) -> Void) {
        let waiters = content.withLock { content in
            body(&content.state)
            return content.waiters
        }
        for waiter in waiters { waiter.signal() }
    }
}
