import Dispatch
import Foundation
import ServerInterface
import Synchronization

/// One disk's adapter: a program that is started again whenever it is needed and has ended.
final class AdapterRun: Adapter {
    private enum State {
        case ended(String), ready
        /// `waits`: an earlier server's program has the image still.
        case starting(waits: Bool)
        /// It is not to run again; `isOver`: nor does it run still.
        case stopped(isOver: Bool)
    }

    private struct Content {
        var state = State.ended("")
        var waiters: [DispatchSemaphore] = []
        /// An earlier program had the image open after it was looked at.
        var hasWaited = false
        /// An earlier program was killed with changes that a machine had been told are written.
        var mayHaveLost = false
        /// The program has a second socket at which it shares memory.
        var sharesMemory = true
        /// What it has said when it refused that; told once.
        var sharingRefusal: String?
        /// Why it is not known who has the image open, or that it did not end in time; told once.
        var problem: String?
        /// Those who are told when it runs no more.
        var followers: [@Sendable () -> Void] = []

        var isOver: Bool {
            if case .stopped(isOver: true) = state { true } else { false }
        }

        /// It is not to run again; whether it runs still.
        mutating func stop() -> Bool {
            switch state {
            case .ended, .stopped(isOver: true): state = .stopped(isOver: true)
            case .starting, .ready, .stopped(isOver: false): state = .stopped(isOver: false)
            }
            return !isOver
        }
    }

    let address: UpstreamAddress
    private let image: ImageConfiguration
    /// The image before a program of this server had it.
    private let look: ImageLook
    private let order: AdapterOrder
    private let adapters: Adapters
    /// Of an image of a Ceph cluster.
    private let watch: RBDWatch?
    private let content = Mutex(Content())

    /// A program that was told to end has closed its image within a moment; one that takes longer
    /// is left to its keeper, which kills it in the end.
    ///
    /// Until then it is known, and its image is nobody else's.
    private static let stopSeconds = 2.0

    init(
        _ order: AdapterOrder, of adapters: Adapters, _ address: UpstreamAddress,
        _ image: ImageConfiguration, _ look: ImageLook, _ watch: RBDWatch?
    ) {
        self.watch = watch
        self.order = order
        self.adapters = adapters
        self.address = address
        self.image = image
        self.look = look
    }

    var sharedSocket: String? {
        guard !order.sharedSocket.isEmpty, content.withLock({ $0.sharesMemory }) else { return nil }
        return order.sharedSocket
    }

    /// As the program is started now.
    private var orderNow: AdapterOrder {
        var now = order
        if sharedSocket == nil { now.sharingArguments = [] }
        return now
    }

    var zeroingUnit: UInt64 { look.zeroingUnit }

    /// Nobody knows how the image was when a program that had to be waited for let go of it.
    var before: ImageState {
        content.withLock { $0.hasWaited }
            ? ImageState(files: look.state.files, changed: 0) : look.state
    }

    /// Whether the image is still the one that was found at first.
    private func check() throws(AdapterFault) {
        let now = try ImageLook(image)
        guard now.zeroingUnit == look.zeroingUnit, now.state.files == look.state.files else {
            throw AdapterFault(
                "a file of its image was replaced: detach the disk and attach it again")
        }
    }

    func takeProblem() -> String? {
        content.withLock { content in
            defer { content.problem = nil }
            return content.problem
        }
    }

    func takeSharingRefusal() -> String? {
        content.withLock { content in
            defer { content.sharingRefusal = nil }
            return content.sharingRefusal
        }
    }

    func ensureRuns(milliseconds: Int32) throws(AdapterFault) {
        var watchers: Set<RBDWatch.Watcher>?
        let deadline = DispatchTime.now() + .milliseconds(Int(milliseconds))
        var hasStarted = false
        while true {
            let signal = DispatchSemaphore(value: 0)
            let (state, starts) = content.withLock { content in
                var starts = false
                if case .ended = content.state, !hasStarted {
                    content.state = .starting(waits: false)
                    starts = true
                }
                content.waiters.append(signal)
                return (content.state, starts)
            }
            defer { content.withLock { $0.waiters.removeAll { $0 === signal } } }
            switch state {
            case .ready:
                if let watchers { try checkAlone(after: watchers) }
                return
            case .stopped: throw AdapterFault("it was stopped")
            case .ended(let text):
                guard hasRefusedToShare(text) else { throw AdapterFault(text) }
                hasStarted = false
                continue
            case .starting: break
            }
            hasStarted = true
            if starts {
                do throws(AdapterFault) {
                    try check()
                    watchers = try lookAround()
                    try adapters.tell(.start(orderNow))
                    // Told to end in between, it was not there yet.
                    if isStopped { try adapters.tell(.stop(id: order.id)) }
                } catch {
                    hasEnded(error.detail)
                    throw error
                }
            }
            guard signal.wait(timeout: deadline) == .success else {
                throw AdapterFault(lateness)
            }
        }
    }

