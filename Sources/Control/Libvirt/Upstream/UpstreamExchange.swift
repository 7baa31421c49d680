import LibvirtProtocol

/// One call of a client whose connection has a libvirtd behind it: who answers it, and how two
/// answers become one.
struct UpstreamExchange: Sendable {
    let call: IncomingCall
    let session: LibvirtSession
    let context: LibvirtContext
    let connection: UpstreamConnection

    var procedure: Procedure { call.entry.procedure }

    /// The answer; nil when it has been sent already.
    func answer() async -> Packet? {
        switch UpstreamRoute.of(procedure) {
        case .ours: await ours()
        case .passed: await theirs(seconds: nil)
        case .oursOnOurDomains where fixesInstant: await instant()
        case .oursOnOurDomains: await isOnOurDomain ? ours() : theirs(seconds: nil)
        case .upstreamElseOurs: await theirsElseOurs()
        case .oursOnAnyError:
            await theirsElseOurs(seconds: UpstreamLimits.shortAnswerSeconds) { _ in true }
        case .oursWhenJob: await oursWhenJob()
        case .merged: await merged()
        }
    }

    private func merged() async -> Packet? {
        switch procedure {
        case .supportsFeature: await feature()
        case .listAllDomains: await domainList()
        case .domainGetXMLDesc: await domainXML()
        case .getAllDomainStats: await domainStats()
        case .domainGetBlockJobInfo: await blockJobInfo()
        case .domainBlockJobAbort: await blockJobAbort()
        case .domainSetBlockThreshold: await blockThreshold()
        case .eventCallbackRegisterAny: await registerCallback()
        case .eventCallbackDeregisterAny, .eventRegister, .eventDeregister, .eventRegisterAny,
            .eventDeregisterAny:
            await bothForEvents()
        default: await theirs(seconds: nil)
        }
    }

    // MARK: The two answers

    /// What this server says, to these arguments or to the call's own.
    func ours(_ body: [UInt8]? = nil) async -> Packet {
        var own = call
        if let body {
            own = IncomingCall(
                entry: call.entry, packet: Packet(call.packet.header, body: body))
        }
        return await LibvirtCalls.answer(own, session, context)
    }

    /// What libvirtd says, to these arguments or to the call's own, as the answer to the client's
    /// call.
    ///
    /// `seconds` nil waits as long as libvirtd lives: it is the client who is patient or not.
    func theirs(
        _ body: [UInt8]? = nil, seconds: Int64? = UpstreamLimits.answerSeconds
    ) async -> Packet {
        let reply = await connection.reply(
            to: procedure, body ?? call.packet.body, seconds: seconds)
        return packet(reply)
    }

    /// An answer of libvirtd's with the serial of the client's call.
    func packet(_ reply: Result<Packet, UpstreamFault>) -> Packet {
        switch reply {
        case .success(let reply):
            var header = call.packet.header.reply(.ok)
            header.status = reply.header.status
            return Packet(header, body: reply.body)
        case .failure(let fault): return failure(fault.wire)
        }
    }

    func failure(_ error: WireError) -> Packet { .failure(call.packet.header, error) }

    /// An answer with these results.
    func success(_ write: (inout XDRWriter) -> Void) -> Packet {
        Packet(call.packet.header.reply(.ok), body: LibvirtCalls.reply(write).bytes)
    }

    /// Reads an answer that must have the form of the table, or says that it has not.
    func reading(
        _ packet: Packet, _ body: (inout XDRReader) throws(XDRError) -> Packet
    ) -> Packet {
        var reader = XDRReader(packet.body)
        do throws(XDRError) {
            return try body(&reader)
        } catch {
            return failure(connection.garbled("\(error)").wire)
        }
    }

    // MARK: Whose domain it is

    /// The domain that the call names first, directly or with a checkpoint.
    var named: WireDomain? {
        var arguments = call.arguments
        switch call.entry.arguments.first {
        case .domain: return try? arguments.domain()
        case .checkpoint: return (try? arguments.checkpoint())?.domain
        default: return nil
        }
    }

    var isOnOurDomain: Bool {
        get async { await ourDomain != nil }
    }

    var ourDomain: LibvirtDomain? {
        get async {
            guard let named else { return nil }
            return await context.domain(uuid: UUIDText.text(named.uuid))
        }
    }

    // MARK: Rules for two answers

    /// Libvirtd's answer, unless it is an error that `givesWay`: then ours, when the domain is
    /// ours.
    ///
    /// By default what gives way is that libvirtd does not know the domain. Where a domain is only
    /// looked up, silence gives way as well: names and uuids are true no matter who says them.
    func theirsElseOurs(
        seconds: Int64? = nil,
        _ givesWay: (WireError) -> Bool = { $0.code == WireErrorCode.noDomain }
    ) async -> Packet {
        let isLookup = named == nil
        let isFreeze = procedure == .domainFSFreeze || procedure == .domainFSThaw
        let usual = isLookup ? UpstreamLimits.shortAnswerSeconds : UpstreamLimits.answerSeconds
        let theirs = await theirs(seconds: isFreeze ? nil : seconds ?? usual)
        guard let error = theirs.error else { return theirs }
        guard givesWay(error) || (isLookup && error.code == WireErrorCode.timedOut) else {
            return theirs
        }
        let own = await ours()
        // Two that do not know the domain: libvirtd's words are those that are expected.
        return own.error?.code == WireErrorCode.noDomain ? theirs : own
    }

    /// Ours when a job of ours is there to speak of, else libvirtd's own.
    private func oursWhenJob() async -> Packet {
        guard await isOnOurDomain else { return await theirs(seconds: nil) }
        let own = await ours()
        guard own.error == nil else { return own }
        var reader = XDRReader(own.body)
        // A type of 0 says that there is none.
        guard (try? reader.int()) == 0 else { return own }
        let theirs = await theirs()
        return theirs.error == nil ? theirs : own
    }

    /// What libvirtd understands, but for descriptors, which do not pass.
    private func feature() async -> Packet {
        var arguments = call.arguments
        switch try? arguments.int() {
        case LibvirtFeature.keepalive: return await ours()
        case LibvirtFeature.descriptors: return success { $0.bool(false) }
        default: return await theirs()
        }
    }
}

extension Packet {
    /// The error that a reply is; nil for one that is none.
    var error: WireError? {
        guard header.status != PacketStatus.ok.rawValue else { return nil }
        return (try? WireError(body: body))
            ?? WireError(
                code: WireErrorCode.rpc, domain: WireErrorDomain.remote, prefix: "",
                detail: "an error that cannot be read")
    }
}

extension WireErrorCode {
    static let timedOut: Int32 = 68
}

extension LibvirtFeature {
    /// Descriptors go with calls.
    static let descriptors: Int32 = 8
}
