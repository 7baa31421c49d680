import Foundation
import LibvirtProtocol

/// Freezes and thaws guests through the libvirtd that runs their machines.
///
/// A freeze is noted on disk before it is asked for, has a connection of its own, and is thawed in a
/// task of its own: no caller that fails or leaves, no libvirtd that hangs or restarts, and no crash of
/// this process keeps a guest frozen.
package actor GuestFreezer: GuestFreezing {
    /// How long things take.
    package struct Limits: Sendable, Hashable {
        /// Until the agent has frozen all file systems: those of a busy guest are synced first.
        package var freeze: Duration = .seconds(60)
        /// That a guest may stand still: then it is thawed, and what was to be done has failed.
        package var frozen: Duration = .seconds(30)
        /// That who thaws waits for it; it goes on without.
        package var thaw: Duration = .seconds(10)
        /// Until one attempt to thaw counts as failed.
        package var attemptSeconds: Int64 = 40
        /// Between two attempts at first, and at most.
        package var firstPause: Duration = .seconds(1)
        package var longestPause: Duration = .seconds(30)
        /// Until nothing more is tried before the next start.
        package var giveUp: Duration = .seconds(3600)

        package init() {}
    }

    /// One guest that is frozen, or may be.
    private struct Freeze {
        let domain: String
        /// Who thaws it: nobody else's freeze is ended by that.
        let owner: String
        /// For the thaw; renewed when it is gone.
        var connection: UpstreamConnection?
        /// What the agent has said; it may still freeze as long as there is none.
        var reply = LateValue<Result<Packet, UpstreamFault>>()
        /// The agent has been asked, or may have been: it must be thawed.
        var isAsked = false
        var isThawing = false
        var watchdog: Task<Void, Never>?
        let thawed = LateValue<Bool>()
    }

    private let upstream: UpstreamSettings
    private let state: StateDirectory?
    private let limits: Limits
    private let events: EventLog
    private var freezes: [String: Freeze] = [:]
    /// Agents whose response timeout is being put back; the next freeze waits for that, or it would lose
    /// its own.
    private var settling: [String: (number: Int, task: Task<Void, Never>)] = [:]
    private var lastSettling = 0
    private var isStopping = false

    package init(
        upstream: UpstreamSettings, state: StateDirectory?, events: EventLog,
        limits: Limits = Limits()
    ) {
        self.upstream = upstream
        self.state = state
        self.events = events
        self.limits = limits
    }

    /// Thaws the guests that an earlier run may have left frozen; returns a line for each.
    package func recover() -> [String] {
        guard let kept = state?.freezes() else { return [] }
        for record in kept.records where freezes[record.uuid] == nil {
            var freeze = Freeze(domain: record.domain, owner: "")
            freeze.reply.set(.failure(.closed(path: upstream.socketPath)))
            freeze.isAsked = true
            freeze.isThawing = true
            freezes[record.uuid] = freeze
            Task { await self.thawUntilDone(record.uuid) }
        }
        return kept.damaged.map(\.text)
            + kept.records.map {
                "the guest of domain '\($0.domain)' may have been left frozen: it is being thawed"
            }
    }

    /// Guests that an earlier run may have left frozen, where there is no libvirtd to thaw them
    /// through; a line for each.
    package static func leftovers(_ state: StateDirectory) -> [String] {
        let kept = state.freezes()
        return kept.damaged.map(\.text)
            + kept.records.map {
                "the guest of domain '\($0.domain)' may have been left frozen: thaw it with virsh "
                    + "domfsthaw, or give --libvirt-upstream again"
            }
    }

    /// Thaws all and waits for it, as long as a caller of `thaw` would; from now on nothing is frozen.
    package func shutdown() async {
        isStopping = true
        for uuid in freezes.keys { startThaw(uuid) }
        for freeze in freezes.values { _ = await freeze.thawed.value(within: limits.thaw) }
        for settling in settling.values { await settling.task.value }
    }

    package func freeze(
        domain name: String, uuid: String, owner: String
    ) async throws(ControlError) {
        guard !isStopping else { throw .serverStopping }
        guard freezes[uuid] == nil else { throw .stillFrozen(name) }
        let freeze = Freeze(domain: name, owner: owner)
        freezes[uuid] = freeze
        do throws(ControlError) {
            try await ask(uuid, freeze)
        } catch {
            forget(uuid)
            throw error
        }
        let reply = await freeze.reply.value(within: limits.freeze)
        do throws(ControlError) {
            try check(reply, uuid, name)
        } catch {
            startThaw(uuid)
            throw error
        }
        events.append(ControlEvent(.guestFrozen, domain: name))
        let time = limits.frozen
        freezes[uuid]?.watchdog = Task {
            try? await Task.sleep(for: time)
            if !Task.isCancelled { self.startThaw(uuid) }
        }
    }

    // Asks the agent; when this throws, it has not been asked.
    private func ask(_ uuid: String, _ freeze: Freeze) async throws(ControlError) {
        await settling[uuid]?.task.value
        try state?.save(StoredFreeze(uuid: uuid, domain: freeze.domain))
        let connection = try await connect()
        freezes[uuid]?.connection = connection
        await boundAgent(uuid, freeze.domain, connection, seconds: agentSeconds)
        // A server that stops waits for guests that are frozen, not for those that might be.
        guard !isStopping else { throw .serverStopping }
        freezes[uuid]?.isAsked = true
        Task {
            freeze.reply.set(
                await self.ask(.domainFSFreeze, uuid, freeze.domain, connection, nil))
        }
    }

    package func thaw(owner: String) async -> Bool {
        guard let (uuid, freeze) = freezes.first(where: { $0.value.owner == owner }),
            !freeze.isThawing
        else { return false }
        startThaw(uuid)
        _ = await freeze.thawed.value(within: limits.thaw)
        return true
    }

    // Returns when the guest is frozen; forgets it first when it surely is not.
    private func check(
        _ reply: Result<Packet, UpstreamFault>?, _ uuid: String, _ name: String
    ) throws(ControlError) {
        switch reply {
        case nil:
            throw ControlError(
                .operationTimeout, code: "freeze-timed-out", status: 504,
                detail: "the guest agent of domain '\(name)' has not frozen its file systems "
                    + "within \(limits.freeze.components.seconds) seconds")
        case .failure(let fault): throw ControlError(fault)
        case .success(let packet):
            guard packet.header.status != PacketStatus.ok.rawValue else { return }
            let error = try? WireError(body: packet.body)
            if let error, Self.wasNeverAsked(error) { forget(uuid) }
            throw ControlError(error.map(UpstreamFault.refused) ?? garbled(packet))
        }
    }

    private func garbled(_ packet: Packet) -> UpstreamFault {
        .garbled(path: upstream.socketPath, detail: "an error of \(packet.body.count) bytes")
    }

    /// Errors with which libvirtd refuses before it asks the agent: not supported, read-only, no such
    /// domain, not running, no agent.
    private static let neverAsked: Set<Int32> = [3, 29, 42, 55, 74, 84]

    /// An agent that is not there has the number of one that does not answer, and other words.
    private static func wasNeverAsked(_ error: WireError) -> Bool {
        neverAsked.contains(error.code)
            || error.message.hasSuffix("QEMU guest agent is not connected")
            || error.message.hasSuffix("QEMU guest agent is not available due to an error")
    }

    private func forget(_ uuid: String) {
        guard let freeze = freezes.removeValue(forKey: uuid) else { return }
        freeze.watchdog?.cancel()
        if let connection = freeze.connection { settle(uuid, freeze.domain, connection) }
        freeze.thawed.set(true)
        do throws(ControlError) {
            try state?.removeFreeze(of: uuid)
        } catch {
            // The next start thaws a guest that is not frozen, which harms nobody.
            events.append(
                ControlEvent(.stateProblem, domain: freeze.domain, message: error.message))
        }
    }

    /// Gives the agent its response timeout back, and the connection up.
    private func settle(_ uuid: String, _ name: String, _ connection: UpstreamConnection) {
        lastSettling += 1
        let number = lastSettling
        let before = settling[uuid]?.task
        let task = Task {
            await before?.value
            await boundAgent(uuid, name, connection, seconds: Self.blocks)
            connection.close()
            if settling[uuid]?.number == number { settling[uuid] = nil }
        }
        settling[uuid] = (number, task)
    }
}

