import CFrontEnd
import Glibc
package import VhostClient

/// What a front-end asks for.
package struct FrontEndOptions: Sendable {
    package var queues = 1
    package var queueSize: UInt16 = 128
    package var hasEventIndex = true
    package var hasIndirect = true
    /// Requests in flight are remembered in memory that outlives the back-end.
    package var remembersInFlight = true
    /// Memory for data, in bytes.
    package var dataBytes = 64 << 20
    /// How many regions it comes in; pieces of equal length, at addresses of their own here.
    package var regions = 2
    /// Memory of which no back-end can be robbed.
    package var isSealed = true

    package init() {}
}

/// A queue with its notifications.
package final class FrontEndQueue {
    package let driver: DriverQueue
    package let kick: Descriptor
    package let call: Descriptor
    package let failure: Descriptor

    init(_ driver: DriverQueue) throws {
        self.driver = driver
        kick = try .event()
        call = try .event()
        failure = try .event()
    }
}

/// A hypervisor's part: memory, queues, and the socket on which the back-end hears of them.
package final class FrontEnd {
    // Numbers of the specifications, this client's own.
    private static let version1: UInt64 = 1 << 32
    private static let extensible: UInt64 = 1 << 30
    private static let eventIndex: UInt64 = 1 << 29
    private static let indirect: UInt64 = 1 << 28
    private static let severalQueues: UInt64 = 1 << 12
    package static let discards: UInt64 = 1 << 13
    package static let writesZeroes: UInt64 = 1 << 14
    package static let readOnly: UInt64 = 1 << 5
    private static let blockFeatures: UInt64 =
        1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | severalQueues | discards | writesZeroes
    private static let acknowledges: UInt64 = 1 << 3
    private static let hasConfiguration: UInt64 = 1 << 9
    private static let inFlightArea: UInt64 = 1 << 12
    private static let multiQueue: UInt64 = 1 << 0

    package let path: String
    package let options: FrontEndOptions
    package let memory: SharedMemory
    package let queues: [FrontEndQueue]
    /// Where memory for data begins.
    package let dataStart: UInt64
    package private(set) var socket: MessageSocket
    /// Agreed features, and extensions of the protocol.
    package private(set) var features: UInt64 = 0
    package private(set) var extensions: UInt64 = 0
    /// The device's configuration space.
    package private(set) var configuration: [UInt8] = []
    private var area: (descriptor: Descriptor, bytes: UInt64)?

    /// Connects, agrees on features, and starts all queues.
    package convenience init(
        _ path: String, _ options: FrontEndOptions = FrontEndOptions()
    ) throws {
        try self.init(connecting: path, options)
        try begin()
    }

    /// Connects, and says nothing yet.
    package init(
        connecting path: String, _ options: FrontEndOptions = FrontEndOptions()
    ) throws {
        self.path = path
        self.options = options
        let ringBytes = (DriverQueue.byteCount(options.queueSize) + 4095) & ~4095
        dataStart = ringBytes * UInt64(options.queues)
        let unit = 4096 * options.regions
        let bytes = (Int(dataStart) + options.dataBytes + unit - 1) / unit * unit
        let memory = try SharedMemory(bytes: bytes, isSealed: options.isSealed)
        self.memory = memory
        queues = try (0..<options.queues).map { index throws in
            try FrontEndQueue(
                DriverQueue(
                    memory, size: options.queueSize, at: ringBytes * UInt64(index),
                    hasEventIndex: options.hasEventIndex))
        }
        socket = try MessageSocket(path)
    }

    /// Whether requests may use tables of descriptors.
    package var usesIndirect: Bool { features & Self.indirect != 0 }

    package var diskBytes: Int { Int(number(configuration, 0, as: UInt64.self)) * 512 }

    /// Where this process says that an address of the guest is: both sides have to translate.
    package func userAddress(_ address: UInt64) -> UInt64 {
        let regionBytes = UInt64(memory.byteCount / options.regions)
        return 0x7000_0000_0000 + address + (address / regionBytes) << 40
    }

    /// The memory's regions.
    package var regions: [ClientRegion] {
        let regionBytes = UInt64(memory.byteCount / options.regions)
        return (0..<UInt64(options.regions)).map {
            let start = $0 * regionBytes
            return ClientRegion(
                guest: start, size: regionBytes, user: userAddress(start), offset: start)
        }
    }

    /// Agrees on features and hands over memory and queues.
    package func begin() throws {
        try agree()
        try shareMemory()
        for index in queues.indices { try start(queue: index) }
    }

    /// Features and extensions, and the configuration space.
    package func agree() throws {
        let offered = try socket.ask(.getFeatures).word
        guard offered & Self.extensible != 0, offered & Self.version1 != 0 else {
            throw ClientViolation("features \(offered): neither extensible nor version 1")
        }
        var wanted = Self.acknowledges | Self.hasConfiguration | Self.multiQueue
        if options.remembersInFlight { wanted |= Self.inFlightArea }
        extensions = try socket.ask(.getProtocolFeatures).word & wanted
        guard extensions & Self.acknowledges != 0, extensions & Self.hasConfiguration != 0 else {
            throw ClientViolation("protocol features \(extensions): no answers, no configuration")
        }
        try socket.send(.setProtocolFeatures(extensions))
        if options.queues > 1 {
            let most = try socket.ask(.getQueueCount).word
            guard most >= UInt64(options.queues) else {
                throw ClientViolation("\(options.queues) queues are wanted, \(most) are offered")
            }
        }
        try socket.command(.setOwner)
        let answer = try socket.ask(.getConfig(offset: 0, size: 60)).payload
        guard answer.count == 72 else { throw ClientViolation("no configuration space") }
        configuration = Array(answer[12...])
        var bits = Self.version1 | Self.extensible | Self.blockFeatures
        if options.hasEventIndex { bits |= Self.eventIndex }
        if options.hasIndirect { bits |= Self.indirect }
        features = offered & bits
        guard !options.hasEventIndex || features & Self.eventIndex != 0 else {
            throw ClientViolation("no event index is offered")
        }
        if extensions & Self.inFlightArea != 0 { try shareInFlightArea() }
        try socket.command(.setFeatures(features))
    }

    private func shareInFlightArea() throws {
        let count = UInt16(options.queues)
        if area == nil {
            let request = ClientMessage.getInflight(queues: count, size: options.queueSize)
            try socket.send(request)
            let (reply, passed) = try socket.reply(to: request.request)
            guard let passed, reply.payload.count >= 20 else {
                throw ClientViolation("no area for requests in flight")
            }
            area = (passed, number(reply.payload, 0, as: UInt64.self))
        }
        guard let area else { return }
        try socket.command(
            .setInflight(bytes: area.bytes, queues: count, size: options.queueSize),
            [area.descriptor])
    }

    package func shareMemory() throws {
        try socket.command(.setMemory(regions), regions.map { _ in memory.descriptor })
    }

    /// Hands a queue over and lets it run from where it is.
    package func start(queue index: Int) throws {
        let number = UInt32(index)
        let queue = queues[index]
        try socket.command(.setSize(number, UInt32(options.queueSize)))
        try socket.command(.setBase(number, UInt32(queue.driver.collected)))
        try socket.command(
            .setAddresses(
                number, descriptors: userAddress(queue.driver.descriptors),
                used: userAddress(queue.driver.used),
                available: userAddress(queue.driver.available)))
        try socket.command(.setCall(UInt64(index)), [queue.call])
        try socket.command(.setError(UInt64(index)), [queue.failure])
        try socket.command(.setKick(UInt64(index)), [queue.kick])
        try socket.command(.setEnable(number, 1))
    }

    /// Stops a queue, and returns the index that it would take next.
    @discardableResult
    package func stop(queue index: Int) throws -> UInt16 {
        let reply = try socket.ask(.getBase(UInt32(index)))
        guard reply.payload.count == 8 else { throw ClientViolation("no base in the reply") }
        return UInt16(truncatingIfNeeded: number(reply.payload, 4, as: UInt32.self))
    }

    /// Connects again after the back-end was restarted; requests in flight go on.
    ///
    /// Nothing is kicked: what the back-end missed it has to find by itself.
    package func reconnect() throws {
        socket = try MessageSocket(path)
        try begin()
    }

    /// Leaves without a word.
    package func vanish() { shutdown(socket.descriptor.number, Int32(SHUT_RDWR)) }
}
