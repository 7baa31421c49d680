import Core
import ServerInterface
import SystemLayer

/// Fixes an instant, then freezes the bits of its exports and makes its checkpoint durable; or
/// takes all of it back.
///
/// Returns how long changes were held, in nanoseconds. On a fault no disk has the checkpoint, no
/// job the instant, and layers that were made for it are given up, but for those that a ring may
/// still record in. What it does with files it does at once, in `step`.
struct DurableInstantCall: RingCall {
    private enum State {
        case fixing(InstantCall)
        /// Files have failed, after whatever time: the rings' time counts from the next step.
        case failed(InstantCall, ServerFault)
        case undoing(UndoCall, after: ServerFault)
    }

    private let instant: Instant
    private let checkpoint: String?
    private let server: NBDServer
    private var state: State

    var replies: Replies {
        switch state {
        case .fixing(let call), .failed(let call, _): call.replies
        case .undoing(let call, _): call.replies
        }
    }

    var deadline: UInt64 {
        switch state {
        case .fixing(let call): call.deadline
        case .failed: 0
        case .undoing(let call, _): call.deadline
        }
    }

    /// `checkpoint`: the name of the one that the instant's swaps make; nil where there are none.
    init(
        _ instant: Instant, checkpoint: String?, _ server: NBDServer,
        now: UInt64 = MonotonicClock.now()
    ) {
        self.instant = instant
        self.checkpoint = checkpoint
        self.server = server
        state = .fixing(InstantCall(instant, server.shared, now: now))
    }

    mutating func step(now: UInt64) -> Result<UInt64, ServerFault>? {
        while true {
            switch state {
            case .fixing(var call):
                let outcome = call.step(now: now)
                state = .fixing(call)
                guard let outcome else { return nil }
                if let fault = Self.fault(outcome.result) {
                    // Where changes went on nothing was carried out.
                    server.abandon(outcome.result == .notQuiet ? instant.swaps : outcome.undone)
                    return .failure(fault)
                }
                guard let fault = makeDurable() else { return .success(outcome.held) }
                state = .failed(call, fault)
                return nil
            case .failed(_, let fault):
                state = .undoing(UndoCall(instant, server.shared, now: now), after: fault)
            case .undoing(var call, let fault):
                let undone = call.step(now: now)
                state = .undoing(call, after: fault)
                guard let undone else { return nil }
                server.abandon(undone)
                return .failure(fault)
            }
        }
    }

    private func makeDurable() -> ServerFault? {
        if let fault = server.freeze(instant) { return fault }
        return checkpoint.flatMap { server.seal($0, instant.swaps) }
    }

    private static func fault(_ outcome: InstantFixing.Outcome) -> ServerFault? {
        switch outcome {
        case .fixed: nil
        case .notQuiet: .holdTimedOut(milliseconds: UInt64(Limits.holdMilliseconds))
        case .stuck: .ringStuck(milliseconds: UInt64(Limits.ringMilliseconds))
        case .refused: .limitReached(what: "jobs at once on a disk", limit: Limits.jobsPerDisk)
        }
    }
}
