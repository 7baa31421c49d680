// The back-end's side of a vhost-user session as a state machine: messages in, replies and actions
// out. Messages about queues are handled in BackEndSession+Queues.swift.

/// The back-end's side of one vhost-user session for a block device.
///
/// A value: no sockets, no memory, no clock. The driver reads a header and its payload, passes them
/// to `receive` and carries out the step it gets back; after an action it calls `performed`.
/// Nothing a front-end sends can trap, and a refused message changes nothing. If the front-end
/// asked for an acknowledgement (REPLY_ACK), it is told of the refusal and the session goes on;
/// otherwise the session ends, because the front-end would take the message for accepted.
package struct BackEndSession: Sendable {
    /// An action that has not been reported yet.
    private struct Pending: Sendable {
        let code: RequestCode
        let request: UInt32
        let needsReply: Bool
        /// The state once the action is done.
        var next: State
        /// Payload of the reply to GET_INFLIGHT_FD.
        var inflightReply: [UInt8] = []
    }

    /// Everything that messages can change.
    struct State: Sendable {
        /// The negotiated features; nil before SET_FEATURES.
        var features: DeviceFeatures?
        var protocolFeatures: ProtocolFeatures = []
        var memory = MemoryTable()
        /// Whether SET_OWNER has been received.
        var isOwned = false
        /// The in-flight area that queues use from their next start on.
        var inflight: InflightArea?
        var queues: [QueueState]
    }

    /// The disk behind the session.
    package private(set) var device: BlockDescription
    var state: State
    private var pending: Pending?
    /// The queue that GET_VRING_BASE is stopping.
    var stoppingQueue: Int?
    private var isOver = false

    /// A new session with `device.queueCount` queues.
    package init(_ device: BlockDescription) {
        self.device = device
        state = State(queues: Array(repeating: QueueState(), count: device.queueCount))
    }

    /// The negotiated features; empty before SET_FEATURES.
    package var features: DeviceFeatures { state.features ?? [] }

    /// The guest's memory.
    package var memory: MemoryTable { state.memory }

    /// Queues that have been started, including paused ones.
    package var startedQueues: [Int] {
        state.queues.indices.filter { state.queues[$0].running != nil }
    }

    /// The rules for the guest's requests under the negotiated features.
    package var rules: BlockRules { BlockRules(device, features) }

    /// Changes the disk's size; the guest sees it the next time it reads the configuration space.
    package mutating func resized(sizeBytes: UInt64) { device.sizeBytes = sizeBytes }

    /// Handles one message.
    ///
    /// `payload` is as long as the header says; `descriptors` is how many descriptors came with it.
    ///
    /// Must not be called while an action is pending.
    package mutating func receive(
        _ header: MessageHeader, _ payload: Span<UInt8>, descriptors: Int
    ) -> SessionStep {
        precondition(pending == nil, "an action is pending: call performed first")
        precondition(!isOver, "the session is over")
        do throws(SessionRefusal) {
            let message: FrontEndMessage
            do throws(MessageFault) {
                message = try MessageDecoder.decode(header, payload, descriptors: descriptors)
            } catch { throw .message(error) }
            return try handle(message, header)
        } catch {
            return refuse(error, request: header.request, needsReply: header.needsReply)
        }
    }

    /// Reports how the pending action went.
    package mutating func performed(_ outcome: ActionOutcome) -> SessionStep {
        guard var done = pending else { preconditionFailure("no action is pending") }
        pending = nil
        switch outcome {
        case .failed(let reason):
            stoppingQueue = nil
            return refuse(
                .failed(done.code, reason), request: done.request,
                needsReply: done.needsReply)
        case .stopped(let next):
            return stopped(done.next, request: done.request, next: next)
        case .done:
            if done.code == .getInflight {
                return .reply(
                    SessionReply(to: done.request, done.inflightReply, carriesInflight: true))
            }
            swap(&state, &done.next)
            return acknowledge(done.request, done.needsReply)
        }
    }

    // MARK: Messages

    private mutating func handle(
        _ message: FrontEndMessage, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        switch message {
        case .getFeatures: return answer(header, device.features.rawValue)
        case .getProtocolFeatures: return answer(header, ProtocolFeatures.offered.rawValue)
        case .getQueueCount: return answer(header, UInt64(device.queueCount))
        case .getMemorySlots:
            try need(.memorySlots, .getMemorySlots)
            return answer(header, UInt64(VhostLimits.regionsMax))
        case .setOwner: return setOwner(header)
        case .resetOwner: break
        case .setFeatures(let bits): try setFeatures(bits)
        case .setProtocolFeatures(let bits): try setProtocolFeatures(bits)
        case .setMemoryTable, .addRegion, .removeRegion:
            return try changeMemory(message, header)
        case .getConfig(let offset, let byteCount, let flags):
            return try getConfig(header, offset, byteCount, flags)
        case .setConfig:
            try need(.config, .setConfig)
            throw .configReadOnly
        case .getInflight(let description, let replyBytes):
            return try getInflight(header, description, replyBytes)
        case .setInflight(let description):
            return try setInflight(header, description)
        case .resetDevice:
            return try resetDevice(header)
        case .setQueueSize, .setQueueAddresses, .setQueueBase, .getQueueBase, .setQueueKick,
            .setQueueCall, .setQueueError, .setQueueEnable:
            return try handleQueue(message, header)
        }
        return acknowledge(header.request, header.needsReply)
    }

    /// Starts over if the connection has been used before.
    ///
    /// A device that is unplugged stops its queues and leaves the connection to its successor,
    /// which knows nothing of the memory that was mapped for it.
    private mutating func setOwner(_ header: MessageHeader) -> SessionStep {
        guard state.isOwned, startedQueues.isEmpty else {
            state.isOwned = true
            return acknowledge(header.request, header.needsReply)
        }
        var next = state
        next.inflight = nil
        next.queues = Array(repeating: QueueState(), count: state.queues.count)
        let slots = next.memory.removeAll()
        guard !slots.isEmpty else {
            state = next
            return acknowledge(header.request, header.needsReply)
        }
        return perform(.changeMemory(added: [], removed: slots), header, then: next)
    }

    private mutating func setFeatures(_ bits: UInt64) throws(SessionRefusal) {
        let asked = DeviceFeatures(rawValue: bits)
        guard asked.isSubset(of: device.features) else {
            throw .featuresNotOffered(asked.subtracting(device.features).rawValue)
        }
        guard asked == state.features || startedQueues.isEmpty else { throw .featuresInUse }
        state.features = asked
    }

    private mutating func setProtocolFeatures(_ bits: UInt64) throws(SessionRefusal) {
        let asked = ProtocolFeatures(rawValue: bits)
        guard asked.isSubset(of: .offered) else {
            throw .protocolFeaturesNotOffered(asked.subtracting(.offered).rawValue)
        }
        state.protocolFeatures = asked
    }

    private mutating func changeMemory(
        _ message: FrontEndMessage, _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        var next = state
        let old = state.memory.entries.map(\.slot)
        var added: [MappedRegion] = []
        var removed: [MemorySlot] = []
        do throws(MemoryRefusal) {
            switch message {
            case .setMemoryTable(let regions):
                let slots = try next.memory.replace(with: regions)
                added = slots.indices.map {
                    MappedRegion(slot: slots[$0], region: regions[$0], descriptor: $0)
                }
                removed = old
            case .addRegion(let region):
                let slot = try next.memory.add(region)
                added = [MappedRegion(slot: slot, region: region, descriptor: 0)]
            case .removeRegion(let region):
                removed = [try next.memory.remove(region)]
            default: break
            }
        } catch { throw .memory(error) }
        switch message {
        case .addRegion: try need(.memorySlots, .addRegion)
        case .removeRegion: try need(.memorySlots, .removeRegion)
        default: break
        }
        try keepRings(in: next.memory)
        return perform(.changeMemory(added: added, removed: removed), header, then: next)
    }

    /// Refuses a change that would move or remove the rings of a started queue.
    private func keepRings(in memory: MemoryTable) throws(SessionRefusal) {
        for (index, queue) in state.queues.enumerated() {
            guard let rings = queue.running, let addresses = queue.addresses,
                let size = queue.size
            else { continue }
            let found = try? RingAddresses(addresses, size: size, queue: index, in: memory)
            guard found == rings else { throw .memory(.ringsInUse(queue: index)) }
        }
    }

    private func getConfig(
        _ header: MessageHeader, _ offset: UInt32, _ byteCount: Int, _ flags: UInt32
    ) throws(SessionRefusal) -> SessionStep {
        try need(.config, .getConfig)
        guard byteCount <= VhostLimits.configBytesMax,
            Int(offset) <= VhostLimits.configBytesMax - byteCount, flags <= 1
        else {
            // This request has its own refusal: a reply without a payload.
            return .refused(
                .configRange(offset: offset, byteCount: byteCount),
                SessionReply(to: header.request, []))
        }
        var payload: [UInt8] = []
        payload.appendLittleEndian(offset)
        payload.appendLittleEndian(UInt32(byteCount))
        payload.appendLittleEndian(flags)
        let space = device.configSpace
        for place in Int(offset)..<Int(offset) + byteCount {
            payload.append(place < space.count ? space[place] : 0)
        }
        return .reply(SessionReply(to: header.request, payload))
    }

    private mutating func getInflight(
        _ header: MessageHeader, _ asked: InflightDescription, _ replyBytes: Int
    ) throws(SessionRefusal) -> SessionStep {
        try need(.inflight, .getInflight)
        guard let byteCount = Self.inflightBytes(asked) else { throw .inflightShape(asked) }
        var payload: [UInt8] = []
        payload.appendLittleEndian(byteCount)
        payload.appendLittleEndian(UInt64(0))
        payload.appendLittleEndian(asked.queueCount)
        payload.appendLittleEndian(asked.queueSize)
        while payload.count < replyBytes { payload.append(0) }
        let step = perform(.makeInflight(byteCount: byteCount), header, then: state)
        pending?.inflightReply = payload
        return step
    }

    private mutating func setInflight(
        _ header: MessageHeader, _ area: InflightDescription
    ) throws(SessionRefusal) -> SessionStep {
        try need(.inflight, .setInflight)
        guard startedQueues.isEmpty else { throw .inflightInUse }
        guard let needed = Self.inflightBytes(area), area.byteCount >= needed,
            area.byteCount <= VhostLimits.memoryBytesMax,
            area.offset.isMultiple(of: VhostLimits.pageBytes),
            area.offset <= UInt64(Int64.max) - area.byteCount
        else { throw .inflightShape(area) }
        let used = InflightArea(
            fileOffset: area.offset, byteCount: needed, queueCount: Int(area.queueCount),
            queueSize: area.queueSize)
        var next = state
        next.inflight = used
        return perform(.useInflight(used), header, then: next)
    }

    /// Size of an area for that many queues, in bytes; nil if the numbers are out of range.
    private static func inflightBytes(_ area: InflightDescription) -> UInt64? {
        guard area.queueCount >= 1, Int(area.queueCount) <= VhostLimits.queuesMax,
            isQueueSize(UInt32(area.queueSize))
        else { return nil }
        return UInt64(area.queueCount) * InflightPlaces.partBytes(area.queueSize)
    }

    private mutating func resetDevice(
        _ header: MessageHeader
    ) throws(SessionRefusal) -> SessionStep {
        try need(.resetDevice, .resetDevice)
        var next = state
        next.features = nil
        next.queues = Array(repeating: QueueState(), count: state.queues.count)
        return perform(.reset(queues: startedQueues), header, then: next)
    }

    // MARK: Answers

    /// Throws unless the protocol feature has been negotiated.
    func need(_ feature: ProtocolFeatures, _ code: RequestCode) throws(SessionRefusal) {
        guard state.protocolFeatures.contains(feature) else { throw .notNegotiated(code) }
    }

    /// Starts an action; the state becomes `next` when it is done.
    mutating func perform(
        _ action: SessionAction, _ header: MessageHeader, then next: State
    ) -> SessionStep {
        guard let code = RequestCode(rawValue: header.request) else {
            preconditionFailure("only a known request has an action")
        }
        pending = Pending(
            code: code, request: header.request, needsReply: header.needsReply, next: next)
        return .perform(action)
    }

    private func answer(_ header: MessageHeader, _ word: UInt64) -> SessionStep {
        .reply(SessionReply(to: header.request, word: word))
    }

    /// Acknowledges a message if the front-end asked for it.
    func acknowledge(_ request: UInt32, _ needsReply: Bool) -> SessionStep {
        guard needsReply, state.protocolFeatures.contains(.replyAck) else { return .proceed }
        return .reply(SessionReply(to: request, word: 0))
    }

    private mutating func refuse(
        _ refusal: SessionRefusal, request: UInt32, needsReply: Bool
    ) -> SessionStep {
        let code = RequestCode(rawValue: request)
        // A guest may write to read-only fields by mistake; ignore it.
        if refusal == .configReadOnly, !needsReply { return .refused(refusal, nil) }
        if code == .getConfig { return .refused(refusal, SessionReply(to: request, [])) }
        let hasOwnReply =
            switch code {
            case .getFeatures, .getProtocolFeatures, .getQueueBase, .getQueueCount, .getInflight,
                .getMemorySlots:
                true
            default: false
            }
        // Requests that are answered with a number have no way to report an error.
        if needsReply, !hasOwnReply, state.protocolFeatures.contains(.replyAck) {
            return .refused(refusal, SessionReply(to: request, word: 1))
        }
        isOver = true
        return .close(refusal)
    }
}
