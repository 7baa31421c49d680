import LibvirtProtocol

/// How clients ask for events.
extension LibvirtCalls {
    static let events: [Procedure: LibvirtHandler] = [
        .eventCallbackRegisterAny: { call in
            let event = try call.arguments.int()
            let wire = try call.arguments.optionalDomain()
            guard LibvirtEventKind.all.contains(event) else {
                throw WireError.unsupportedEvent(event)
            }
            var uuid: String?
            if let wire { uuid = try await call.context.domain(wire).definition.uuid }
            guard
                let number = call.session.register(event: event, uuid: uuid, isLegacy: false)
            else { throw WireError.tooManyRegistrations }
            return reply { $0.int(number) }
        },
        .eventCallbackDeregisterAny: { call in
            let number = try call.arguments.int()
            guard call.session.deregister({ $0.number == number && !$0.isLegacy }) else {
                throw WireError.events("domain event callback \(number) not registered")
            }
            return nothing
        },
        .eventRegister: { call in
            try registerLegacy(LibvirtEventKind.lifecycle, call.session)
            return reply { $0.int(1) }
        },
        .eventDeregister: { call in
            try deregisterLegacy(LibvirtEventKind.lifecycle, call.session)
            return reply { $0.int(0) }
        },
        .eventRegisterAny: { call in
            let event = try call.arguments.int()
            guard LibvirtEventKind.legacy.contains(event) else {
                throw WireError.unsupportedEvent(event)
            }
            try registerLegacy(event, call.session)
            return nothing
        },
        .eventDeregisterAny: { call in
            try deregisterLegacy(try call.arguments.int(), call.session)
            return nothing
        },
    ]

    /// Clients that know no callbacks ask for each event once.
    private static func registerLegacy(_ event: Int32, _ session: LibvirtSession) throws {
        guard !session.registrations.contains(where: { $0.isLegacy && $0.event == event }) else {
            throw WireError(
                code: WireErrorCode.invalidArgument, domain: WireErrorDomain.none,
                prefix: "invalid argument: ", detail: "event callback already tracked")
        }
        guard session.register(event: event, uuid: nil, isLegacy: true) != nil else {
            throw WireError.tooManyRegistrations
        }
    }

    private static func deregisterLegacy(_ event: Int32, _ session: LibvirtSession) throws {
        guard session.deregister({ $0.isLegacy && $0.event == event }) else {
            throw WireError.events("domain event \(event) not registered")
        }
    }
}

extension WireError {
    /// What libvirtd's own part for events has to say.
    static func events(_ detail: String) -> WireError {
        WireError(
            code: WireErrorCode.internalError, domain: WireErrorDomain.rpc,
            prefix: "internal error: ", detail: detail)
    }

    static func unsupportedEvent(_ event: Int32) -> WireError {
        events("unsupported event ID \(event)")
    }

    /// A client asks for more events than it can want.
    static let tooManyRegistrations = events(
        "there are already \(LibvirtLimits.registrationsMax) event registrations")
}
