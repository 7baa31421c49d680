import Core
import IORing
import NBDProtocol
import SharedMemory
import SystemLayer
import Tables
import VhostProtocol

/// A front-end's turn: its messages, then chains of its queues, then their answers.
extension RingLoop where IO: ~Copyable {
    mutating func serve(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        if connections[slot].phase == .closing { return reap(slot, vhost) }
        connections[slot].transmission.isBlocked = false
        if connections[slot].phase == .sharing { takeMessages(slot, vhost) }
        if connections[slot].phase != .closing { takeChains(slot, vhost) }
        if connections[slot].phase != .closing { publish(slot, vhost) }
        if connections[slot].phase == .draining, connections[slot].transmission.requestCount == 0,
            connections[slot].transmission.current == nil
        {
            close(slot)
        }
        if connections[slot].phase == .closing { reap(slot, vhost) }
    }

    // MARK: Chains

    private mutating func takeChains(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        movedBytes = 0
        if let current = connections[slot].transmission.current {
            switch issueGuest(slot, vhost, current) {
            case .issued: break
            case .blocked:
                connections[slot].transmission.isBlocked = true
                return
            case .again: return markReady(slot)
            }
        }
        // An action waits for silence, or the disk is about to leave.
        guard connections[slot].phase == .sharing, vhosts[vhost].waiting == nil else { return }
        preparedForDisk = 0
        var budget = Limits.requestsPerTurn
        let count = vhosts[vhost].running.count
        var position = vhosts[vhost].nextQueue
        for _ in 0..<count {
            position = position + 1 < count ? position + 1 : 0
            let queue = vhosts[vhost].running[position]
            guard vhosts[vhost].queues[queue].isOpen else { continue }
            vhosts[vhost].suppressKicks(queue)
            if vhosts[vhost].queues[queue].calls.isWatching { watch(vhost, queue) }
            let (begun, left) = (io.now(), budget)
            let taking = takeChains(slot, vhost, queue, &budget)
            // The clock is asked again only where the answer is used.
            if left - budget >= GuestCalls.chainsOfSample {
                vhosts[vhost].queues[queue].calls.took(left - budget, io.now() &- begun)
            }
            switch taking {
            case .all: continue
            case .budget:
                vhosts[vhost].nextQueue = position
                return markReady(slot)
            case .stopped:
                // Others first, if it has had something.
                let before = position > 0 ? position - 1 : count - 1
                vhosts[vhost].nextQueue = budget < left ? position : before
                return
            }
        }
        vhosts[vhost].nextQueue = position
    }

    /// How far a queue's turn has come.
    private enum Taking { case all, budget, stopped }

    private mutating func takeChains(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ queue: Int, _ budget: inout Int
    ) -> Taking {
        while true {
            guard budget > 0, movedBytes < Limits.bytesPerTurn else { return .budget }
            guard hasRoom(slot, vhost) else {
                connections[slot].transmission.isBlocked = true
                return .stopped
            }
            let verdict: BlockVerdict
            do throws(VirtqueueFault) {
                guard let next = try vhosts[vhost].next(queue) else { return .all }
                verdict = next
            } catch {
                if checkMemory(slot, vhost) { breakQueue(slot, vhost, queue, error) }
                return connections[slot].phase == .closing ? .stopped : .all
            }
            budget -= 1
            guard checkMemory(slot, vhost) else { return .stopped }
            guestRate.note()
            switch verdict {
            case .answer(let answer): vhosts[vhost].answer(queue, answer)
            case .carryOut(let block):
                begin(slot, vhost, queue, block)
                if connections[slot].transmission.current != nil {
                    connections[slot].transmission.isBlocked = true
                    return .stopped
                }
                if connections[slot].phase == .closing { return .stopped }
                handOver()
            }
            guard showEarly(slot, vhost, queue) else { return .stopped }
        }
    }

