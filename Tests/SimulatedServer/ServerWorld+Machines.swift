import Simulation
import SystemLayer
import VhostClient
import WireClient

/// Machines whose disks are vhost-user back ends: they connect, ask, look at answers, and go.
extension ServerWorld {
    private static let protocolFeatures: UInt64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12

    var machines: [Machine] { disks.compactMap(\.machine) }

    /// A machine connects to its disk, a new one where there is none.
    func connect(_ disk: ServedDisk) {
        guard let listener = disk.listener, disk.machine?.isConnected != true else { return }
        do throws(SystemFault) {
            let machine: Machine
            if let known = disk.machine {
                machine = known
            } else {
                machine = try Machine(disk, &draw)
            }
            disk.machine = machine
            let socket = SimulatedSocket(Int32(sockets.count))
            sockets.append(socket)
            backlog[listener.handle.number, default: []].append(socket.handle)
            forgetInflight(machine)
            machine.begin(socket)
            note("machine \(socket.handle.number) of disk \(disk.number), \(machine.requestCount)")
        } catch {
            fail("a machine has no memory: \(error)")
        }
    }

    /// Under a canary: the in-flight area is not what the server has left.
    private func forgetInflight(_ machine: Machine) {
        guard let area = machine.area else { return }
        if canary == .forgetsInflight {
            area.write([UInt8](repeating: 0, count: Int(area.byteCount)), 0)
            for queue in machine.queues { queue.base = queue.driver.collected }
        }
        if canary == .returnsPastInflight, let past = machine.pastAreas.first {
            area.write(past, 0)
        }
    }

    /// What in-flight areas hold now, and did some steps ago.
    func keepAreas() {
        for machine in machines {
            guard let area = machine.area else { continue }
            machine.pastAreas.append(area.read(0, Int(area.byteCount)))
            if machine.pastAreas.count > 30 { machine.pastAreas.removeFirst() }
        }
    }

    // MARK: Messages

    /// The front-end says the next of what it has to say.
    func talk(_ machine: Machine) {
        guard let socket = machine.socket, !socket.isAtEnd, machine.awaited == nil,
            let step = machine.steps.popFirst()
        else { return }
        let (plain, descriptors) = message(step, machine)
        let isAsking =
            switch step {
            case .features, .askInflight, .askSize, .stop: true
            default: false
            }
        let mayAsk = ![FrontEndStep.owner, .features, .protocolFeatures].contains(step)
        let said = !isAsking && mayAsk && draw.chance(40) ? plain.acknowledged : plain
        if isAsking || said.flags & 8 != 0 { machine.awaited = (step, said.request) }
        socket.messages.append(SharedMessage(bytes: said.bytes, descriptors: descriptors))
        guard step == .features else { return }
        let chosen = ClientMessage.setFeatures(machine.features)
        socket.messages.append(SharedMessage(bytes: chosen.bytes))
    }

    private func message(
        _ step: FrontEndStep, _ machine: Machine
    ) -> (ClientMessage, [Int32]) {
        let queueCount = UInt16(machine.queues.count)
        switch step {
        case .owner: return (.setOwner, [])
        case .features: return (.getFeatures, [])
        case .protocolFeatures: return (.setProtocolFeatures(Self.protocolFeatures), [])
        case .askSize: return (.getConfig(offset: 0, size: 8), [])
        case .askInflight:
            return (.getInflight(queues: queueCount, size: machine.queueSize), [])
        case .giveInflight:
            guard let area = machine.area else { return (.setOwner, []) }
            let message = ClientMessage.setInflight(
                bytes: area.byteCount, queues: queueCount, size: machine.queueSize)
            return (message, [share(area)])
        case .memory:
            let region = ClientRegion(guest: 0, size: MachineMemory.byteCount, user: 1 << 40)
            return (.setMemory([region]), [share(machine.memory.file)])
        default: return queueMessage(step, machine)
        }
    }

    private func queueMessage(
        _ step: FrontEndStep, _ machine: Machine
    ) -> (ClientMessage, [Int32]) {
        switch step {
        case .size(let index): return (.setSize(UInt32(index), UInt32(machine.queueSize)), [])
        case .addresses(let index):
            let driver = machine.queues[index].driver
            return (
                .setAddresses(
                    UInt32(index), descriptors: 1 << 40 + driver.descriptors,
                    used: 1 << 40 + driver.used, available: 1 << 40 + driver.available), []
            )
        case .base(let index):
            return (.setBase(UInt32(index), UInt32(machine.queues[index].base)), [])
        case .call(let index):
            return (.setCall(UInt64(index)), [share(machine.queues[index].call)])
        case .error(let index):
            return (.setError(UInt64(index)), [share(machine.queues[index].error)])
        case .kick(let index):
            return (.setKick(UInt64(index)), [share(machine.queues[index].kick)])
        case .enable(let index): return (.setEnable(UInt32(index), 1), [])
        case .stop(let index): return (.getBase(UInt32(index)), [])
        default: preconditionFailure("not about a queue")
        }
    }