// MARK: Thawing

extension GuestFreezer {
    private func startThaw(_ uuid: String) {
        guard let freeze = freezes[uuid], freeze.isAsked, !freeze.isThawing else { return }
        freezes[uuid]?.isThawing = true
        freeze.watchdog?.cancel()
        Task { await self.thawUntilDone(uuid) }
    }

    private func thawUntilDone(_ uuid: String) async {
        let began = ContinuousClock.now
        var pause = limits.firstPause
        var isReported = false
        while let freeze = freezes[uuid] {
            let failure = await thawOnce(uuid, freeze)
            guard let failure else {
                events.append(ControlEvent(.guestThawed, domain: freeze.domain))
                return forget(uuid)
            }
            if !isReported { report(freeze.domain, "\(failure): it is tried again") }
            isReported = true
            guard ContinuousClock.now - began < limits.giveUp else {
                report(freeze.domain, "\(failure): given up; thaw it with virsh domfsthaw")
                freezes[uuid]?.connection?.close()
                freezes[uuid] = nil
                return freeze.thawed.set(false)
            }
            try? await Task.sleep(for: pause)
            pause = min(pause * 2, limits.longestPause)
        }
    }

    private func report(_ domain: String, _ message: String) {
        events.append(ControlEvent(.guestThawFailed, domain: domain, message: message))
    }

