// What a session asks of its driver, and what the driver answers. Descriptors are named by their
// place among those that came with the message; the driver closes all that an action does not name.

/// What the driver of a session does next.
package enum SessionStep: Equatable, Sendable {
    /// Nothing is to be said; the next message may come.
    case proceed
    /// Send this; the next message may come.
    case reply(SessionReply)
    /// Carry this out, then call `performed`; no message may be taken before.
    case perform(SessionAction)
    /// The message is refused and has changed nothing. Send the reply, if there is one, and go on.
    case refused(SessionRefusal, SessionReply?)
    /// Stop all queues, unmap everything and close the connection.
    case close(SessionRefusal)
}

/// A reply to a message.
package struct SessionReply: Equatable, Sendable {
    /// Header and payload.
    package let bytes: [UInt8]
    /// Whether the descriptor of the area made by `makeInflight` goes with it.
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
    /// Map all that is added, then use it and forget what is removed.
    ///
    /// All or nothing: when one region cannot be mapped, the old ones stay. What is removed is
    /// unmapped when no request in flight touches it any more; `performed` is called after that.
    /// Places of queues that run are looked up anew: their guest addresses are the same.
    case changeMemory(added: [MappedRegion], removed: [MemorySlot])
    /// Change one queue.
    case changeQueue(index: Int, QueueChange)
    /// Take no more requests from the queue, finish those in flight, drop its descriptors and say
    /// where it stopped (`ActionOutcome.stopped`).
    case stopQueue(index: Int)
    /// Make a file of so many zero bytes that cannot shrink; it goes with the reply.
    case makeInflight(byteCount: UInt64)
    /// Map the area, which queues that start from now on use, and give the last one up.
    case useInflight(InflightArea)
    /// Stop these queues as `stopQueue` does, in any order.
    case reset(queues: [Int])
}

/// A region that is to be mapped.
package struct MappedRegion: Equatable, Sendable, BitwiseCopyable {
    /// Its name from now on.
    package let slot: MemorySlot
    /// Where it is.
    package let region: MemoryRegion
    /// Which of the message's descriptors it is mapped from.
    package let descriptor: Int
}

/// What becomes of a queue; a message does one thing.
package enum QueueChange: Equatable, Sendable {
    /// Use the message's descriptor, and take requests from now on, or not before `resume`.
    case start(QueueSetup)
    /// Use the message's descriptor instead of the last one.
    case setKick
    /// Use the message's descriptor, or none, and signal it at once: what was signalled last may
    /// have gone to the old one.
    case setCall(isPresent: Bool)
    /// Use the message's descriptor, or none.
    case setError(isPresent: Bool)
    /// Take no more requests; those in flight go on.
    case pause
    /// Take requests again.
    case resume
}

/// How a queue starts.
package struct QueueSetup: Equatable, Sendable, BitwiseCopyable {
    /// Entries; a power of two up to `VhostLimits.queueSizeMax`.
    package let size: UInt16
    /// The next available index, unless the in-flight area knows better.
    package let base: UInt16
    /// Where the rings are; each lies in one region and is aligned.
    package let rings: RingAddresses
    /// VIRTIO_F_EVENT_IDX.
    package let hasEventIndex: Bool
    /// VIRTIO_F_INDIRECT_DESC.
    package let hasIndirectDescriptors: Bool
    /// Where its part of the in-flight area begins, if there is an area.
    package let inflightOffset: UInt64?
    /// Whether requests are taken at once.
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

/// An in-flight area that a front-end has handed back.
package struct InflightArea: Equatable, Sendable, BitwiseCopyable {
    /// Where it begins in its file; a multiple of `VhostLimits.pageBytes`.
    package let fileOffset: UInt64
    /// Its size: room for all queues.
    package let byteCount: UInt64
    /// Queues that it has room for.
    package let queueCount: Int
    /// Entries of each.
    package let queueSize: UInt16

    /// Where a queue's part begins, from the start of the area, in bytes.
    func offset(ofQueue queue: Int) -> UInt64 {
        UInt64(queue) * InflightPlaces.partBytes(queueSize)
    }
}

/// How an action went.
package enum ActionOutcome: Equatable, Sendable, BitwiseCopyable {
    /// As asked.
    case done
    /// A queue has stopped; this is the next available index.
    case stopped(next: UInt16)
    /// It could not be done, for this error number of the system; nothing has changed.
    case failed(errno: Int32)
}