    /// The front-end takes answers, the machine looks at its queues.
    func listen(_ machine: Machine) {
        if let socket = machine.socket {
            do {
                while isGoing, !socket.answers.isEmpty {
                    try take(socket.answers.removeFirst(), machine)
                }
            } catch {
                fail("the protocol is broken: \(error)")
            }
            if socket.isEndedByServer { lose(machine) }
        }
        collect(machine)
    }

    private func take(_ answer: SharedMessage, _ machine: Machine) throws {
        guard let (step, request) = machine.awaited else {
            throw ClientViolation("an answer to nothing")
        }
        machine.awaited = nil
        let reply = try ClientReply(answer.bytes, to: request)
        switch step {
        case .features:
            let offered = try reply.word
            if machine.features & ~offered != 0 { throw ClientViolation("features are missing") }
        case .askSize: machine.sizeBytes = number(reply.payload, 12, as: UInt64.self) * 512
        case .askInflight:
            guard let raw = answer.descriptors.first else {
                throw ClientViolation("no in-flight area comes")
            }
            machine.area = SharedFile(
                adopting: raw, byteCount: number(reply.payload, 0, as: UInt64.self))
        case .stop(let index): try stopped(machine.queues[index], reply)
        default: if try reply.word != 0 { throw ClientViolation("\(step) is refused") }
        }
    }

    /// A queue has stopped: what was taken of it is answered.
    private func stopped(_ queue: MachineQueue, _ reply: ClientReply) throws {
        let base = UInt16(truncatingIfNeeded: number(reply.payload, 4, as: UInt32.self))
        let used = queue.driver.usedIndex
        guard base == used else {
            throw ClientViolation("a queue stops at \(base), and has given back up to \(used)")
        }
        queue.base = base
    }

    // MARK: Going

    /// The front-end goes, with what is in flight; its machine comes back, or is gone as well.
    func leave(_ machine: Machine) {
        if machine.isReady, draw.chance(40) {
            note("the machine of disk \(machine.disk.number) starts its queues again")
            return machine.restartQueues()
        }
        disconnect(machine)
        guard !isFinishing, draw.chance(25) else { return }
        note("the machine of disk \(machine.disk.number) is gone")
        machine.disk.machine = nil
    }

    func disconnect(_ machine: Machine) {
        guard let socket = machine.socket else { return }
        note("machine \(socket.handle.number) leaves")
        socket.isClosedByPeer = true
        machine.disconnect()
        lateFills = []
    }

    /// The server has hung up.
    private func lose(_ machine: Machine) {
        note("machine of disk \(machine.disk.number) is hung up on")
        if !isLeaving { fail("P2: the machine of disk \(machine.disk.number) is hung up on") }
        machine.disconnect()
        lateFills = []
    }

    // MARK: Requests

    /// The machine asks, whether its server is there or not.
    func ask(_ machine: Machine) {
        guard machine.sizeBytes > 0, let queue = draw.pick(machine.queues),
            queue.driver.inFlight < Int(machine.queueSize) / 2,
            machine.requestCount < swarm.depth, let slot = machine.freeSlots.popLast()
        else { return }
        let bytes = range(upTo: machine.sizeBytes)
        let disk = machine.disk
        var asked: PeerRequest
        let request: DriverRequest
        let sector = bytes.lowerBound / 512
        let count = Int((bytes.upperBound - bytes.lowerBound) / 512)
        switch draw.below(20) {
        case 0...8:
            lastStamp += 1
            disk.asked[lastStamp] = disk.source.shape.indices(bytes)
            asked = PeerRequest(
                command: WireCommand.write, bytes: bytes, stamp: lastStamp, isDurable: false)
            let data = Sectors.bytes(of: [Stamp](repeating: lastStamp, count: count))
            request = .write(sector, data)
        case 9...15:
            asked = PeerRequest(
                command: WireCommand.read, bytes: bytes, stamp: 0, isDurable: false)
            request = .read(sector, sectors: count)
        case 16:
            asked = PeerRequest(
                command: WireCommand.writeZeroes, bytes: bytes, stamp: 0, isDurable: false)
            request = .writeZeroes(
                sector, sectors: UInt32(count), flags: draw.chance(50) ? 1 : 0)
        case 17:
            asked = PeerRequest(
                command: WireCommand.trim, bytes: bytes, stamp: 0, isDurable: false)
            request = .discard(sector, sectors: UInt32(count))
        default:
            asked = PeerRequest(
                command: WireCommand.flush, bytes: 0..<0, stamp: 0, isDurable: false)
            request = .flush
        }
        remember(&asked, disk)
        put(request, asked, queue, slot, machine)
    }

