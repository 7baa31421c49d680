import IORing
import SharedMemory
import SystemLayer
import Tables
import VhostProtocol

/// Messages of a front-end: received one at a time, carried out, answered.
extension RingLoop where IO: ~Copyable {
    /// The socket has something, or has ended.
    mutating func hasMessage(_ vhost: VhostIndex) {
        vhosts[vhost].isListening = false
        vhosts[vhost].hasInput = true
        markReady(vhosts[vhost].slot)
    }

    /// Handles messages that are there; none while an action waits.
    mutating func takeMessages(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        if vhosts[vhost].waiting != nil { goOn(slot, vhost) }
        var left = Limits.messagesPerTurn
        while connections[slot].phase == .sharing, vhosts[vhost].waiting == nil,
            vhosts[vhost].hasInput
        {
            guard left > 0 else { return markReady(slot) }
            left -= 1
            guard let header = receive(slot, vhost) else { return }
            let payload = vhosts[vhost].input
            let descriptors = vhosts[vhost].descriptors
            vhosts[vhost].header = nil
            vhosts[vhost].input = []
            vhosts[vhost].descriptors = []
            let step = vhosts[vhost].session.receive(
                header, payload.span, descriptors: descriptors.count)
            carryOut(slot, vhost, step, descriptors)
        }
    }

    /// The header of the next message when all of it is there, else nil: more is waited for, or the
    /// session is over.
    private mutating func receive(
        _ slot: ConnectionIndex, _ vhost: VhostIndex
    ) -> MessageHeader? {
        while true {
            var bytes = vhosts[vhost].input
            if vhosts[vhost].header == nil, bytes.count == MessageHeader.byteCount {
                do throws(MessageFault) {
                    vhosts[vhost].header = try MessageHeader(bytes.span)
                    bytes = []
                } catch {
                    refuse(slot, vhost, error.text)
                    return nil
                }
            }
            let wanted = vhosts[vhost].header?.payloadBytes ?? MessageHeader.byteCount
            if let header = vhosts[vhost].header, bytes.count == wanted {
                vhosts[vhost].input = bytes
                return header
            }
            guard !vhosts[vhost].export.closer.isFull else {
                let waiting = vhosts[vhost].export.closer.waiting
                refuse(slot, vhost, "\(waiting) descriptors that it has sent cannot be closed")
                return nil
            }
            var descriptors = vhosts[vhost].descriptors
            let got = io.receiveMessage(
                connections[slot].socket, count: wanted - bytes.count, into: &bytes,
                descriptors: &descriptors)
            vhosts[vhost].input = bytes
            vhosts[vhost].descriptors = descriptors
            let end = shared.spareDescriptorsEnd
            if descriptors.contains(where: { Int($0) >= end }) {
                refuse(
                    slot, vhost,
                    "front-ends have all the descriptors that the server can spare:"
                        + " \(end) (ulimit -n, LimitNOFILE)")
                return nil
            }
            if got > 0 { continue }
            if got == -Int(Errno.again) {
                vhosts[vhost].hasInput = false
                vhosts[vhost].isListening = true
                io.prepareEvent(
                    .readable(connections[slot].socket), tag: Operation.message(vhost).tag)
            } else if got == 0, bytes.isEmpty, vhosts[vhost].header == nil {
                close(slot)
            } else {
                refuse(
                    slot, vhost,
                    got == 0
                        ? "it has hung up within a message"
                        : "a message could not be received: \(SystemFault.text(for: Int32(-got)))")
            }
            return nil
        }
    }

    private mutating func carryOut(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ step: SessionStep, _ descriptors: [Int32]
    ) {
        switch step {
        case .proceed: closeDescriptors(descriptors, vhosts[vhost].export.closer)
        case .reply(let reply):
            closeDescriptors(descriptors, vhosts[vhost].export.closer)
            send(reply, slot, vhost)
        case .refused(let refusal, let reply):
            closeDescriptors(descriptors, vhosts[vhost].export.closer)
            report(vhost, refusal.text)
            if let reply { send(reply, slot, vhost) }
        case .close(let refusal):
            closeDescriptors(descriptors, vhosts[vhost].export.closer)
            refuse(slot, vhost, refusal.text)
        case .perform(let action):
            vhosts[vhost].waiting = WaitingAction(action: action, descriptors: descriptors)
            return goOn(slot, vhost)
        }
        if connections[slot].phase == .sharing {
            vhosts[vhost].rules = vhosts[vhost].session.rules
        }
    }

    /// Carries the action at hand out, as soon as nothing is in flight that it would pull the rug
    /// from under.
    private mutating func goOn(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        guard var waiting = vhosts[vhost].waiting,
            !waiting.action.needsSilence || connections[slot].transmission.requestCount == 0
        else { return }
        vhosts[vhost].waiting = nil
        for queue in vhosts[vhost].running { answerNow(vhost, queue) }
        let outcome = perform(waiting.action, slot, vhost, &waiting.descriptors)
        // What was refused on the way has closed the session.
        guard connections[slot].phase == .sharing else {
            return closeDescriptors(waiting.descriptors, vhosts[vhost].export.closer)
        }
        carryOut(slot, vhost, vhosts[vhost].session.performed(outcome), waiting.descriptors)
        markReady(slot)
    }

    private mutating func send(
        _ reply: SessionReply, _ slot: ConnectionIndex, _ vhost: VhostIndex
    ) {
        let area = reply.carriesInflight ? vhosts[vhost].madeArea : nil
        let sent = io.sendMessage(connections[slot].socket, reply.bytes, descriptor: area)
        if let area {
            vhosts[vhost].madeArea = nil
            closeDescriptors([area], vhosts[vhost].export.closer)
        }
        guard sent != reply.bytes.count else { return }
        // A front-end waits for its answers, so there is always room for one.
        refuse(slot, vhost, "it does not take the answers to its messages")
    }
}

extension SessionAction {
    /// Whether requests in flight could still use what it takes away.
    fileprivate var needsSilence: Bool {
        switch self {
        case .changeMemory(_, let removed): !removed.isEmpty
        case .stopQueue, .reset: true
        case .changeQueue, .makeInflight, .useInflight: false
        }
    }
}
