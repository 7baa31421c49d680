import NIOCore
import NIOHTTP1
import NIOPosix
import ServiceLifecycle
import Synchronization

/// The port for watching: metrics, health and a page to look at, over HTTP/1.1, read only.
///
/// It has an event loop of its own and computes an answer once for all who ask, so that nobody here
/// can keep the control socket waiting.
package final class MonitorServer: Service {
    private let pages: MonitorPages
    private let socket: Int32
    private let door = MonitorDoor()

    /// Descriptors that it can come to use: connections, and those of its event loop.
    package static var descriptorsMax: Int { MonitorLimits.connectionsMax + 8 }

    /// Serves on a socket that listens already, and closes it afterwards.
    package init(
        socket: Int32, settings: MonitorSettings, manager: JobManager, version: String
    ) {
        pages = MonitorPages(
            manager: manager, version: version,
            hosts: HostRule(names: settings.names, ownName: SystemCalls.hostName))
        self.socket = socket
    }

    /// Serves until graceful shutdown; answers in progress are cut off then.
    package func run() async throws {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let (pages, door) = (pages, door)
        let channel: any Channel
        do {
            channel = try await ServerBootstrap(group: group)
                .childChannelInitializer { channel in Self.greet(channel, pages, door) }
                .childChannelOption(.maxMessagesPerRead, value: 1)
                .withBoundSocket(socket).get()
        } catch {
            try? await group.shutdownGracefully()
            throw ControlError(
                .systemError, code: "metrics-port-failed", status: 500,
                detail: "cannot serve --metrics: \(error)")
        }
        try? await gracefulShutdown()
        try? await channel.close()
        door.closeAll()
        try? await group.shutdownGracefully()
    }

    private static func greet(
        _ channel: any Channel, _ pages: MonitorPages, _ door: MonitorDoor
    ) -> EventLoopFuture<Void> {
        channel.eventLoop.makeCompletedFuture {
            guard let number = door.admit(channel) else { throw ChannelError.eof }
            let pipeline = channel.pipeline.syncOperations
            try pipeline.configureHTTPServerPipeline(
                withPipeliningAssistance: true, withErrorHandling: true,
                withEncoderConfiguration: .init(),
                withDecoderLimitConfiguration: MonitorLimits.decoder)
            try pipeline.addHandler(
                MonitorChannel(channel: channel, pages: pages, door: door, number: number))
        }
    }
}

/// Who is connected to the port for watching.
///
/// When it is full, the connection that has asked nothing for the longest time makes way.
final class MonitorDoor: Sendable {
    private struct Guest {
        let channel: any Channel
        var isAnswered = false
    }

    private struct State {
        /// By number; numbers ascend.
        var guests: [UInt64: Guest] = [:]
        var lastNumber: UInt64 = 0
    }

    private let state = Mutex(State())

    /// Connections that there are.
    var count: Int { state.withLock { $0.guests.count } }

    /// The number of a new connection; nil: there is no room, and nobody makes way.
    func admit(_ channel: any Channel) -> UInt64? {
        let (number, evicted) = state.withLock { state -> (UInt64?, (any Channel)?) in
            var evicted: (any Channel)?
            if state.guests.count >= MonitorLimits.connectionsMax {
                let idle = state.guests.filter { !$0.value.isAnswered }.keys.min()
                guard let idle else { return (nil, nil) }
                evicted = state.guests.removeValue(forKey: idle)?.channel
            }
            state.lastNumber += 1
            state.guests[state.lastNumber] = Guest(channel: channel)
            return (state.lastNumber, evicted)
        }
        evicted?.close(promise: nil)
        return number
    }

    /// Says whether a connection's request is being answered.
    ///
    /// One that has been answered counts as new: returns its number from now on.
    func set(_ number: UInt64, isAnswered: Bool) -> UInt64 {
        state.withLock { state in
            guard var guest = state.guests.removeValue(forKey: number) else { return number }
            guest.isAnswered = isAnswered
            state.lastNumber += 1
            state.guests[state.lastNumber] = guest
            return state.lastNumber
        }
    }

    func leave(_ number: UInt64) { state.withLock { _ = $0.guests.removeValue(forKey: number) } }

    func closeAll() {
        let guests = state.withLock { Array($0.guests.values) }
        for guest in guests { guest.channel.close(promise: nil) }
    }
}
