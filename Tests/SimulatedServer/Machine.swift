import Simulation
import SystemLayer
import VhostClient

/// A message of vhost-user on its way, with what comes along.
struct SharedMessage {
    var bytes: [UInt8]
    var descriptors: [Int32] = []
}

/// An event that a machine and the server share.
final class SharedEvent {
    var count: UInt64 = 0
}

/// A step of a front-end towards a queue that runs.
enum FrontEndStep: Hashable {
    case owner, features, protocolFeatures, askInflight, giveInflight, memory, askSize
    case size(Int), addresses(Int), base(Int), call(Int), error(Int), kick(Int), enable(Int)
    case stop(Int)
}

/// A request in a machine's queue.
struct MachineRequest {
    var asked: PeerRequest
    let placement: DriverPlacement
    let slot: UInt64
}

/// One of a machine's queues.
final class MachineQueue {
    let index: Int
    let driver: DriverQueue
    let kick = SharedEvent()
    let call = SharedEvent()
    let error = SharedEvent()
    /// Requests by their heads.
    var requests: [UInt16: MachineRequest] = [:]
    /// Where it begins, or goes on after a stop.
    var base: UInt16

    init(_ index: Int, _ driver: DriverQueue, base: UInt16) {
        self.index = index
        self.driver = driver
        self.base = base
    }
}

/// A machine whose disk is a vhost-user back end: it goes on when its server is killed, with what
/// it has in flight.
final class Machine {
    /// Room for the longest request, its header and a table of descriptors.
    static let slotBytes: UInt64 = 128 << 10
    static let maxSlots = 14

    unowned let disk: ServedDisk
    let memory: MachineMemory
    var queues: [MachineQueue] = []
    let queueSize: UInt16
    let features: UInt64
    /// It looks at its queues only when it was called.
    let waitsForCalls: Bool
    /// What the server has in flight, where the server's end does not reach.
    var area: SharedFile?
    var pastAreas: [[UInt8]] = []
    var socket: SimulatedSocket?
    /// What is to be said before the queues run, and what an answer is awaited for.
    var steps: ArraySlice<FrontEndStep> = []
    var awaited: (step: FrontEndStep, request: UInt32)?
    var freeSlots: [UInt64]
    /// The disk's size as it was told.
    var sizeBytes: UInt64 = 0

    init(_ disk: ServedDisk, _ draw: inout Draw) throws(SystemFault) {
        self.disk = disk
        memory = try MachineMemory()
        queueSize = [8, 16, 32][draw.below(3)]
        // Of version 1, with flushes, discards, zeroing, and extensions of the protocol.
        var features: UInt64 = 1 << 32 | 1 << 30 | 1 << 9 | 1 << 13 | 1 << 14
        if draw.chance(50) { features |= 1 << 29 }
        if draw.chance(50) { features |= 1 << 28 }
        self.features = features
        waitsForCalls = draw.chance(60)
        freeSlots = (0..<UInt64(Self.maxSlots)).map { 64 << 10 + $0 * Self.slotBytes }
        for index in 0..<1 + draw.below(2) {
            let driver = DriverQueue(
                memory, size: queueSize, at: UInt64(index) * 16384,
                hasEventIndex: features & 1 << 29 != 0)
            // Indices wrap around.
            let base: UInt16 = draw.chance(50) ? 0 : 65530
            driver.begin(at: base)
            driver.wantCalls()
            queues.append(MachineQueue(index, driver, base: base))
        }
    }

    var hasIndirect: Bool { features & 1 << 28 != 0 }
    var isConnected: Bool { socket != nil }
    /// All of its queues run.
    var isReady: Bool { isConnected && steps.isEmpty && awaited == nil }
    var requestCount: Int { queues.reduce(0) { $0 + $1.requests.count } }

    /// Begins to speak on a new connection.
    func begin(_ socket: SimulatedSocket) {
        self.socket = socket
        awaited = nil
        var steps: [FrontEndStep] = [.owner, .features, .protocolFeatures, .askSize]
        if area == nil { steps.append(.askInflight) }
        steps += [.giveInflight, .memory]
        for queue in queues { steps += start(queue) }
        self.steps = steps[...]
    }

    private func start(_ queue: MachineQueue) -> [FrontEndStep] {
        let index = queue.index
        return [
            .size(index), .addresses(index), .base(index), .call(index), .error(index),
            .kick(index), .enable(index),
        ]
    }

    /// Stops its queues and starts them again, as a machine does that is reset.
    func restartQueues() {
        steps += [.askSize]
        for queue in queues { steps += [.stop(queue.index)] + start(queue) }
    }

    /// The connection is gone; the machine goes on.
    func disconnect() {
        socket = nil
        steps = []
        awaited = nil
    }
}
