import LibvirtProtocol
import ServerInterface
import Testing

@testable import Control

/// A client of the libvirt door without its socket: calls go to the handlers, as packets.
struct LibvirtClient {
    let context: LibvirtContext
    let session: LibvirtSession

    init(_ manager: JobManager, isReadOnly: Bool = false) {
        self.init(LibvirtContext(manager: manager), isReadOnly: isReadOnly)
    }

    /// One of several clients of a door.
    init(
        _ context: LibvirtContext, user: UInt32 = 0, process: Int32 = 0, isReadOnly: Bool = false
    ) {
        self.context = context
        session = LibvirtSession(user: user, process: process, sendEvent: { _ in })
        session.isReadOnly = isReadOnly
    }

    /// The reply's body, which has the shape that the table says.
    ///
    /// - Throws: the error that the reply carries.
    @discardableResult
    func call(
        _ procedure: Procedure, _ write: (inout XDRWriter) -> Void
    ) async throws -> XDRReader {
        var body = XDRWriter()
        write(&body)
        let entry = try #require(ProcedureTable.entry(procedure))
        try XDRShape.check(entry.arguments, body.bytes)
        let header = PacketHeader(procedure: procedure.rawValue, type: .call, serial: 7)
        let packet = Packet(header, body: body.bytes)
        let reply = await LibvirtCalls.answer(
            IncomingCall(entry: entry, packet: packet), session, context)
        guard reply.header.status == PacketStatus.ok.rawValue else {
            throw try WireError(body: reply.body)
        }
        #expect(try XDRShape.check(entry.results, reply.body) == 0)
        return XDRReader(reply.body)
    }

    /// The error that a call is answered with.
    func error(
        _ procedure: Procedure, _ write: (inout XDRWriter) -> Void
    ) async throws -> WireError {
        let error = await #expect(throws: WireError.self) { try await call(procedure, write) }
        return try #require(error)
    }

    func domain(_ name: String = "vm1") async throws -> WireDomain {
        var reply = try await call(.domainLookupByName) { $0.string(name) }
        return try reply.domain()
    }

    func checkpoint(_ name: String) async throws -> WireCheckpoint {
        WireCheckpoint(name: name, domain: try await domain())
    }

    /// Names in a list of checkpoints, and the count beside it.
    func list(
        _ flags: UInt32, from parent: String? = nil, needsResults: Int32 = 1
    ) async throws -> (names: [String], count: Int32) {
        let domain = try await domain()
        var reply = try await call(
            parent == nil ? .domainListAllCheckpoints : .checkpointListAllChildren
        ) { writer in
            if let parent {
                writer.checkpoint(WireCheckpoint(name: parent, domain: domain))
            } else {
                writer.domain(domain)
            }
            writer.int(needsResults)
            writer.uint(flags)
        }
        var names: [String] = []
        for _ in 0..<(try reply.count(limit: 100)) { names.append(try reply.checkpoint().name) }
        return (names, try reply.int())
    }

    func begin(_ xml: String, checkpoint: String? = nil, flags: UInt32 = 0) async throws {
        let domain = try await domain()
        try await call(.domainBackupBegin) {
            $0.domain(domain)
            $0.string(xml)
            $0.optionalString(checkpoint)
            $0.uint(flags)
        }
    }

    /// A job's type and its figures by name.
    func figures(_ flags: UInt32 = 0) async throws -> (Int32, [String: TypedParameter.Value]) {
        let domain = try await domain()
        var reply = try await call(.domainGetJobStats) {
            $0.domain(domain)
            $0.uint(flags)
        }
        let type = try reply.int()
        let list = try reply.parameters()
        return (type, Dictionary(list.map { ($0.field, $0.value) }) { first, _ in first })
    }

    func socket() async throws -> String? {
        let domain = try await domain()
        var reply = try await call(.domainBackupGetXMLDesc) {
            $0.domain(domain)
            $0.uint(0)
        }
        // Output has attributes that input may not have, so it is not read as a request.
        return try reply.string().split(separator: "socket='").dropFirst().first
            .flatMap { $0.split(separator: "'").first }.map(String.init)
    }

    func abort() async throws {
        let domain = try await domain()
        try await call(.domainAbortJob) { $0.domain(domain) }
    }
}
