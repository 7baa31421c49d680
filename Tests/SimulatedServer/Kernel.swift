@testable import NBDServer

import Simulation

/// One operation that a ring has handed to its kernel.
final class KernelOperation {
    enum Kind {
        case read(FileHandle, position: UInt64, count: Int)
        case write(FileHandle, position: UInt64, [Stamp], durable: Bool)
        case allocate(FileHandle, position: UInt64, count: UInt64)
        case sync(FileHandle)
        case receive(SocketHandle, count: Int, whole: Bool)
        case event(RingEvent)
        case cancel(UInt64)
        case nothing
    }

    let tag: UInt64
    let kind: Kind
    /// Where in the arena bytes go when the completion is taken.
    let arenaOffset: Int
    var bytes: [UInt8] = []
    var result: Int32 = 0
    /// Parts of its effect that are left.
    var partsLeft = 2
    /// It reports this whatever was done.
    var errno: Int32?
    /// Bytes that are moved; fewer than asked for is no error.
    var limit = Int.max
    var isHung = false
    var isLost = false
    var patience = 0

    init(_ tag: UInt64, _ kind: Kind, arenaOffset: Int = 0) {
        self.tag = tag
        self.kind = kind
        self.arenaOffset = arenaOffset
    }
}

/// The kernel of one ring: what is prepared, in flight, and complete.
final class Kernel {
    unowned let world: ServerWorld
    let ring: Int
    var prepared: [KernelOperation] = []
    var inFlight: [KernelOperation] = []
    var ready: [KernelOperation] = []
    /// Bytes that are to be sent.
    var gathered: [UInt8] = []

    init(_ world: ServerWorld, ring: Int) {
        self.world = world
        self.ring = ring
    }

    func prepare(_ operation: KernelOperation) { prepared.append(operation) }

    func submit() {
        for operation in prepared {
            world.decideFate(of: operation)
            inFlight.append(operation)
        }
        prepared = []
    }

    /// An operation goes on by a step; true when something happened.
    @discardableResult
    func move(_ index: Int) -> Bool {
        let operation = inFlight[index]
        if operation.patience > 0 {
            operation.patience -= 1
            return true
        }
        guard world.advance(operation, self) else { return false }
        inFlight.remove(at: index)
        ready.append(operation)
        return true
    }
}
