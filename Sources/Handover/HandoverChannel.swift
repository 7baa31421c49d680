import Foundation
import ServerInterface
import SystemLayer

/// One side of the conversation of two servers.
final class HandoverChannel: Sendable {
    /// What has come.
    enum Received: Sendable {
        case message(HandoverMessage, passed: [Int32])
        /// The other side is gone, or says what nobody understands.
        case ended
        case nothing
    }

    private let socket: MessageSocket

    init(_ socket: consuming MessageSocket) { self.socket = socket }

    /// False when the other side is gone.
    @discardableResult
    func send(_ message: HandoverMessage, passing passed: [Int32] = []) -> Bool {
        let encoder = JSONEncoder()
        guard let data = try? encoder.encode(message) else { return false }
        do throws(SystemFault) {
            try socket.send(Array(data), passing: passed)
            return true
        } catch {
            return false
        }
    }

    /// The next message; a negative time waits for ever.
    func receive(milliseconds: Int32) -> Received {
        do throws(SystemFault) {
            switch try socket.receive(milliseconds: milliseconds) {
            case .nothing: return .nothing
            case .ended: return .ended
            case .message(let bytes, let passed):
                guard
                    let message = try? JSONDecoder().decode(
                        HandoverMessage.self, from: Data(bytes)),
                    (message.places?.count ?? 0) == passed.count
                else {
                    for number in passed { OwnedDescriptor.closeNumber(number) }
                    return .ended
                }
                return .message(message, passed: passed)
            }
        } catch {
            return .ended
        }
    }

    /// The same for a message without descriptors; nil when none has come in time, or the other
    /// side is gone.
    func message(within milliseconds: Int32) -> HandoverMessage? {
        guard case .message(let message, let passed) = receive(milliseconds: milliseconds) else {
            return nil
        }
        for number in passed { OwnedDescriptor.closeNumber(number) }
        return message
    }

    /// Who is at the other side, and the user it had when it connected.
    func peer() -> (process: Int32, user: UInt32)? { try? socket.peer() }
}

/// Runs what waits on a thread of its own.
func onThread<Value: Sendable>(_ body: @escaping @Sendable () -> Value) async -> Value {
    await withCheckedContinuation { continuation in
        let isStarted = DetachedThread.run(name: "nbdpull-hand") {
            continuation.resume(returning: body())
        }
        // It waits for a bounded time only.
        if !isStarted { continuation.resume(returning: body()) }
    }
}