    /// Whether a chain finds room in all tables; what does not stays in its queue.
    private mutating func hasRoom(_ slot: ConnectionIndex, _ vhost: VhostIndex) -> Bool {
        let own = vhosts[vhost].requests.count
        if requests.isFull || !operationShares.allowBegin(pieces.count, own: own) {
            starved.append(slot)
            return false
        }
        return !vhosts[vhost].requests.isFull && vhosts[vhost].vectors.openLanes > 0
    }

    private mutating func begin(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ queue: Int, _ block: BlockRequest
    ) {
        let valid = ValidRequest(block)
        note(.request, valid, slot)
        count(valid, of: slot)
        vhosts[vhost].begin(block)
        switch valid.command {
        case .read where readInline(slot, vhost, queue, block): return
        case .flush where connections[slot].transmission.disk == nil:
            return vhosts[vhost].answer(queue, block.answer(.ok))
        default: break
        }
        let ticket = vhosts[vhost].requests.insert(GuestRequest(queue: queue, block: block))
        connections[slot].transmission.requestCount += 1
        let request = requests.insert(
            Request(
                connection: slot, disk: connections[slot].transmission.disk, valid: valid,
                guest: ticket))
        switch valid.command {
        case .read, .write:
            connections[slot].transmission.current = request
            if case .again = issueGuest(slot, vhost, request) { markReady(slot) }
        case .flush: submitSync(request)
        case .trim, .writeZeroes: startZeroing(request)
        case .cache, .blockStatus, .disconnect: preconditionFailure("no guest asks for these")
        }
    }

    /// Has a disk begin with what was prepared for it, past the page cache, while the turn goes on.
    ///
    /// The kernel holds a batch back until its last request is ready; where each comes alone, a disk
    /// that was through with the one before is woken for each. So an idle disk gets the first at
    /// once, and a batch is no larger than what it is busy with meanwhile.
    private mutating func handOver() {
        guard preparedForDisk > 0 else { return }
        let isBusyWith = pieces.count - preparedForDisk
        guard preparedForDisk >= min(isBusyWith, Limits.handOverBatch) else { return }
        preparedForDisk = 0
        io.submit(waiting: false)
    }

    // MARK: Answers

    /// A request has been carried out, or has failed: its chain is answered, which the guest
    /// sees soon.
    mutating func answer(_ ticket: GuestRequestIndex, _ slot: ConnectionIndex, isGood: Bool) {
        guard let vhost = connections[slot].vhost, connections[slot].phase != .closing,
            checkMemory(slot, vhost)
        else { return }
        let request = vhosts[vhost].requests[ticket]
        vhosts[vhost].answer(request.queue, request.block.answer(isGood ? .ok : .ioError))
    }

    /// The request's place is free again.
    mutating func forget(_ ticket: GuestRequestIndex, of slot: ConnectionIndex) {
        guard let vhost = connections[slot].vhost else { return }
        vhosts[vhost].requests.remove(ticket)
    }

    /// Shows answers while the turn goes on; false when the guest's memory has gone.
    private mutating func showEarly(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ queue: Int
    ) -> Bool {
        if vhosts[vhost].queues[queue].calls.isWatching { watch(vhost, queue) }
        guard vhosts[vhost].hasUnpublished(queue) else { return true }
        guard checkMemory(slot, vhost) else { return false }
        publish(vhost, queue)
        guard vhosts[vhost].queues[queue].calls.isOwed else { return true }
        let left = vhosts[vhost].chainsLeft
        guard vhosts[vhost].queues[queue].calls.isDueEarly(chainsLeft: left) else { return true }
        let index = vhosts[vhost].available(queue).index
        vhosts[vhost].queues[queue].calls.called(early: io.now(), index: index)
        call(vhost, queue)
        io.submit(waiting: false)
        return true
    }

    /// Looks whether a guest that was called early goes on already.
    private mutating func watch(_ vhost: VhostIndex, _ queue: Int) {
        let index = vhosts[vhost].available(queue).index
        vhosts[vhost].queues[queue].calls.look(index, now: io.now())
    }

