// Messages about queues. A queue starts when it gets its kick descriptor and stops with
// GET_VRING_BASE (vhost-user, "Ring states"); in between, SET_VRING_ENABLE pauses and resumes it.

extension BackEndSession {
    mutating func handleQueue(
        _ message: FrontEndMessage, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        switch message {
        case .setQueueSize(let index, let size):
            try needStopped(index)
            guard Self.isQueueSize(size) else { throw .queueSize(queue: index, size) }
            state.queues[index].size = UInt16(size)
        case .setQueueAddresses(let index, let flags, let addresses):
            try needStopped(index)
            // The only flag defined is for migration, which is not offered.
            guard flags == 0 else { throw .addressFlags(queue: index, flags) }
            state.queues[index].addresses = addresses
        case .setQueueBase(let index, let base):
            try needStopped(index)
            state.queues[index].base = base
        case .getQueueBase(let index):
            return try getQueueBase(index, header)
        case .setQueueKick(let kick):
            return try setKick(kick, header)
        case .setQueueCall(let call):
            try needQueue(call.queue)
            let change = QueueChange.setCall(isPresent: call.isPresent)
            return perform(.changeQueue(index: call.queue, change), header, then: state)
        case .setQueueError(let error):
            try needQueue(error.queue)
            let change = QueueChange.setError(isPresent: error.isPresent)
            return perform(.changeQueue(index: error.queue, change), header, then: state)
        case .setQueueEnable(let index, let isEnabled):
            return try enable(index, isEnabled, header)
        default:
            preconditionFailure("not about a queue")
        }
        return acknowledge(header.request, header.needsReply)
    }

    /// Whether `size` is a valid queue size.
    static func isQueueSize(_ size: UInt32) -> Bool {
        size > 0 && size <= UInt32(VhostLimits.queueSizeMax) && size & (size - 1) == 0
    }

    private func needQueue(_ index: Int) throws(SessionRefusal) {
        guard state.queues.indices.contains(index) else { throw .unknownQueue(index) }
    }

    private func needStopped(_ index: Int) throws(SessionRefusal) {
        try needQueue(index)
        guard state.queues[index].running == nil else { throw .queueRuns(index) }
    }

    private mutating func setKick(
        _ kick: QueueDescriptor, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        try needQueue(kick.queue)
        guard kick.isPresent else { throw .kickWithoutDescriptor(queue: kick.queue) }
        let queue = state.queues[kick.queue]
        if queue.running != nil {
            return perform(.changeQueue(index: kick.queue, .setKick), header, then: state)
        }
        guard let size = queue.size, let addresses = queue.addresses,
            let features = state.features
        else { throw .queueNotSetUp(kick.queue) }
        let rings = try RingAddresses(addresses, size: size, queue: kick.queue, in: state.memory)
        var inflightOffset: UInt64?
        if let area = state.inflight {
            guard kick.queue < area.queueCount else {
                throw .inflightTooSmall(queue: kick.queue)
            }
            // qemu asks for as many places as its device's queues have; the firmware of Debian 13
            // makes longer ones. That is no reason to keep a machine from booting: such a queue has
            // no part of the area.
            if size <= area.queueSize { inflightOffset = area.offset(ofQueue: kick.queue) }
        }
        var next = state
        next.queues[kick.queue].running = rings
        let setup = QueueSetup(
            size: size, base: queue.base, rings: rings,
            hasEventIndex: features.contains(.eventIndex),
            hasIndirectDescriptors: features.contains(.indirectDescriptors),
            inflightOffset: inflightOffset,
            isEnabled: queue.isEnabled || !features.contains(.protocolFeatures))
        return perform(.changeQueue(index: kick.queue, .start(setup)), header, then: next)
    }

    private mutating func enable(
        _ index: Int, _ isEnabled: Bool, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        try needQueue(index)
        guard features.contains(.protocolFeatures) else { throw .notNegotiated(.setQueueEnable) }
        let queue = state.queues[index]
        guard queue.running != nil, queue.isEnabled != isEnabled else {
            state.queues[index].isEnabled = isEnabled
            return acknowledge(header.request, header.needsReply)
        }
        var next = state
        next.queues[index].isEnabled = isEnabled
        return perform(
            .changeQueue(index: index, isEnabled ? .resume : .pause), header, then: next)
    }

    private mutating func getQueueBase(
        _ index: Int, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        try needQueue(index)
        guard state.queues[index].running != nil else {
            return baseReply(header.request, index)
        }
        var next = state
        next.queues[index].running = nil
        stoppingQueue = index
        return perform(.stopQueue(index: index), header, then: next)
    }

    /// The queue that GET_VRING_BASE named has stopped.
    mutating func stopped(_ next: State, request: UInt32, next base: UInt16) -> SessionStep {
        guard let index = stoppingQueue else { preconditionFailure("no queue was to stop") }
        stoppingQueue = nil
        state = next
        state.queues[index].base = base
        return baseReply(request, index)
    }

    private func baseReply(_ request: UInt32, _ index: Int) -> SessionStep {
        var payload: [UInt8] = []
        payload.appendLittleEndian(UInt32(index))
        payload.appendLittleEndian(UInt32(state.queues[index].base))
        return .reply(SessionReply(to: request, payload))
    }
}
