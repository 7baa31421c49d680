import LibvirtProtocol
import ServerInterface

/// One call as its handler sees it.
///
/// A handler reads its arguments, asks the manager, and returns the reply's body; what it throws is
/// the reply otherwise: a ``WireError`` as it is, a `ControlError` with a domain by rule, an
/// `XDRError` as malformed arguments.
struct LibvirtCall: Sendable {
    let procedure: Procedure
    /// What the client has sent; it has the shape that ``ProcedureTable`` names.
    var arguments: XDRReader
    let session: LibvirtSession
    let context: LibvirtContext

    init(_ call: IncomingCall, session: LibvirtSession, context: LibvirtContext) {
        procedure = call.entry.procedure
        arguments = call.arguments
        self.session = session
        self.context = context
    }

    var manager: JobManager { context.manager }

    /// Reads a domain and finds it by its uuid, as libvirt does.
    ///
    /// - Throws: 42 when there is none of that uuid.
    mutating func domain() async throws -> LibvirtDomain {
        try await shown(try arguments.domain())
    }

    /// Where libvirtd runs the machines, a client's domain has the name and the number that
    /// libvirtd has given it.
    private func shown(_ wire: WireDomain) async throws -> LibvirtDomain {
        var domain = try await context.domain(wire)
        if session.upstream != nil { domain.given = wire }
        return domain
    }

    /// Reads a checkpoint: its domain as above, and its name.
    mutating func checkpoint() async throws -> (name: String, domain: LibvirtDomain) {
        let checkpoint = try arguments.checkpoint()
        return (checkpoint.name, try await shown(checkpoint.domain))
    }

    /// Reads flags, of which only `known` may be set.
    ///
    /// `function` is the one that libvirt names to who sets others; by default its qemu driver's
    /// for the call.
    mutating func flags(_ known: UInt32 = 0, function: String? = nil) throws -> UInt32 {
        let flags = try arguments.uint()
        guard flags & ~known == 0 else {
            throw WireError.unsupportedFlags(
                flags & ~known, function: function ?? "qemu" + procedure.function.dropFirst(3))
        }
        return flags
    }
}

/// What answers a procedure.
typealias LibvirtHandler = @Sendable (inout LibvirtCall) async throws -> XDRWriter

/// The handlers of all procedures, family by family; a test holds them against
/// ``ProcedureTable``.
enum LibvirtCalls {
    static let all: [Procedure: LibvirtHandler] = {
        var all: [Procedure: LibvirtHandler] = [:]
        for family in [
            connection, domains, domainFacts, blocks, jobs, backups, checkpoints, events,
        ] {
            all.merge(family) { first, _ in first }
        }
        return all
    }()

    /// A reply without results.
    static let nothing = XDRWriter()

    /// A reply of one value.
    static func reply(_ write: (inout XDRWriter) -> Void) -> XDRWriter {
        var writer = XDRWriter()
        write(&writer)
        return writer
    }

    /// Answers a call, whatever becomes of it.
    static func answer(
        _ call: IncomingCall, _ session: LibvirtSession, _ context: LibvirtContext
    ) async -> Packet {
        let header = call.packet.header
        guard let handler = all[call.entry.procedure] else {
            return .failure(header, .unsupported(call.entry.procedure))
        }
        var call = LibvirtCall(call, session: session, context: context)
        do {
            let body = try await handler(&call).bytes
            guard body.count <= context.replyBytesMax else { throw WireError.replyTooLong }
            return Packet(header.reply(.ok), body: body)
        } catch {
            return .failure(header, WireError(any: error))
        }
    }
}
