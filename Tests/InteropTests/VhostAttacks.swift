import Glibc
import TestSupport
import VhostClient
import VhostFrontEnd

/// What a front-end or its guest may try, one thing each.
struct VhostAttack: Sendable, CustomStringConvertible {
    /// What the back-end must do about it.
    enum Answer: Sendable {
        /// It breaks the queue and says so, or closes the connection.
        case broken
        /// It closes the connection, or says no.
        case refused
        /// Whatever it likes.
        case any
    }

    let description: String
    let answer: Answer
    /// Whether features, memory and queues are set up before.
    var isRunning = true
    var options = FrontEndOptions()
    let act: @Sendable (FrontEnd) throws -> Void

    init(
        _ description: String, _ answer: Answer, isRunning: Bool = true,
        _ act: @escaping @Sendable (FrontEnd) throws -> Void
    ) {
        self.description = description
        self.answer = answer
        self.isRunning = isRunning
        self.act = act
    }

    /// Memory that can be taken away again.
    var withLooseMemory: VhostAttack {
        var attack = self
        attack.options.isSealed = false
        return attack
    }

    static let all = rings + chains + messages + descriptors + memory + floods + midst + late
}

// What attacks are made of.
extension FrontEnd {
    var ring: DriverQueue { queues[0].driver }

    /// Writes a descriptor as it is.
    func describe(
        _ index: UInt16, _ address: UInt64, _ count: UInt32, _ flags: UInt16, next: UInt16 = 0
    ) {
        memory.write(
            little(address) + little(count) + little(flags) + little(next),
            ring.descriptors + 16 * UInt64(index))
    }

    /// Makes heads available, whatever they are, and kicks.
    func offer(_ heads: [UInt16], index: UInt16? = nil) {
        for (place, head) in heads.enumerated() {
            memory.write16(head, ring.available + 4 + 2 * UInt64(place))
        }
        memory.write16(index ?? UInt16(heads.count), ring.available + 2)
        memory.fence()
        queues[0].kick.signal()
    }

    /// A read of 4 KiB whose parts lie where they should: descriptors 0, 1 and 2.
    func describeRead() {
        memory.write([UInt8](repeating: 0, count: 16), dataStart)
        describe(0, dataStart, 16, 1, next: 1)
        describe(1, dataStart + 4096, 4096, 3, next: 2)
        describe(2, dataStart + 32, 1, 2)
    }

    /// A flush: descriptors 0 and 1.
    func describeFlush() {
        memory.write(little(UInt32(4)) + [UInt8](repeating: 0, count: 12), dataStart)
        describe(0, dataStart, 16, 1, next: 1)
        describe(1, dataStart + 32, 1, 2)
    }
}

extension VhostAttack {
    /// The available ring says what cannot be.
    private static let rings = [
        VhostAttack("an available index that jumps", .broken) { $0.offer([0], index: 500) },
        VhostAttack("an available index that goes back", .broken) { $0.offer([0], index: 0xfff0) },
        VhostAttack("a head outside the table", .broken) { $0.offer([9999]) },
        VhostAttack("the same head twice, while it is in flight", .broken) {
            $0.describeFlush()
            $0.offer([0, 0, 0, 0])
        },
        // A read of the page cache is answered, and its head free, before the next is taken.
        VhostAttack("the same head twice, one after the other", .any) {
            $0.describeRead()
            $0.offer([0, 0, 0, 0])
        },
        VhostAttack("a ring that is written over while it is read", .any) { frontEnd in
            var generator = SeededGenerator(seed: 5)
            frontEnd.describeRead()
            let bytes = Int(DriverQueue.byteCount(frontEnd.options.queueSize))
            for index in 0..<20_000 {
                let place = UInt64(generator.below(bytes - 8))
                frontEnd.memory.write(generator.bytes(8), place)
                if index % 20 == 0 { frontEnd.queues[0].kick.signal() }
            }
        },
    ]