    private func put(
        _ request: DriverRequest, _ asked: PeerRequest, _ queue: MachineQueue, _ slot: UInt64,
        _ machine: Machine
    ) {
        // Data that begins at a page, or anywhere.
        let start = slot + (draw.chance(50) ? 4096 - 16 : 1024 + UInt64(draw.below(1000)))
        let placement = request.place(
            machine.memory, at: start, readableCuts: cuts(), writableCuts: cuts())
        let isIndirect = machine.hasIndirect && draw.chance(70)
        let head =
            isIndirect
            ? queue.driver.stage(placement.buffers, table: slot)
            : queue.driver.stage(placement.buffers)
        guard let head else {
            if asked.stamp != 0 { machine.disk.asked[asked.stamp] = nil }
            return machine.freeSlots.append(slot)
        }
        note(
            "machine of disk \(machine.disk.number) asks \(asked.command) \(asked.bytes)"
                + " stamp \(asked.stamp) as \(queue.index).\(head)")
        queue.requests[head] = MachineRequest(asked: asked, placement: placement, slot: slot)
        queue.driver.publish()
        if queue.driver.wantsKick() { queue.kick.count += 1 }
    }

    private func cuts() -> [Int] {
        guard draw.chance(60) else { return [] }
        return [16] + (0..<draw.below(3)).map { _ in 1 + draw.below(9000) }
    }

    // MARK: Answers

    private func collect(_ machine: Machine) {
        for queue in machine.queues {
            if machine.waitsForCalls, queue.call.count == 0 { continue }
            queue.call.count = 0
            if draw.chance(50) { queue.driver.suppressCalls() }
            do {
                repeat {
                    for used in try queue.driver.collect() where isGoing {
                        take(used, queue, machine)
                    }
                    queue.driver.wantCalls()
                } while isGoing && queue.driver.hasUsed
            } catch {
                fail("P5: disk \(machine.disk.number): \(error)")
            }
        }
    }

    private func take(_ used: DriverUsed, _ queue: MachineQueue, _ machine: Machine) {
        guard let request = queue.requests.removeValue(forKey: UInt16(used.id)) else { return }
        machine.freeSlots.append(request.slot)
        let (asked, disk) = (request.asked, machine.disk)
        let status = request.placement.status(machine.memory)
        note("machine of disk \(disk.number): \(status) to \(asked.command) \(asked.bytes)")
        defer { if asked.stamp != 0 { disk.asked[asked.stamp] = nil } }
        guard status == 0 else {
            if status != 1 || !disk.hasFailed && !asked.mayFail {
                fail("P2: a machine's command \(asked.command) ends with status \(status)")
            }
            return tellLoss(of: disk)
        }
        if Int(used.written) != request.placement.inputBytes + 1 {
            return fail("P5: \(used.written) bytes are said to be written to a machine")
        }
        switch asked.command {
        case WireCommand.write: checkWritten(asked, disk)
        case WireCommand.writeZeroes: checkZeroed(asked, disk)
        case WireCommand.flush: keep(asked.answeredBefore, disk)
        case WireCommand.read:
            let stamps = Sectors.stamps(request.placement.input(machine.memory))
            checkLive(stamps, disk.source.shape.indices(asked.bytes), asked, disk)
        default: break
        }
    }

    /// The process has gone: machines stay, with all that they have asked for.
    func leaveMachines() {
        for machine in machines {
            machine.disconnect()
            // As for what was answered: what was lost is told to nobody.
            for queue in machine.queues {
                for head in queue.requests.keys.sorted() {
                    queue.requests[head]?.asked.forgetLost(machine.disk.source.versions)
                    if machine.disk.hasFailed { queue.requests[head]?.asked.mayFail = true }
                }
            }
        }
    }
}

extension PeerRequest {
    /// Of what was answered before it, only that counts which is still there.
    mutating func forgetLost(_ versions: [UInt32]) {
        answeredBefore = zip(answeredBefore, versions).map { min($0, $1) }
    }
}
