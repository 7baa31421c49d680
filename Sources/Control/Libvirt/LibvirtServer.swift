import Foundation
import Glibc
import LibvirtProtocol
import NIOCore
import NIOPosix
package import ServerInterface
import ServiceLifecycle

/// The libvirt door: a unix socket that speaks libvirt's remote protocol, for unmodified clients of
/// its library.
package struct LibvirtServer: Service {
    let socketPath: String
    let access: SocketAccess
    /// A socket at that path that listens already.
    let socket: Int32?
    let door: LibvirtDoor

    /// `access` is who may open the socket, by default its owner only; `places` are those of the
    /// live exports, by default the manager's own endpoint.
    ///
    /// A `socket` that listens already is used as it is, closed
    /// at the end, and its file stays.
    package init(
        manager: JobManager, socketPath: String, access: SocketAccess = SocketAccess(),
        socket: Int32? = nil, upstream: UpstreamSettings? = nil, places: LivePlaces? = nil
    ) {
        self.socketPath = socketPath
        self.access = access
        self.socket = socket
        door = LibvirtDoor(
            context: LibvirtContext(manager: manager, upstream: upstream, places: places))
    }

    /// Descriptors that the door can come to use: a client's connection, and beside a libvirtd the
    /// one that is opened there for it.
    ///
    /// Freezes have connections of their own, few at a time.
    package static func descriptorsMax(hasUpstream: Bool) -> Int {
        LibvirtLimits.connectionsMax * (hasUpstream ? 2 : 1) + 16
    }

    /// Serves until graceful shutdown, then lets the calls in progress finish and removes the
    /// socket.
    package func run() async throws {
        if socket == nil { try ControlServer.clearStaleSocket(socketPath) }
        let listener = try await listen()
        defer { if socket == nil { _ = try? SystemCalls.unlink(socketPath) } }
        if socket == nil { try permit() }
        let events = LibvirtEvents(door: door)
        await door.context.thresholds.connect { await events.tell($0) }
        let telling = Task { await events.run() }
        try? await gracefulShutdown()
        try? await listener.close()
        for _ in 0..<LibvirtLimits.farewellSeconds * 20 where door.callCount > 0 {
            try? await Task.sleep(for: .milliseconds(50))
        }
        telling.cancel()
        await door.context.thresholds.stop()
        door.closeAll()
    }

    private func listen() async throws -> any Channel {
        let door = door
        do {
            let bootstrap = ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                .serverChannelOption(.backlog, value: 128)
                .childChannelInitializer { channel in Self.greet(channel, door) }
            if let socket { return try await bootstrap.withBoundSocket(socket).get() }
            return try await bootstrap.bind(unixDomainSocketPath: socketPath).get()
        } catch {
            throw ControlError(
                .systemError, code: "libvirt-socket-failed", status: 500,
                detail: "cannot listen on socket '\(socketPath)': \(error)")
        }
    }

    /// The socket has been made for its owner only; now others are let in.
    private func permit() throws(ControlError) {
        do throws(SystemCalls.Failure) {
            try SystemCalls.permit(
                socketPath, mode: access.mode ?? 0o600, group: access.group)
        } catch {
            throw ControlError(
                .systemError, code: "libvirt-socket-failed", status: 500,
                detail: "cannot set permissions of socket '\(socketPath)': \(error.text)")
        }
    }

    private static func greet(_ channel: any Channel, _ door: LibvirtDoor) -> EventLoopFuture<Void>
    {
        peer(of: channel).flatMapThrowing { peer in
            let loop = channel.eventLoop
            let events = EventPort(loop: loop)
            let session = LibvirtSession(
                user: peer.user, process: peer.process, sendEvent: { events.send($0) },
                deliver: { await events.deliver($0) }, hangUp: { events.hangUp() })
            guard let number = door.admit(session, channel) else { throw ChannelError.eof }
            let handler = LibvirtChannel(
                door: door, number: number, session: session, channel: channel)
            events.open(to: handler)
            handler.onFinish = { events.close() }
            try channel.pipeline.syncOperations.addHandler(handler)
        }
    }

    /// Who was at the other end when it connected (SO_PEERCRED).
    private static func peer(of channel: any Channel) -> EventLoopFuture<PeerCredentials> {
        guard let options = channel as? any SocketOptionProvider else {
            return channel.eventLoop.makeSucceededFuture(
                PeerCredentials(process: 0, user: UInt32.max, group: UInt32.max))
        }
        let level = NIOBSDSocket.OptionLevel(rawValue: SOL_SOCKET)
        let name = NIOBSDSocket.Option(rawValue: SO_PEERCRED)
        return options.unsafeGetSocketOption(level: level, name: name)
    }
}

/// What the kernel answers to SO_PEERCRED, field for field.
private struct PeerCredentials: Sendable {
    var process: Int32
    var user: UInt32
    var group: UInt32
}

/// Hands events from any thread to a connection on its event loop.
private final class EventPort: Sendable {
    private let loop: any EventLoop
    private let handler: NIOLoopBoundBox<LibvirtChannel?>

    /// On the loop.
    init(loop: any EventLoop) {
        self.loop = loop
        handler = NIOLoopBoundBox(nil, eventLoop: loop)
    }

    /// On the loop.
    func open(to handler: LibvirtChannel) { self.handler.value = handler }

    /// On the loop: the connection is over, and nothing holds it any more.
    func close() { handler.value = nil }

    func send(_ packet: Packet) {
        let handler = handler
        loop.execute { handler.value?.sendEvent(packet) }
    }

    /// Returns when the packet has left, or never will.
    func deliver(_ packet: Packet) async {
        let (handler, loop) = (handler, loop)
        let sent = loop.flatSubmit { [handler] in
            handler.value?.deliver(packet) ?? loop.makeSucceededVoidFuture()
        }
        try? await sent.get()
    }

    func hangUp() {
        let handler = handler
        loop.execute { handler.value?.hangUp() }
    }
}
