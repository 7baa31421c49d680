import Foundation
package import ServerInterface
import Synchronization
import SystemLayer

/// This server takes another one's place.
package final class Newcomer: Sendable {
    /// The version that is to be replaced, and its process.
    package let program: String
    package let process: Int32

    private let channel: HandoverChannel
    private let isOver = Mutex(false)

    private init(_ channel: HandoverChannel, program: String, process: Int32) {
        self.channel = channel
        self.program = program
        self.process = process
    }

    /// Asks the server of the same run directory; nil when there is none.
    ///
    /// Nothing has happened to it when this returns or throws.
    package static func ask(_ identity: ServerIdentity) async throws(HandoverFault) -> Newcomer? {
        let path = identity.runDirectory + "/" + HandoverDoor.name
        let channel: HandoverChannel
        do throws(SystemFault) {
            channel = HandoverChannel(try MessageSocket.connect(path: path))
        } catch {
            if [Errno.connectionRefused, Errno.notFound].contains(error.errno) { return nil }
            throw HandoverFault(
                "the server behind '\(path)' cannot be asked: \(error.call): \(error.errorText)")
        }
        channel.send(.hello(identity))
        let answer = await onThread { channel.message(within: HandoverLimits.goMilliseconds) }
        guard let answer else {
            throw HandoverFault("the running server does not answer: nothing has changed")
        }
        switch answer.kind {
        case .welcome:
            guard answer.version == HandoverMessage.protocolVersion else {
                throw HandoverFault(
                    "the running server, version \(answer.program ?? "unknown"), leaves by other"
                        + " rules: stop it, then start this one")
            }
            return Newcomer(
                channel, program: answer.program ?? "unknown",
                process: channel.peer()?.process ?? 0)
        case .refused:
            throw HandoverFault(
                "the running server goes on: \(answer.reason ?? "it refuses")")
        default: throw HandoverFault("the running server says what makes no sense")
        }
    }

    /// Takes the other's sockets, once it has let go of its disks.
    package func take() async throws(HandoverFault) -> [SocketKeep.Socket] {
        channel.send(HandoverMessage(.take))
        return try await onThread { self.waitForGo() }.get()
    }

    private func waitForGo() -> Result<[SocketKeep.Socket], HandoverFault> {
        var sockets: [SocketKeep.Socket] = []
        while true {
            guard
                case .message(let message, let passed) = channel.receive(
                    milliseconds: HandoverLimits.goMilliseconds)
            else { return .failure(giveUp(sockets, "it has ended, or says nothing")) }
            for (place, descriptor) in zip(message.places ?? [], passed) {
                sockets.append(.init(place: place, descriptor: descriptor))
            }
            switch message.kind {
            case .sockets: continue
            case .go: return .success(sockets)
            default:
                return .failure(giveUp(sockets, message.reason ?? "it says what makes no sense"))
            }
        }
    }

    private func giveUp(_ sockets: [SocketKeep.Socket], _ reason: String) -> HandoverFault {
        for socket in sockets { OwnedDescriptor.closeNumber(socket.descriptor) }
        return HandoverFault("the running server does not leave: \(reason)")
    }

    /// Lets the other know, until this server serves or has failed, that it is at it.
    package func beat() {
        Task {
            while !self.isOver.withLock({ $0 }) {
                // Gone, it has left everything to this one.
                guard self.channel.send(HandoverMessage(.progress)) else { return }
                try? await Task.sleep(for: .milliseconds(HandoverLimits.beatMilliseconds))
            }
        }
    }

    /// This server serves; returns when the other has ended or is about to.
    package func serving() async {
        isOver.withLock { $0 = true }
        let channel = channel
        channel.send(HandoverMessage(.serving))
        _ = await onThread { channel.message(within: HandoverLimits.doneMilliseconds) }
    }

    /// This server cannot: the other goes on, as soon as this process has ended.
    package func failed(_ reason: String) {
        isOver.withLock { $0 = true }
        channel.send(.failed(reason))
    }
}
