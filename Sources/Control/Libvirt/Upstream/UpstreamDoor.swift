import LibvirtProtocol

/// Calls of a door that has a libvirtd behind it.
enum UpstreamDoor {
    /// Answers a call; nil when its answer has been sent already.
    static func answer(
        _ call: IncomingCall, _ session: LibvirtSession, _ context: LibvirtContext
    ) async -> Packet? {
        guard let settings = context.upstream else {
            return await LibvirtCalls.answer(call, session, context)
        }
        if call.entry.procedure == .open { return await open(call, session, context, settings) }
        guard let connection = session.upstream else {
            return await LibvirtCalls.answer(call, session, context)
        }
        return await UpstreamExchange(
            call: call, session: session, context: context, connection: connection
        ).answer()
    }

    /// Opens libvirtd for the client, with the client's flags: a read-only client has a read-only
    /// connection there, too.
    ///
    /// A user who may open libvirtd may do anything on this machine, so only root and the server's
    /// own user get through, whatever the socket's permissions say.
    private static func open(
        _ call: IncomingCall, _ session: LibvirtSession, _ context: LibvirtContext,
        _ settings: UpstreamSettings
    ) async -> Packet {
        let own = await LibvirtCalls.answer(call, session, context)
        guard own.error == nil else { return own }
        let header = call.packet.header
        guard session.user == 0 || session.user == SystemCalls.effectiveUser else {
            return .failure(header, .notForUser(session.user))
        }
        var arguments = call.arguments
        _ = try? arguments.optionalString()
        let flags = (try? arguments.uint()) ?? 1
        do throws(UpstreamFault) {
            let connection = try await UpstreamConnection.open(
                settings,
                uri: UpstreamURI.name(client: session.uri, configured: settings.uri),
                flags: flags, deliver: { await session.deliver($0) },
                ended: { _ in session.hangUp() })
            guard session.attach(connection) else {
                connection.close()
                return .failure(header, .openedTwice)
            }
            return own
        } catch {
            return .failure(header, error.wire)
        }
    }
}

extension WireError {
    /// A peer that the socket's permissions let in, and libvirtd would not.
    static func notForUser(_ user: UInt32) -> WireError {
        WireError(
            code: WireErrorCode.operationDenied, domain: WireErrorDomain.remote,
            prefix: "operation forbidden: ",
            detail: "user \(user) may not use the libvirtd behind nbdpull: only root and the user "
                + "that nbdpull runs as may")
    }

    static let openedTwice = WireError(
        code: WireErrorCode.internalError, domain: WireErrorDomain.remote,
        prefix: "internal error: ", detail: "connection already open")

    /// A serial that the door uses towards libvirtd.
    static func serialTaken(_ serial: UInt32) -> WireError {
        WireError(
            code: WireErrorCode.rpc, domain: WireErrorDomain.rpc, prefix: "internal error: ",
            detail: "serial \(serial) is not for clients: they count from 0 to "
                + "\(UpstreamSerial.first - 1)")
    }
}
