import SharedMemory
import SystemLayer
import Tables
import VhostProtocol

/// A place in the table of a front-end's running queues.
typealias VirtqueueIndex = SlotTable<Virtqueue>.Index
/// A request of a queue that is being carried out.
typealias GuestRequestIndex = SlotTable<GuestRequest>.Index

/// One queue of a front-end, running or not.
struct VhostQueue {
    /// The queue itself while it runs; nil also after a fault.
    var ring: VirtqueueIndex?
    /// Where its rings are, for looking them up again.
    var addresses: RingAddresses?
    var isEnabled = false
    /// Where it stopped: for a queue that broke.
    var stoppedAt: UInt16 = 0
    var kick: EventHandle?
    var call: CallHandle?
    var error: EventHandle?
    /// The kernel waits for a kick.
    var isArmed = false
    var calls = GuestCalls()

    /// Whether chains may be taken.
    var isOpen: Bool { ring != nil && isEnabled }
}

/// A request of a guest's: which queue it came by, and what its answer needs.
struct GuestRequest {
    let queue: Int
    let block: BlockRequest
}

/// Where a request's segments stand that have not been given to pieces.
struct SegmentCursor {
    /// The segment, and bytes of it that were given away.
    var index = 0
    var offset: UInt64 = 0
    /// Behind the last segment.
    var end = 0
}

/// An action that waits until none of the front-end's requests is in flight.
struct WaitingAction {
    let action: SessionAction
    /// What came with the message; -1 where something has taken it.
    var descriptors: [Int32]
}