    /// Shows all answers, and makes the calls that are owed.
    private mutating func publish(_ slot: ConnectionIndex, _ vhost: VhostIndex) {
        guard checkMemory(slot, vhost) else { return }
        let goesOn = goesOnAtOnce(slot)
        for position in vhosts[vhost].running.indices {
            let queue = vhosts[vhost].running[position]
            publish(vhost, queue)
            guard vhosts[vhost].queues[queue].calls.isOwed else { continue }
            // A turn that ends by its budget and is followed by the next is no reason to call.
            let left = Int(vhosts[vhost].available(queue).left)
            if goesOn, vhosts[vhost].queues[queue].isOpen,
                vhosts[vhost].queues[queue].calls.canWait(chainsLeft: left)
            {
                continue
            }
            callNow(vhost, queue)
        }
    }

    /// Whether nobody else has a turn before this front-end has its next.
    private mutating func goesOnAtOnce(_ slot: ConnectionIndex) -> Bool {
        connections[slot].phase == .sharing && connections[slot].isInReadyList
            && readyGuests.count == 1 && guestTurn.count <= 1
            && ready.isEmpty && clientTurn.isEmpty
    }

    /// Makes the calls that are owed, for no turn comes any more.
    mutating func callOwed(_ vhost: VhostIndex) {
        for queue in vhosts[vhost].queues.indices where vhosts[vhost].queues[queue].calls.isOwed {
            callNow(vhost, queue)
        }
    }

    /// Shows a queue's answers now, and calls.
    mutating func answerNow(_ vhost: VhostIndex, _ queue: Int) {
        publish(vhost, queue)
        if vhosts[vhost].queues[queue].calls.isOwed { callNow(vhost, queue) }
    }

    private mutating func callNow(_ vhost: VhostIndex, _ queue: Int) {
        vhosts[vhost].queues[queue].calls.called()
        call(vhost, queue)
    }

    private mutating func publish(_ vhost: VhostIndex, _ queue: Int) {
        let (count, wantsCall) = vhosts[vhost].publish(queue)
        guard count > 0 else { return }
        uncalledAnswers = wantsCall ? 0 : uncalledAnswers &+ count
        vhosts[vhost].queues[queue].calls.show(wantsCall: wantsCall)
    }

    /// Closes the session when memory of it has gone; false then.
    mutating func checkMemory(_ slot: ConnectionIndex, _ vhost: VhostIndex) -> Bool {
        guard vhosts[vhost].isMemoryGone() else { return true }
        refuse(slot, vhost, "its memory has gone: the front-end has shrunk a file that it shares")
        return false
    }

    /// The queue cannot be used any more: the front-end is told, the guest loses it.
    private mutating func breakQueue(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ queue: Int, _ fault: VirtqueueFault
    ) {
        guard let ring = vhosts[vhost].queues[queue].ring else { return }
        vhosts[vhost].queues[queue].stoppedAt = vhosts[vhost].rings[ring].nextAvailable
        vhosts[vhost].queues[queue].ring = nil
        vhosts[vhost].rings.remove(ring)
        report(vhost, "queue \(queue) is broken: \(fault.text)")
        if let error = vhosts[vhost].queues[queue].error {
            // A guest that breaks its queue again and again is its own loss; so is a call that
            // cannot be.
            do throws(SystemFault) {
                let call = try io.makeCall(error, replacing: nil)
                io.prepareCall(call, tag: Operation.ignored.tag)
                io.close(call)
            } catch {
                report(vhost, "its front-end cannot be told: \(error.call): \(error.errorText)")
            }
        }
    }

    // MARK: Kicks and calls

    /// A front-end's queue was kicked, or its wait has ended.
    mutating func kicked(_ vhost: VhostIndex, _ queue: Int) {
        vhosts[vhost].armedKicks -= 1
        vhosts[vhost].queues[queue].isArmed = false
        arm(vhost, queue)
        markReady(vhosts[vhost].slot)
    }

