import LibvirtProtocol

/// What a freezer asks of libvirtd, and what it makes of the answers.
extension GuestFreezer {
    /// By itself libvirtd waits for an agent for ever, and lets nobody else talk to it meanwhile,
    /// not even to thaw: so it is told to give up in time, and afterwards to wait again.
    func boundAgent(
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

    var agentSeconds: Int32 {
        Int32(clamping: max(limits.freeze.components.seconds - 5, 1))
    }

    /// Libvirt's own default (`VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK`).
    static let blocks: Int32 = -2

    func connect() async throws(ControlError) -> UpstreamConnection {
        do throws(UpstreamFault) {
            return try await UpstreamConnection.open(
                upstream, uri: upstream.uri ?? "", flags: 0, deliver: { _ in })
        } catch {
            throw ControlError(error)
        }
    }

    func ask(
        _ procedure: Procedure, _ uuid: String, _ name: String,
        _ connection: UpstreamConnection, _ seconds: Int64?
    ) async -> Result<Packet, UpstreamFault> {
        var arguments = Self.domain(uuid, name)
        // No mount points: all of them. No flags.
        arguments.strings([])
        arguments.uint(0)
        return await connection.reply(to: procedure, arguments.bytes, seconds: seconds)
    }

    static func domain(_ uuid: String, _ name: String) -> XDRWriter {
        var writer = XDRWriter()
        writer.domain(WireDomain(name: name, uuid: UUIDText.bytes(uuid), id: -1))
        return writer
    }

    /// A machine that is off has no frozen file systems.
    func isOff(
        _ uuid: String, _ name: String, _ connection: UpstreamConnection
    ) async -> Bool {
        let reply = await connection.reply(to: .domainIsActive, Self.domain(uuid, name).bytes)
        guard case .success(let packet) = reply,
            packet.header.status == PacketStatus.ok.rawValue
        else { return false }
        var reader = XDRReader(packet.body)
        return (try? reader.int()) == 0
    }

    func garbled(_ packet: Packet) -> UpstreamFault {
        .garbled(path: upstream.socketPath, detail: "an error of \(packet.body.count) bytes")
    }

    /// Errors with which libvirtd refuses before it asks the agent: not supported, read-only, no
    /// such domain, not running, no agent.
    private static let neverAsked: Set<Int32> = [3, 29, 42, 55, 74, 84]

    /// Whether an error says that the guest has not been frozen by the freeze that it answers, so
    /// that there is nothing to thaw.
    ///
    /// An agent that has frozen the guest for somebody else, or may not freeze it, has that command
    /// disabled: to thaw would end another's freeze. `mayBeOurs`: that freeze may be one of our
    /// own.
    static func wasNotFrozen(_ error: WireError, mayBeOurs: Bool) -> Bool {
        // An agent that is not there has the number of one that does not answer, and other words.
        neverAsked.contains(error.code)
            || error.message.hasSuffix("QEMU guest agent is not connected")
            || error.message.hasSuffix("QEMU guest agent is not available due to an error")
            || (error.message.contains("has been disabled") && !mayBeOurs)
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