    /// Chains that lead nowhere.
    private static let chains = [
        VhostAttack("a descriptor that follows itself", .broken) {
            $0.describe(0, $0.dataStart, 16, 1, next: 0)
            $0.offer([0])
        },
        VhostAttack("a loop of three", .broken) {
            for index: UInt16 in 0..<3 {
                $0.describe(index, $0.dataStart, 16, 1, next: (index + 1) % 3)
            }
            $0.offer([0])
        },
        VhostAttack("a next outside the table", .broken) {
            $0.describe(0, $0.dataStart, 16, 1, next: 60_000)
            $0.offer([0])
        },
        VhostAttack("a chain without a status", .broken) {
            $0.describe(0, $0.dataStart, 16, 0)
            $0.offer([0])
        },
        VhostAttack("addresses outside memory", .any) {
            $0.describeRead()
            $0.describe(1, 1 << 45, 4096, 3, next: 2)
            $0.offer([0])
        },
        VhostAttack("a length past the end of memory", .any) {
            $0.describeRead()
            $0.describe(1, UInt64($0.memory.byteCount) - 512, 0xffff_fe00, 3, next: 2)
            $0.offer([0])
        },
        VhostAttack("an address whose end overflows", .any) {
            $0.describeRead()
            $0.describe(1, .max - 511, 4096, 3, next: 2)
            $0.offer([0])
        },
        VhostAttack("a table in itself", .any) {
            let table = $0.dataStart
            $0.memory.write(
                little(table) + little(UInt32(16)) + little(UInt16(4)) + little(UInt16(0)), table)
            $0.describe(0, table, 16, 4)
            $0.offer([0])
        },
        VhostAttack("a table outside memory, and one of odd length", .any) {
            $0.describe(0, 1 << 45, 48, 4)
            $0.describe(1, $0.dataStart, 47, 4)
            $0.describe(2, $0.dataStart, 0, 4)
            $0.offer([0, 1, 2])
        },
        VhostAttack("a request over the rings themselves", .any) {
            $0.describeRead()
            $0.describe(1, $0.ring.descriptors, 4096, 3, next: 2)
            $0.offer([0])
        },
    ]

    /// Messages that make no sense.
    private static let messages = [
        VhostAttack("an unknown request", .refused, isRunning: false) {
            try $0.socket.send(ClientMessage(4711, [1, 2, 3]).acknowledged)
        },
        VhostAttack("a message of four gigabytes", .refused, isRunning: false) {
            var message = ClientMessage.setFeatures(0)
            message.announced = 0xffff_ffff
            try $0.socket.send(message)
        },
        VhostAttack("half a header, and no more", .any, isRunning: false) {
            try $0.socket.send(Array(ClientMessage.getFeatures.bytes.prefix(5)))
        },
        VhostAttack("noise", .refused, isRunning: false) {
            var generator = SeededGenerator(seed: 11)
            try $0.socket.send(generator.bytes(4096))
        },
        VhostAttack("a queue that there is not", .refused) {
            try $0.socket.send(ClientMessage.setSize(4000, 128).acknowledged)
        },
        VhostAttack("a size that is no power of two", .refused, isRunning: false) {
            try $0.agree()
            try $0.shareMemory()
            try $0.socket.send(ClientMessage.setSize(0, 100).acknowledged)
        },
        VhostAttack("rings outside memory", .refused, isRunning: false) {
            try $0.agree()
            try $0.shareMemory()
            try $0.socket.command(.setSize(0, 128))
            try $0.socket.send(
                ClientMessage.setAddresses(0, descriptors: 64, used: 64, available: 64)
                    .acknowledged)
            try $0.socket.send(ClientMessage.setKick(0).acknowledged, [$0.queues[0].kick])
        },
        VhostAttack("regions that overlap", .refused, isRunning: false) { frontEnd in
            try frontEnd.agree()
            var regions = frontEnd.regions
            regions[1].guest -= 4096
            try frontEnd.socket.send(
                ClientMessage.setMemory(regions).acknowledged,
                regions.map { _ in frontEnd.memory.descriptor })
        },
        VhostAttack("kicks before there is a queue", .any, isRunning: false) {
            try $0.agree()
            try $0.socket.send(ClientMessage.setKick(0).acknowledged, [$0.queues[0].kick])
            $0.queues[0].kick.signal()
        },
    ]

