import Foundation
package import ServerInterface
import Synchronization
import SystemLayer

/// Where newcomers ask to take this server's place: a socket in the run directory, for its own user
/// only.
///
/// One at a time; others are refused at once.
package final class HandoverDoor: Sendable {
    /// The socket's name in the run directory.
    package static let name = "takeover.sock"

    private let identity: ServerIdentity
    private let place: SocketPlace
    private let sockets: SocketKeep
    private let isManaged: Bool
    private let socket: Mutex<MessageSocket?>
    private let raw: Int32
    private let wake: EventDescriptor
    private let ended = Latch(count: 1)
    private let state = Mutex(State())

    private struct State {
        /// The process that is taking this server's place.
        var busy: Int32?
        var isClosed = false
    }

    /// Listens; `isManaged`: a service manager takes this server for a process of its service.
    package init(
        _ identity: ServerIdentity, _ sockets: SocketKeep, isManaged: Bool
    ) throws(HandoverFault) {
        self.identity = identity
        self.sockets = sockets
        self.isManaged = isManaged
        let path = identity.runDirectory + "/" + Self.name
        place = SocketPlace(.handover, path)
        do throws(SystemFault) {
            wake = try EventDescriptor()
            let socket =
                if let number = sockets.take(place) {
                    MessageSocket(adopting: OwnedDescriptor(adopting: number))
                } else {
                    try MessageSocket.listen(path: path)
                }
            raw = socket.raw
            sockets.added(place, raw)
            self.socket = Mutex(consume socket)
        } catch {
            throw HandoverFault(
                "cannot listen on '\(path)': \(error.call): \(error.errorText)")
        }
    }

    /// Lets newcomers in.
    package func open(_ onRequest: @escaping @Sendable (HandoverRequest) -> Void) {
        let isStarted = DetachedThread.run(name: "nbdpull-door") {
            self.run(onRequest)
            self.ended.arrive()
        }
        if !isStarted { ended.arrive() }
    }

    /// Lets nobody in any more; the socket's file stays for the next server, or goes.
    package func close(keepingFile: Bool) {
        let isFirst = state.withLock { state in
            defer { state.isClosed = true }
            return !state.isClosed
        }
        guard isFirst else { return }
        wake.signal()
        // One that is just being heard finds this server busy.
        _ = ended.wait(milliseconds: HandoverLimits.closingMilliseconds)
        if !keepingFile {
            sockets.removed(place)
            try? FileCalls.remove(place.address)
        }
        socket.withLock { socket in _ = socket.take() }
    }

    private func run(_ onRequest: @Sendable (HandoverRequest) -> Void) {
        while !state.withLock(\.isClosed) {
            guard Polling.waitForInput([raw, wake.raw], milliseconds: -1) == 0 else { continue }
            guard let channel = accept() else { continue }
            if let request = admit(channel) { onRequest(request) }
        }
    }

    private func accept() -> HandoverChannel? {
        socket.withLock { socket in
            guard let accepted = try? socket?.accept(milliseconds: 0) else {
                // Out of descriptors: those in the queue wait a moment longer.
                usleep(10_000)
                return nil
            }
            return HandoverChannel(accepted)
        }
    }

    /// Hears who it is; nil when it was refused.
    private func admit(_ channel: HandoverChannel) -> HandoverRequest? {
        guard let peer = channel.peer(), let newcomer = try? OtherProcess(peer.process),
            let hello = channel.message(within: HandoverLimits.helloMilliseconds),
            hello.kind == .hello
        else { return nil }
        if let reason = refusal(of: hello, peer.process, peer.user) {
            channel.send(.refused(reason))
            return nil
        }
        let other = state.withLock { state -> Int32? in
            if let busy = state.busy { return busy }
            state.busy = peer.process
            return nil
        }
        if let other {
            channel.send(.refused("process \(other) is taking over at this moment"))
            return nil
        }
        return HandoverRequest(hello, channel, newcomer) {
            self.state.withLock { $0.busy = nil }
        }
    }

    private func refusal(of hello: HandoverMessage, _ process: Int32, _ user: UInt32) -> String? {
        guard user == SystemFacts.effectiveUser else {
            return "it is user \(user)'s: only user \(SystemFacts.effectiveUser), who runs this"
                + " server, may start the next one"
        }
        guard hello.version == HandoverMessage.protocolVersion else {
            return "version \(hello.program ?? "unknown") takes over by other rules than version"
                + " \(identity.program): stop this server, then start the other"
        }
        if let state = hello.stateDirectory, state != identity.stateDirectory {
            return "its state directory is '\(state)', this server's is"
                + " '\(identity.stateDirectory)'"
        }
        if let run = hello.runDirectory, run != identity.runDirectory {
            return "its run directory is '\(run)', this server's is '\(identity.runDirectory)'"
        }
        if isManaged, Self.group(of: process) != Self.group(of: getpid()) {
            return "a service manager runs this server, and would not take the other for the same"
                + " service: send this one SIGUSR2 (systemctl kill -s USR2), or restart the service"
        }
        return nil
    }

    /// What a service manager knows a process by.
    private static func group(of process: Int32) -> [UInt8] {
        let path = "/proc/\(process)/cgroup"
        guard let descriptor = try? FileCalls.open(path, []) else { return [] }
        return (try? FileCalls.readAll(descriptor.raw, count: 4096)) ?? []
    }
}
