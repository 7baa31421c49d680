// What each option answers. An option that is refused has appended nothing to the reply and, except
// for SET_META_CONTEXT, changed nothing.

extension Handshake {
    /// How an option's payload is treated, decided from its header alone.
    enum OptionPlan {
        /// The payload does not matter: consume it as it comes, then act.
        case skip(then: AfterSkip)
        /// EXPORT_NAME, which has no way to refuse.
        case chooseByName
        /// The payload is needed whole, and is small enough.
        case answer(BufferedOption)
        /// STARTTLS, granted.
        case startTLS
    }

    /// The options whose payload is parsed.
    enum BufferedOption {
        case list, structuredReply, extendedHeaders, info, go, listMetaContext, setMetaContext
    }

    func plan(code: UInt32, byteCount: UInt32) -> OptionPlan {
        func refuse(_ refusal: OptionRefusal) -> OptionPlan {
            .skip(then: .refuse(code: code, refusal))
        }
        func withoutPayload(_ option: BufferedOption) -> OptionPlan {
            byteCount == 0 ? .answer(option) : refuse(.payloadNotAllowed)
        }
        func bounded(_ option: BufferedOption) -> OptionPlan {
            byteCount <= UInt32(ProtocolLimits.optionPayloadBytesMax)
                ? .answer(option) : refuse(.optionTooLarge)
        }
        let option = OptionCode(rawValue: code)
        if needsTLS, option != .startTLS, option != .abort { return refuse(.tlsRequired) }
        return switch option {
        case .exportName: .chooseByName
        case .abort: .skip(then: .acknowledgeAbort)
        case .list: withoutPayload(.list)
        case .startTLS:
            if byteCount != 0 {
                refuse(.payloadNotAllowed)
            } else if tls == .off {
                refuse(.tlsNotOffered)
            } else if isSecured {
                refuse(.tlsBefore)
            } else {
                .startTLS
            }
        case .info: bounded(.info)
        case .go: bounded(.go)
        case .structuredReply: withoutPayload(.structuredReply)
        case .listMetaContext: bounded(.listMetaContext)
        case .setMetaContext: bounded(.setMetaContext)
        case .extendedHeaders: withoutPayload(.extendedHeaders)
        case nil: refuse(.unknownOption)
        }
    }

    /// Answers one option; the result is not nil when transmission begins.
    mutating func answer(
        _ option: BufferedOption, payload: Span<UInt8>,
        directory: borrowing some ExportDirectory & ~Copyable, reply: inout [UInt8]
    ) throws(OptionRefusal) -> Negotiated? {
        switch option {
        case .list:
            try list(directory: directory, reply: &reply)
            return nil
        case .structuredReply:
            guard replyMode != .extended else { throw .structuredAfterExtended }
            guard replyMode == .simple else { throw .structuredBefore }
            replyMode = .structured
            reply.appendAcknowledge(code: OptionCode.structuredReply.rawValue)
            return nil
        case .extendedHeaders:
            guard replyMode != .extended else { throw .extendedBefore }
            replyMode = .extended
            reply.appendAcknowledge(code: OptionCode.extendedHeaders.rawValue)
            return nil
        case .info:
            _ = try describe(.info, payload: payload, directory: directory, reply: &reply)
            return nil
        case .go:
            return try describe(.go, payload: payload, directory: directory, reply: &reply)
        case .listMetaContext:
            try listContexts(payload: payload, directory: directory, reply: &reply)
            return nil
        case .setMetaContext:
            try setContexts(payload: payload, directory: directory, reply: &reply)
            return nil
        }
    }

    /// The export that EXPORT_NAME chooses.
    func chosenExport(
        _ payload: Span<UInt8>, directory: borrowing some ExportDirectory & ~Copyable
    ) throws(HandshakeFault) -> Negotiated {
        let name: String
        do {
            var cursor = PayloadCursor()
            name = try cursor.string(byteCount: UInt32(payload.count), in: payload)
        } catch {
            throw .invalidExportName
        }
        guard let export = directory.export(named: name) else { throw .unknownExport }
        guard let negotiated = negotiated(export, requestedName: name) else {
            throw .exportChanged
        }
        return negotiated
    }

    private mutating func list(
        directory: borrowing some ExportDirectory & ~Copyable, reply: inout [UInt8]
    ) throws(OptionRefusal) {
        guard !hasListed else { throw .listedBefore }
        hasListed = true
        let listings = directory.listings()
        // A name too long for the wire cannot be asked for either.
        for listing in listings where listing.name.utf8.count <= ProtocolLimits.stringBytesMax {
            reply.appendListing(listing)
        }
        raiseOptionLimit(exportCount: listings.count)
        reply.appendAcknowledge(code: OptionCode.list.rawValue)
    }

    /// Answers INFO and GO, which say the same; only GO's result is used.
    private func describe(
        _ option: OptionCode, payload: Span<UInt8>,
        directory: borrowing some ExportDirectory & ~Copyable, reply: inout [UInt8]
    ) throws(OptionRefusal) -> Negotiated {
        let request = try InfoRequest(payload)
        guard let export = directory.export(named: request.exportName) else {
            // The same answer for exports that need TLS and for those that are not there: names
            // cannot be tried out in plaintext.
            throw tls == .selective && !isSecured ? .tlsRequired : .noSuchExport
        }
        guard let negotiated = negotiated(export, requestedName: request.exportName) else {
            throw .exportChanged
        }
        reply.appendInfo(code: option.rawValue, negotiated.export, for: request)
        reply.appendAcknowledge(code: option.rawValue)
        return negotiated
    }

    private func listContexts(
        payload: Span<UInt8>, directory: borrowing some ExportDirectory & ~Copyable,
        reply: inout [UInt8]
    ) throws(OptionRefusal) {
        let request = try MetaContextRequest(payload)
        guard let export = directory.export(named: request.exportName) else {
            throw .noSuchExport
        }
        let code = OptionCode.listMetaContext.rawValue
        for index in MetaContext.listed(in: export.contexts, by: request.queries) {
            // Ids have no meaning in a listing; the specification asks for zero.
            reply.appendMetaContext(code: code, id: 0, name: export.contexts[index])
        }
        reply.appendAcknowledge(code: code)
    }

    private mutating func setContexts(
        payload: Span<UInt8>, directory: borrowing some ExportDirectory & ~Copyable,
        reply: inout [UInt8]
    ) throws(OptionRefusal) {
        // Replaced even when what follows fails.
        selection = nil
        guard replyMode.usesChunks else { throw .structuredRepliesRequired }
        let request = try MetaContextRequest(payload)
        guard let export = directory.export(named: request.exportName) else {
            throw .noSuchExport
        }
        let contexts = MetaContext.selected(in: export.contexts, by: request.queries)
        let code = OptionCode.setMetaContext.rawValue
        for context in contexts {
            reply.appendMetaContext(code: code, id: context.id, name: context.name)
        }
        reply.appendAcknowledge(code: code)
        selection = ContextSelection(exportName: request.exportName, contexts: contexts)
    }

    /// What transmission with `export` would look like, or nil if a selected context is gone.
    ///
    /// Contexts count only if they were set for the very name that is asked for now.
    private func negotiated(
        _ export: ExportDescription, requestedName: String
    ) -> Negotiated? {
        var contexts: [SelectedContext] = []
        if let selection, selection.exportName.hasSameBytes(as: requestedName) {
            guard selection.isValid(for: export) else { return nil }
            contexts = selection.contexts
        }
        var export = export
        export.flags = export.negotiatedFlags(replyMode: replyMode)
        return Negotiated(export: export, replyMode: replyMode, contexts: contexts)
    }
}
