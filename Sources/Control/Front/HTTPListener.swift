import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import NIOPosix
import ServiceLifecycle
import Synchronization

/// HTTP/1.1 on a listening socket, whoever has bound it.
struct HTTPListener: Service {
    /// Where the socket comes from.
    enum Place: Sendable {
        /// Bound here.
        case path(String)
        /// It listens already; this listener closes it.
        case socket(Int32)
    }

    let place: Place
    let responder: any HTTPResponder<BasicRequestContext>
    let idleSeconds: Int64
    let logger: Logger
    let onReady: @Sendable () async -> Void

    /// Serves until graceful shutdown, then lets the requests in progress finish.
    func run() async throws {
        let http = HTTP1Channel(
            responder: { request, writer, channel in
                let context = BasicRequestContext(
                    source: ApplicationRequestContextSource(channel: channel, logger: logger))
                let response = try await responder.respond(to: request, context: context)
                try await writer.write(response: response.head, body: response.body)
            }, configuration: HTTP1Channel.Configuration(idleTimeout: .seconds(idleSeconds)))
        let (accepted, continuation) = AsyncStream.makeStream(of: HTTP1Channel.Value.self)
        let callers = HTTPCallers { continuation.finish() }
        let bootstrap = ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.backlog, value: 256)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelInitializer { [logger] channel in
                guard callers.admit(channel) else {
                    return channel.eventLoop.makeFailedFuture(ChannelError.ioOnClosedChannel)
                }
                return http.setup(channel: channel, logger: logger).map { value in
                    _ = continuation.yield(value)
                }
            }
        let listener =
            switch place {
            case .path(let path): try await bootstrap.bind(unixDomainSocketPath: path).get()
            case .socket(let socket): try await bootstrap.withBoundSocket(socket).get()
            }
        await withGracefulShutdownHandler {
            await onReady()
            await withDiscardingTaskGroup { group in
                for await value in accepted {
                    group.addTask { [logger] in await http.handle(value: value, logger: logger) }
                }
            }
        } onGracefulShutdown: {
            listener.close(promise: nil)
            callers.quiesce()
        }
        // A shutdown that was cut short ends here as well.
        listener.close(promise: nil)
        callers.closeAll()
    }
}

/// The connections of an HTTP listener.
private final class HTTPCallers: Sendable {
    private struct State {
        var channels: [ObjectIdentifier: any Channel] = [:]
        var isQuiescing = false
    }

    private let state = Mutex(State())
    private let onEmpty: @Sendable () -> Void

    /// `onEmpty` is called when nobody comes any more and the last has gone.
    init(onEmpty: @escaping @Sendable () -> Void) { self.onEmpty = onEmpty }

    /// False when nobody is let in any more.
    func admit(_ channel: any Channel) -> Bool {
        let isAdmitted = state.withLock { state in
            guard !state.isQuiescing else { return false }
            state.channels[ObjectIdentifier(channel)] = channel
            return true
        }
        guard isAdmitted else { return false }
        let key = ObjectIdentifier(channel)
        channel.closeFuture.whenComplete { _ in self.left(key) }
        return true
    }

    private func left(_ key: ObjectIdentifier) {
        let isLast = state.withLock { state in
            state.channels[key] = nil
            return state.isQuiescing && state.channels.isEmpty
        }
        if isLast { onEmpty() }
    }

    /// Lets nobody in any more; each goes when its request is answered.
    func quiesce() {
        let channels = state.withLock { state in
            state.isQuiescing = true
            return Array(state.channels.values)
        }
        for channel in channels {
            channel.pipeline.fireUserInboundEventTriggered(ChannelShouldQuiesceEvent())
        }
        if channels.isEmpty { onEmpty() }
    }

    func closeAll() {
        let channels = state.withLock { state in
            state.isQuiescing = true
            return Array(state.channels.values)
        }
        for channel in channels { channel.close(promise: nil) }
        onEmpty()
    }
}