    /// Descriptors that are something else.
    private static let descriptors = [
        VhostAttack("a file as a kick", .refused) {
            try $0.socket.send(ClientMessage.setKick(0).acknowledged, [.open("/etc/passwd")])
        },
        VhostAttack("the socket itself as a call", .refused) {
            try $0.socket.send(ClientMessage.setCall(0).acknowledged, [$0.socket.descriptor])
        },
        VhostAttack("memory that is a counter", .refused, isRunning: false) { frontEnd in
            try frontEnd.agree()
            try frontEnd.socket.send(
                ClientMessage.setMemory(frontEnd.regions).acknowledged,
                frontEnd.regions.map { _ in frontEnd.queues[0].kick })
        },
        VhostAttack("memory that is a device", .refused, isRunning: false) { frontEnd in
            try frontEnd.agree()
            try frontEnd.socket.send(
                ClientMessage.setMemory(frontEnd.regions).acknowledged,
                frontEnd.regions.map { _ throws in try .open("/dev/zero") })
        },
        VhostAttack("memory that is shorter than it is said to be", .refused, isRunning: false) {
            try $0.agree()
            var regions = $0.regions
            regions[1].size *= 4
            let memory = $0.memory.descriptor
            try $0.socket.send(
                ClientMessage.setMemory(regions).acknowledged, [memory, memory])
        },
        VhostAttack("no descriptors where there should be two", .refused, isRunning: false) {
            try $0.agree()
            try $0.socket.send(ClientMessage.setMemory($0.regions).acknowledged)
        },
        VhostAttack("sixteen descriptors where there should be none", .any, isRunning: false) {
            let memory = $0.memory.descriptor
            try $0.socket.send(
                ClientMessage.getFeatures, [Descriptor](repeating: memory, count: 16))
        },
        VhostAttack("an in-flight area that is somebody's memory", .refused, isRunning: false) {
            try $0.agreeWithoutArea()
            try $0.socket.send(
                ClientMessage.setInflight(bytes: 1 << 20, queues: 1, size: 128).acknowledged,
                [$0.memory.descriptor])
        }.withLooseMemory,
    ]

    /// Memory that goes away.
    private static let memory = [
        VhostAttack("all memory is taken away, then a kick", .broken) {
            try $0.memory.shrink(to: 0)
            $0.queues[0].kick.signal()
        }.withLooseMemory,
        VhostAttack("the data's memory is taken away under requests", .any) {
            $0.describeRead()
            try $0.memory.shrink(to: Int($0.dataStart) + 4096)
            $0.offer([0])
        }.withLooseMemory,
        VhostAttack("memory is replaced while a queue runs", .any) { frontEnd in
            frontEnd.describeRead()
            frontEnd.offer([0])
            try frontEnd.socket.send(
                ClientMessage.setMemory([frontEnd.regions[0]]).acknowledged,
                [frontEnd.memory.descriptor])
        },
    ]

    /// Too much of everything, and counters that are full.
    private static let floods = [
        VhostAttack("ten thousand questions, and nobody reads the answers", .any) {
            $0.socket.descriptor.setBlocking(false)
            for _ in 0..<10_000 {
                // It ends when the socket is full.
                do { try $0.socket.send(.getFeatures) } catch { break }
            }
        },
        VhostAttack("a call that blocks: its counter is full", .any) {
            $0.queues[0].call.take()
            $0.queues[0].call.signal(.max - 1)
            $0.queues[0].call.setBlocking(true)
            $0.describeRead()
            $0.offer([0])
        },
        VhostAttack("a kick that is full, and blocks", .any) {
            $0.queues[0].kick.signal(.max - 1)
            $0.queues[0].kick.setBlocking(true)
        },
        VhostAttack("a guest that vanishes with forty requests in flight", .any) { frontEnd in
            for request: UInt16 in 0..<40 {
                let start = frontEnd.dataStart + UInt64(request) << 16
                frontEnd.memory.write(
                    little(UInt32(1)) + little(UInt32(0)) + little(UInt64(request) * 128), start)
                frontEnd.describe(3 * request, start, 16, 1, next: 3 * request + 1)
                frontEnd.describe(3 * request + 1, start + 4096, 32_768, 1, next: 3 * request + 2)
                frontEnd.describe(3 * request + 2, start + 32, 1, 2)
            }
            frontEnd.offer((0..<40).map { 3 * $0 })
            frontEnd.vanish()
        },
    ]
}

extension FrontEnd {
    /// Agrees on everything but an area for requests in flight that the back-end makes.
    func agreeWithoutArea() throws {
        let offered = try socket.ask(.getProtocolFeatures).word
        try socket.send(.setProtocolFeatures(offered))
        try socket.command(.setOwner)
    }
}
