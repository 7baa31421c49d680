import Dispatch
import Foundation
package import ServerInterface
import Synchronization

/// Explains why a host cannot be used.
package enum HostNames {
    /// How long an explanation may take, in seconds.
    private static let secondsMax = 3.0
    /// Most threads that silent name servers may hold up.
    private static let lookupsMax = 8
    private static let lookups = Mutex(0)

    /// The error itself; if the host of `endpoint` has no address, an error that says so instead,
    /// because then TLS does not matter.
    ///
    /// Waits for name servers, a few seconds at most and no thread of the caller's.
    package static func explained(
        _ error: ControlError, _ endpoint: ListenEndpoint?
    ) async -> ControlError {
        guard ["plaintext-refused", "cannot-listen"].contains(error.code),
            case .tcp(let host, _)? = endpoint, let problem = await problem(of: host)
        else { return error }
        return ControlError(
            .internalError, code: "host-unknown", status: 422,
            detail: "host '\(host)' has no address: \(problem)")
    }

    private static func problem(of host: String) async -> String? {
        let isTaken = lookups.withLock { count in
            guard count < lookupsMax else { return false }
            count += 1
            return true
        }
        guard isTaken else { return nil }
        return await withCheckedContinuation { continuation in
            let answer = Answer(continuation)
            Thread.detachNewThread {
                let problem = SystemCalls.resolutionProblem(of: host)
                lookups.withLock { $0 -= 1 }
                answer.give(problem)
            }
            DispatchQueue.global().asyncAfter(deadline: .now() + secondsMax) { answer.give(nil) }
        }
    }

    // The first answer counts.
    private final class Answer: Sendable {
        private let waiting: Mutex<CheckedContinuation<String?, Never>?>
        init(_ continuation: CheckedContinuation<String?, Never>) {
            waiting = Mutex(continuation)
        }
        func give(_ text: String?) {
            let first = waiting.withLock { waiting in
                defer { waiting = nil }
                return waiting
            }
            first?.resume(returning: text)
        }
    }
}

extension ListenEndpoint {
    /// Where a client finds what listens here: a listener on every address is named by one that
    /// other machines reach, or by the loopback where there is none.
    package var reachable: ListenEndpoint {
        guard case .tcp(let host, let port) = self else { return self }
        let isIPv6: Bool
        switch host {
        case "0.0.0.0", "0": isIPv6 = false
        case "::", "::0", "0:0:0:0:0:0:0:0": isIPv6 = true
        default: return self
        }
        let own = SystemCalls.ownAddresses()
        let best = own.first { $0.isIPv6 == isIPv6 } ?? (isIPv6 ? own.first : nil)
        return .tcp(host: best?.address ?? (isIPv6 ? "::1" : "127.0.0.1"), port: port)
    }
}
