import Foundation
package import ServerInterface
import SystemLayer

/// A newcomer that wants to take this server's place.
///
/// Every wait has an end, and a newcomer of which nothing is heard any more is ended itself: then
/// nothing of it can reach a disk, and this server goes on.
package final class HandoverRequest: Sendable {
    /// The version that comes, and where its program lies.
    package let program: String
    package let executable: String
    /// The newcomer's process.
    package let process: Int32

    private let channel: HandoverChannel
    private let newcomer: OtherProcess
    private let onEnd: @Sendable () -> Void

    init(
        _ hello: HandoverMessage, _ channel: HandoverChannel, _ newcomer: consuming OtherProcess,
        onEnd: @escaping @Sendable () -> Void
    ) {
        program = hello.program ?? "unknown"
        executable = hello.executable ?? "unknown"
        process = newcomer.number
        self.channel = channel
        self.newcomer = newcomer
        self.onEnd = onEnd
    }

    /// For messages: what comes, and where from.
    package var text: String { "version \(program) (process \(process), '\(executable)')" }

    /// Whether the newcomer is still there.
    package var isAlive: Bool { !newcomer.hasEnded(within: 0) }

    /// Nothing comes of it; this server has not stopped serving.
    package func refuse(_ reason: String) {
        channel.send(.refused(reason))
        onEnd()
    }

    /// Whether the newcomer, welcomed, still wants to.
    package func welcome(_ identity: ServerIdentity) async -> Bool {
        let channel = channel
        channel.send(.welcome(identity))
        let message = await onThread {
            channel.message(within: HandoverLimits.takeMilliseconds)
        }
        guard message?.kind == .take else {
            onEnd()
            return false
        }
        return true
    }

    /// Gives the newcomer the sockets: from now on the disks are its own.
    package func give(_ sockets: [SocketKeep.Socket]) {
        var rest = sockets[...]
        while !rest.isEmpty {
            let part = rest.prefix(HandoverLimits.socketsPerMessage)
            rest = rest.dropFirst(part.count)
            channel.send(.sockets(part.map(\.place)), passing: part.map(\.descriptor))
        }
        channel.send(HandoverMessage(.go))
    }

    /// How it ended.
    package enum Outcome: Sendable, Hashable {
        case serving
        /// The newcomer has ended; the text says why this server goes on.
        case failed(String)
    }

    /// Waits until the newcomer serves, or nothing of it is left.
    package func outcome() async -> Outcome {
        let failure = await onThread { self.waitForServing() }
        guard let failure else { return .serving }
        await onThread { self.end() }
        onEnd()
        return .failed(failure)
    }

    private func waitForServing() -> String? {
        let end = MonotonicClock.now() + UInt64(HandoverLimits.servingMilliseconds) * 1_000_000
        while MonotonicClock.now() < end {
            switch channel.receive(milliseconds: HandoverLimits.silenceMilliseconds) {
            case .ended: return "it has ended"
            case .nothing:
                return "nothing was heard of it for"
                    + " \(HandoverLimits.silenceMilliseconds / 1000) s"
            case .message(let message, let passed):
                for number in passed { OwnedDescriptor.closeNumber(number) }
                switch message.kind {
                case .serving: return nil
                case .failed: return message.reason ?? "it has failed"
                default: continue
                }
            }
        }
        return "it did not serve within \(HandoverLimits.servingMilliseconds / 1000) s"
    }

    /// One that has failed ends by itself, with more to say; any other, and one that does not, is
    /// ended.
    private func end() {
        if newcomer.hasEnded(within: HandoverLimits.endMilliseconds) { return }
        _ = newcomer.kill(milliseconds: HandoverLimits.killMilliseconds)
    }

    /// The newcomer serves and is told that it is alone; this server ends.
    package func confirm() { channel.send(HandoverMessage(.done)) }

    /// Has the newcomer stop in order.
    package func stopNewcomer() { newcomer.signal(SIGTERM) }
}

/// How long servers wait for each other.
enum HandoverLimits {
    /// A `hello` comes at once, in milliseconds.
    static let helloMilliseconds: Int32 = 2_000
    /// A newcomer that was welcomed has everything prepared; nobody waits for it, in milliseconds.
    static let takeMilliseconds: Int32 = 10_000
    /// The other lets go of its disks or says that it cannot, in milliseconds: longer than all of
    /// its own waits together.
    static let goMilliseconds: Int32 = 90_000
    /// How often a newcomer beats, in milliseconds.
    static let beatMilliseconds = 500
    /// One that has not been heard of for so long hangs, in milliseconds: machines wait.
    static let silenceMilliseconds: Int32 = 5_000
    /// It serves by then, in milliseconds: longer than a start waits for storage that does not
    /// answer.
    static let servingMilliseconds: Int32 = 30_000
    /// A door is closed by then, in milliseconds.
    static let closingMilliseconds: Int32 = 200
    /// One that has failed ends by then, in milliseconds.
    static let endMilliseconds: Int32 = 500
    /// What was killed has ended by then, in milliseconds, unless the kernel holds it.
    static let killMilliseconds: Int32 = 10_000
    /// `done` comes at once, in milliseconds.
    static let doneMilliseconds: Int32 = 3_000
    static let socketsPerMessage = MessageSocket.passedMax
}