    /// Waits for the next kick of a queue that runs.
    mutating func arm(_ vhost: VhostIndex, _ queue: Int) {
        guard vhosts[vhost].queues[queue].ring != nil, !vhosts[vhost].queues[queue].isArmed,
            connections[vhosts[vhost].slot].phase != .closing,
            let kick = vhosts[vhost].queues[queue].kick
        else { return }
        vhosts[vhost].queues[queue].isArmed = true
        vhosts[vhost].armedKicks += 1
        io.prepareKick(kick, tag: Operation.kick(vhost, queue: queue).tag)
    }

    /// Calls the guest, with the next submit.
    mutating func call(_ vhost: VhostIndex, _ queue: Int) {
        guard let call = vhosts[vhost].queues[queue].call else { return }
        io.prepareCall(call, tag: Operation.ignored.tag)
        hasCalled = true
    }

    // MARK: Looking

    /// Hands over calls, and looks at the queues once more; whether there is something to do.
    ///
    /// A guest that wakes on this processor runs before the submit returns. Its next chain is there
    /// then, without a kick, since nobody has asked for one yet.
    mutating func letGuestsGoOn() -> Bool {
        guard hasCalled else { return false }
        hasCalled = false
        io.submit(waiting: false)
        return io.completionCount > 0 || lookAtQueues()
    }

    /// Whether the ring waits for a disk, and guests that poll wait for it.
    ///
    /// A guest that sleeps has nothing of a ring that looks: it is woken all the same, and on
    /// another processor, which takes longer.
    var waitsForPollersDisk: Bool {
        mutating get {
            guard pieces.count > 0, uncalledAnswers >= Limits.answersOfPoller else { return false }
            for position in sharing.indices {
                guard let vhost = connections[sharing[position]].vhost else { continue }
                if vhosts[vhost].requests.count > 0 { return true }
            }
            return false
        }
    }

    /// Gives a turn to front-ends whose queues have chains; whether there was one.
    @discardableResult
    mutating func lookAtQueues() -> Bool { look(asking: false) }

    /// Before the ring sleeps: asks guests for kicks; whether a chain was there already.
    mutating func askForKicks() -> Bool { look(asking: true) }

    private mutating func look(asking: Bool) -> Bool {
        var found = false
        for position in sharing.indices {
            let slot = sharing[position]
            guard let vhost = connections[slot].vhost, connections[slot].phase == .sharing,
                !connections[slot].isInReadyList, !connections[slot].transmission.isBlocked,
                vhosts[vhost].waiting == nil
            else { continue }
            trace.mark(.turn, export: connections[slot].transmission.path?.export ?? 0)
            for place in vhosts[vhost].running.indices {
                let queue = vhosts[vhost].running[place]
                // A queue that is broken is found so in its turn.
                let hasNext =
                    asking
                    ? (try? vhosts[vhost].wantKicks(queue)) ?? true
                    : (try? vhosts[vhost].hasNext(queue)) ?? true
                guard hasNext else { continue }
                markReady(slot)
                found = true
                break
            }
        }
        return found
    }
}

extension ValidRequest {
    /// A guest's request, which `BlockRules` has checked.
    fileprivate init(_ block: BlockRequest) {
        let command: Command
        // No array literal: it is made by generic code, at the price of an allocation's time.
        var flags = block.isDurable ? CommandFlags.fua : CommandFlags(rawValue: 0)
        switch block.command {
        case .read: command = .read
        case .write: command = .write
        case .flush: command = .flush
        case .discard: command = .trim
        case .writeZeroes(let mayUnmap):
            command = .writeZeroes
            if !mayUnmap { flags.insert(.noHole) }
        }
        self.init(
            checked: command, flags: flags, offset: block.offset,
            length: block.command == .flush ? 0 : block.byteCount)
    }
}
