// What a session asks of its driver, and what the driver reports back. Descriptors are identified
// by their index among those that came with the message; the driver closes all that no action uses.

/// What the driver of a session does next.
package enum SessionStep: Equatable, Sendable {
    /// No reply; read the next message.
    case proceed
    /// Send this, then read the next message.
    case reply(SessionReply)
    /// Carry this out and call `performed` before reading the next message.
    case perform(SessionAction)
    /// The message was refused and changed nothing.
    ///
    /// Send the reply, if any, and read the next one.
    case refused(SessionRefusal, SessionReply?)
    /// Stop all queues, unmap everything and close the connection.
    case close(SessionRefusal)
}

/// A reply to a message.
package struct SessionReply: Equatable, Sendable {
    /// Header and payload.
    package let bytes: [UInt8]
    /// Whether to attach the descriptor that `makeInflight` made.
    package let carriesInflight: Bool

    init(to request: UInt32, _ payload: [UInt8], carriesInflight: Bool = false) {
        bytes = MessageHeader.reply(to: request, payload: payload)
        self.carriesInflight = carriesInflight
    }

    init(to request: UInt32, word: UInt64) {
        var payload: [UInt8] = []
        payload.appendLittleEndian(word)
        self.init(to: request, payload)
    }
}

/// What a message makes the driver do.
package enum SessionAction: Equatable, Sendable {
    /// Map the added regions, then switch to them and drop the removed ones.
    ///
    /// All or nothing: if one region cannot be mapped, the old ones stay. A removed region is
    /// unmapped once no request in flight uses it, and `performed` is called after that. Started
    /// queues look their rings up again; the guest addresses have not changed.
    case changeMemory(added: [MappedRegion], removed: [MemorySlot])
    /// Change one queue.
    case changeQueue(index: Int, QueueChange)
    /// Take no more requests, finish those in flight, close the queue's descriptors and report
    /// where it stopped (`ActionOutcome.stopped`).
    case stopQueue(index: Int)
    /// Create a zero-filled file of that size that cannot shrink; it goes with the reply.
    case makeInflight(byteCount: UInt64)
    /// Map the area for queues that start from now on, and drop the previous one.
    case useInflight(InflightArea)
    /// Stop these queues as `stopQueue` does, in any order.
    case reset(queues: [Int])
}

/// A region that is to be mapped.
package struct MappedRegion: Equatable, Sendable, BitwiseCopyable {
    /// Identifies it from now on.
    package let slot: MemorySlot
    /// Its addresses and size.
    package let region: MemoryRegion
    /// Index of the descriptor to map it from.
    package let descriptor: Int
}

/// A change to one queue.
package enum QueueChange: Equatable, Sendable {
    /// Start with the message's descriptor as kick.
    ///
    /// If `isEnabled` is false, take no requests before `resume`.
    ///
    /// A queue that turns out to be broken still counts as started and is stopped like any other.
    case start(QueueSetup)
    /// Replace the kick descriptor with the message's.
    case setKick
    /// Replace the call descriptor with the message's, or with none, and signal it at once: the
    /// last signal may have gone to the old one.
    case setCall(isPresent: Bool)
    /// Replace the error descriptor with the message's, or with none.
    case setError(isPresent: Bool)
    /// Take no more requests; let those in flight finish.
    case pause
    /// Take requests again.
    case resume
}

/// How a queue starts.
package struct QueueSetup: Equatable, Sendable, BitwiseCopyable {
    /// Entries; a power of two up to `VhostLimits.queueSizeMax`.
    package let size: UInt16
    /// The next available index, unless a used in-flight area overrides it.
    package let base: UInt16
    /// Where the rings are; each lies in one region and is aligned.
    package let rings: RingAddresses
    /// VIRTIO_F_EVENT_IDX.
    package let hasEventIndex: Bool
    /// VIRTIO_F_INDIRECT_DESC.
    package let hasIndirectDescriptors: Bool
    /// Offset of its part of the in-flight area, if there is one.
    package let inflightOffset: UInt64?
    /// Whether to take requests at once.
    package let isEnabled: Bool

    /// A queue with the given fields.
    package init(
        size: UInt16, base: UInt16, rings: RingAddresses, hasEventIndex: Bool,
        hasIndirectDescriptors: Bool, inflightOffset: UInt64? = nil, isEnabled: Bool = true
    ) {
        self.size = size
        self.base = base
        self.rings = rings
        self.hasEventIndex = hasEventIndex
        self.hasIndirectDescriptors = hasIndirectDescriptors
        self.inflightOffset = inflightOffset
        self.isEnabled = isEnabled
    }
}

/// An in-flight area that the front-end handed back.
package struct InflightArea: Equatable, Sendable, BitwiseCopyable {
    /// Offset in its file, in bytes; a multiple of `VhostLimits.pageBytes`.
    package let fileOffset: UInt64
    /// Size in bytes; large enough for all its queues.
    package let byteCount: UInt64
    /// Number of queues it has room for.
    package let queueCount: Int
    /// Entries of each.
    package let queueSize: UInt16

    /// Offset of a queue's part from the start of the area, in bytes.
    func offset(ofQueue queue: Int) -> UInt64 {
        UInt64(queue) * InflightPlaces.partBytes(queueSize)
    }
}

/// How an action went.
package enum ActionOutcome: Equatable, Sendable {
    /// Done.
    case done
    /// The queue has stopped; `next` is the next available index.
    case stopped(next: UInt16)
    /// It failed and changed nothing: what was wrong, with its value.
    case failed(String)
}