    /// Nil when the guest is thawed, or gone; else what is in the way.
    private func thawOnce(_ uuid: String, _ freeze: Freeze) async -> String? {
        let connection: UpstreamConnection
        do throws(ControlError) {
            connection = try await liveConnection(uuid)
        } catch {
            return error.message
        }
        // A freeze that had not come to an end when the thaw was asked for may have followed it, or may
        // still follow; its answer that comes meanwhile does not say which was first.
        let hadEnded = freeze.reply.value != nil
        let reply = await ask(
            .domainFSThaw, uuid, freeze.domain, connection, limits.attemptSeconds)
        switch reply {
        case .failure(let fault): return fault.wire.message
        case .success(let packet) where packet.header.status == PacketStatus.ok.rawValue:
            return hadEnded ? nil : "the agent has not answered the freeze yet"
        case .success(let packet):
            let error = try? WireError(body: packet.body)
            if error?.code == WireErrorCode.noDomain { return nil }
            if await isOff(uuid, freeze.domain, connection) { return nil }
            return error?.message ?? garbled(packet).wire.message
        }
    }

    /// A machine that is off has no frozen file systems.
    private func isOff(
        _ uuid: String, _ name: String, _ connection: UpstreamConnection
    ) async -> Bool {
        let reply = await connection.reply(to: .domainIsActive, Self.domain(uuid, name).bytes)
        guard case .success(let packet) = reply,
            packet.header.status == PacketStatus.ok.rawValue
        else { return false }
        var reader = XDRReader(packet.body)
        return (try? reader.int()) == 0
    }

    /// The freeze's own connection, or a new one when that is gone; who freezes on a connection that is
    /// gone is not waited for.
    private func liveConnection(_ uuid: String) async throws(ControlError) -> UpstreamConnection {
        if let connection = freezes[uuid]?.connection, connection.isOpen { return connection }
        let connection = try await connect()
        guard let freeze = freezes[uuid] else {
            connection.close()
            throw .internalError("nobody is frozen any more")
        }
        freeze.connection?.close()
        freezes[uuid]?.connection = connection
        return connection
    }

    /// By itself libvirtd waits for an agent for ever, and lets nobody else talk to it meanwhile, not
    /// even to thaw: so it is told to give up in time, and afterwards to wait again.
    private func boundAgent(
        _ uuid: String, _ name: String, _ connection: UpstreamConnection, seconds: Int32
    ) async {
        var arguments = Self.domain(uuid, name)
        arguments.int(seconds)
        arguments.uint(0)
        // One that does not know how is older than libvirt 5.10.
        _ = await connection.reply(
            to: .domainAgentSetResponseTimeout, arguments.bytes,
            seconds: UpstreamLimits.shortAnswerSeconds)
    }

    private var agentSeconds: Int32 {
        Int32(clamping: max(limits.freeze.components.seconds - 5, 1))
    }

    /// Libvirt's own default (`VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK`).
    private static let blocks: Int32 = -2

    private func connect() async throws(ControlError) -> UpstreamConnection {
        do throws(UpstreamFault) {
            return try await UpstreamConnection.open(
                upstream, uri: upstream.uri ?? "", flags: 0, deliver: { _ in })
        } catch {
            throw ControlError(error)
        }
    }

    private func ask(
        _ procedure: Procedure, _ uuid: String, _ name: String,
        _ connection: UpstreamConnection, _ seconds: Int64?
    ) async -> Result<Packet, UpstreamFault> {
        var arguments = Self.domain(uuid, name)
        // No mount points: all of them. No flags.
        arguments.strings([])
        arguments.uint(0)
        return await connection.reply(to: procedure, arguments.bytes, seconds: seconds)
    }

    private static func domain(_ uuid: String, _ name: String) -> XDRWriter {
        var writer = XDRWriter()
        writer.domain(WireDomain(name: name, uuid: UUIDText.bytes(uuid), id: -1))
        return writer
    }
}

extension ControlError {
    /// What libvirtd has to say, or why it says nothing.
    init(_ fault: UpstreamFault) {
        let error = fault.wire
        self.init(
            code: "libvirtd-refused", libvirtCode: Int(error.code), message: error.message,
            httpStatus: 502)
    }

    /// A thaw of before has not come to an end.
    static func stillFrozen(_ name: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "guest-frozen", status: 409,
            detail: "the file systems of domain '\(name)' are frozen already, or are still being "
                + "thawed: try again when that is done")
    }
}
