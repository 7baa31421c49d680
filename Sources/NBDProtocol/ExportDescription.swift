/// What negotiation needs to know about an export.
package struct ExportDescription: Sendable, Equatable {
    /// The canonical name, which may differ from the one a client asked for.
    package var name: String
    /// A text for people, or nil.
    package var description: String?
    /// Size in bytes; below 2^63, as clients count in signed integers.
    package var sizeBytes: UInt64
    /// What the export can do, `sendDF` and `blockStatusPayload` left out: the handshake decides
    /// those.
    package var flags: TransmissionFlags
    /// False: WRITE is refused as on a read-only export, whatever the flags offer besides.
    package var takesWrites: Bool
    /// Smallest request that is served without reading around it: a power of two up to 65536.
    package var minimumBlockBytes: UInt32
    /// Request size that works best: a power of two, at least `minimumBlockBytes`.
    package var preferredBlockBytes: UInt32
    /// Largest payload announced to clients, in bytes.
    package var maximumPayloadBytes: UInt32
    /// Names of the meta contexts, in the order of their ids.
    ///
    /// Index 0 is always `base:allocation`; later ones are `qemu:dirty-bitmap:NAME`, as many as
    /// there are. Only the first `ProtocolLimits.contextsMax` can be selected.
    package var contexts: [String]

    /// A description; what is left out gets the protocol's usual values.
    package init(
        name: String, description: String? = nil, sizeBytes: UInt64, flags: TransmissionFlags,
        takesWrites: Bool = true,
        minimumBlockBytes: UInt32 = 1, preferredBlockBytes: UInt32 = 4096,
        maximumPayloadBytes: UInt32 = ProtocolLimits.advertisedPayloadBytes,
        contexts: [String] = [MetaContext.allocation]
    ) {
        self.name = name
        self.description = description
        self.sizeBytes = sizeBytes
        self.flags = flags
        self.takesWrites = takesWrites
        self.minimumBlockBytes = minimumBlockBytes
        self.preferredBlockBytes = preferredBlockBytes
        self.maximumPayloadBytes = maximumPayloadBytes
        self.contexts = contexts
    }

    /// The flags announced to a client, given how replies are sent.
    ///
    /// Bits that would promise what this server never does are taken out: FAST_ZERO without
    /// WRITE_ZEROES, and RESIZE. BLOCK_STATUS payloads are announced before any context is set, as
    /// a client may ask with INFO first and choose its contexts by the answer.
    func negotiatedFlags(replyMode: ReplyMode) -> TransmissionFlags {
        var result = flags.union(.hasFlags)
        result.subtract([.sendDF, .sendResize, .blockStatusPayload])
        if !result.contains(.sendWriteZeroes) { result.remove(.sendFastZero) }
        if replyMode.usesChunks { result.insert(.sendDF) }
        if replyMode == .extended { result.insert(.blockStatusPayload) }
        return result
    }
}

/// One export as LIST shows it.
package struct ExportListing: Sendable, Equatable {
    /// The name a client may ask for.
    package var name: String
    /// A text for people, or nil.
    package var description: String?

    /// A listing of one export.
    package init(name: String, description: String? = nil) {
        self.name = name
        self.description = description
    }
}

/// The exports one connection may see.
///
/// Asked during negotiation only, never per request. An export the peer may not use is simply not
/// there, so that a refused peer learns no names.
package protocol ExportDirectory: ~Copyable {
    /// Every export LIST shows, in order.
    func listings() -> [ExportListing]
    /// The export a client means by `name`, or nil when there is none.
    ///
    /// The empty name asks for the default export.
    func export(named name: String) -> ExportDescription?
}

/// A meta context the client selected.
package struct SelectedContext: Equatable, Sendable {
    /// The context's number in BLOCK_STATUS; below `ProtocolLimits.contextsMax`.
    package let id: UInt32
    /// The context's full name.
    package let name: String
    /// Index into `ExportDescription.contexts`.
    package let index: Int

    /// A selected context.
    package init(id: UInt32, name: String, index: Int) {
        self.id = id
        self.name = name
        self.index = index
    }
}

/// What both sides agreed on when transmission begins.
package struct Negotiated: Sendable, Equatable {
    /// The chosen export; its flags are the ones announced to the client.
    package var export: ExportDescription
    /// How every request is answered.
    package var replyMode: ReplyMode
    /// The selected meta contexts in the order of their ids; empty unless replies are chunks.
    package var contexts: [SelectedContext]

    /// An agreement.
    package init(export: ExportDescription, replyMode: ReplyMode, contexts: [SelectedContext]) {
        self.export = export
        self.replyMode = replyMode
        self.contexts = contexts
    }
}