    /// Whether it has ended for what shares memory: it is started without that from now on.
    private func hasRefusedToShare(_ text: String) -> Bool {
        guard let socket = sharedSocket,
            text.contains(BlockGraph.sharingType) || text.contains(socket)
        else { return false }
        return content.withLock { content in
            defer {
                content.sharesMemory = false
                content.sharingRefusal = text
            }
            return content.sharesMemory
        }
    }

    /// Who has an image of Ceph open before the program opens it: nobody else may.
    private func lookAround() throws(AdapterFault) -> Set<RBDWatch.Watcher>? {
        guard let watch else { return nil }
        do throws(RBDWatch.Fault) {
            return try watch.before()
        } catch {
            try judge(error)
            return []
        }
    }

    /// Who has come since; two that come at the same time both give way.
    private func checkAlone(after watchers: Set<RBDWatch.Watcher>) throws(AdapterFault) {
        guard let watch else { return }
        do throws(RBDWatch.Fault) {
            try watch.after(watchers, unless: { isStopped })
        } catch {
            if case .taken = error { try? adapters.tell(.stop(id: order.id)) }
            try judge(error)
        }
    }

    /// What cannot be found out keeps nobody from the disk, but is told.
    private func judge(_ fault: RBDWatch.Fault) throws(AdapterFault) {
        switch fault {
        case .taken(let text): throw AdapterFault(text)
        case .unknown(let text):
            content.withLock {
                $0.problem = "who else has the image open is not known: \(text)"
            }
        }
    }

    private var isStopped: Bool {
        content.withLock { content in
            if case .stopped = content.state { true } else { false }
        }
    }

    private var lateness: String {
        if case .starting(waits: true) = content.withLock({ $0.state }) {
            return "the program of an earlier server is still closing the image"
        }
        return "'\(order.program)' did not become ready in time"
    }

    func leave() {
        let runs = content.withLock { $0.stop() }
        if runs { try? adapters.tell(.leave(id: order.id)) }
    }

    func end(milliseconds: Int32) -> ImageState? {
        stop(seconds: Double(milliseconds) / 1000) ? ImageLook.state(of: image) : nil
    }

    func stop(whenOver: @escaping @Sendable () -> Void) {
        if !stop(seconds: Self.stopSeconds) {
            let isOver = content.withLock { content in
                if !content.isOver { content.followers.append(whenOver) }
                return content.isOver
            }
            guard isOver else { return }
        }
        whenOver()
    }

    /// True when it runs no more.
    private func stop(seconds: Double) -> Bool {
        let signal = DispatchSemaphore(value: 0)
        let runs = content.withLock { content in
            content.waiters.append(signal)
            return content.stop()
        }
        if runs {
            if (try? adapters.tell(.stop(id: order.id))) != nil {
                let deadline = DispatchTime.now() + seconds
                while signal.wait(timeout: deadline) == .success, !content.withLock({ $0.isOver }) {
                }
            } else {
                // Programs end with the process that keeps them, and there is none.
                hasEnded("")
            }
        }
        let isOver = content.withLock { content in
            content.waiters.removeAll { $0 === signal }
            if !content.isOver {
                content.problem =
                    "its program has not ended within \(seconds) s: it is killed if it does not,"
                    + " and has the image until then"
            }
            return content.isOver
        }
        if isOver { adapters.forget(order.id) }
        return isOver
    }

    // MARK: What the keeper says

    func hasToWait() {
        content.withLock { $0.hasWaited = true }
        change { state in
            if case .starting = state { state = .starting(waits: true) }
        }
    }

    var mayHaveLost: Bool { content.withLock { $0.mayHaveLost } }

    func heedLoss() {
        guard mayHaveLost else { return }
        try? adapters.tell(.heard(id: order.id))
    }

    var unflushedFile: String { order.unflushedFile }

    func forgetLoss() {
        guard !order.unflushedFile.isEmpty else { return }
        try? FileManager.default.removeItem(atPath: order.unflushedFile)
    }

    /// What is lost whatever the program has done is left for the next server.
    private func forgetUnflushed() {
        let said = FileManager.default.contents(atPath: order.unflushedFile)?.first
        if said != AtStake.whatNobodyHas.rawValue { forgetLoss() }
    }

    func becameReady(mayHaveLost: Bool) {
        if mayHaveLost { content.withLock { $0.mayHaveLost = true } }
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
        var hasEndedWell = false
        let followers: [@Sendable () -> Void]? = content.withLock { content in
            guard content.isOver else { return nil }
            if !text.isEmpty { content.problem = "its program did not end in order: \(text)" }
            hasEndedWell = text.isEmpty
            defer { content.followers = [] }
            return content.followers
        }
        guard let followers else { return }
        if hasEndedWell { forgetUnflushed() }
        adapters.forget(order.id)
        for follower in followers { follower() }
    }

    private func change(_ body: (inout State) -> Void) {
        let waiters = content.withLock { content in
            body(&content.state)
            return content.waiters
        }
        for waiter in waiters { waiter.signal() }
    }
}
