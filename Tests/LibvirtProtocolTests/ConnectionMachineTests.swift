import LibvirtProtocol
import Testing

/// Who may say what, and when.
@Suite struct ConnectionMachineTests {
    /// A machine, and what it has been told.
    private struct Conversation {
        var machine = ConnectionMachine()
        var serial: UInt32 = 0

        mutating func say(_ packet: Packet) -> ConnectionMachine.Action? {
            machine.append(packet.bytes)
            return machine.next()
        }

        mutating func call(
            _ procedure: Procedure, _ body: [UInt8] = [], program: UInt32 = LibvirtProgram.remote,
            type: PacketType = .call, status: PacketStatus = .ok
        ) -> ConnectionMachine.Action? {
            serial += 1
            return say(
                Packet(
                    PacketHeader(
                        program: program, procedure: procedure.rawValue, type: type,
                        serial: serial, status: status), body: body))
        }

        /// The error by which a call is answered.
        mutating func refusal(_ procedure: Procedure, _ body: [UInt8] = []) throws -> WireError {
            let action = call(procedure, body)
            guard case .send(let reply) = action else {
                Issue.record("\(procedure.function): \(String(describing: action))")
                return .malformed
            }
            #expect(reply.header.type == PacketType.reply.rawValue)
            #expect(reply.header.status == PacketStatus.error.rawValue)
            #expect(reply.header.serial == serial)
            #expect(reply.header.procedure == procedure.rawValue)
            return try WireError(body: reply.body)
        }
    }

    private func opened(isReadOnly: Bool = false) -> Conversation {
        var conversation = Conversation()
        conversation.machine.opened(isReadOnly: isReadOnly)
        return conversation
    }

    /// Arguments that fit an entry.
    private func arguments(_ entry: ProcedureEntry) -> [UInt8] {
        var writer = XDRWriter()
        for shape in entry.arguments { write(shape, to: &writer) }
        return writer.bytes
    }

    private func write(_ shape: XDRShape, to writer: inout XDRWriter) {
        let domain = WireDomain(name: "vm", uuid: [UInt8](repeating: 1, count: 16), id: -1)
        switch shape {
        case .int, .uint: writer.uint(0)
        case .hyper, .uhyper, .double: writer.uhyper(0)
        case .string: writer.string("text")
        case .optionalString: writer.optionalString("text")
        case .uuid: writer.opaque(domain.uuid)
        case .domain: writer.domain(domain)
        case .optionalDomain:
            writer.bool(true)
            writer.domain(domain)
        case .checkpoint: writer.checkpoint(WireCheckpoint(name: "c", domain: domain))
        case .parameter: writer.parameter(TypedParameter("p", .int(1)))
        case .array(let shapes, _):
            writer.count(1)
            for shape in shapes { write(shape, to: &writer) }
        }
    }

    // MARK: Before and after the open

    @Test("before the open only what leads to it can be called", arguments: ProcedureTable.all)
    func greeting(entry: ProcedureEntry) throws {
        var conversation = Conversation()
        if entry.access == .anybody {
            guard case .call = conversation.call(entry.procedure, arguments(entry)) else {
                Issue.record("refused")
                return
            }
        } else {
            #expect(
                try conversation.refusal(entry.procedure, arguments(entry)) == WireError.notOpen)
        }
    }

    @Test(
        "on a read-only connection nothing that changes can be called",
        arguments: ProcedureTable.all)
    func readOnly(entry: ProcedureEntry) throws {
        guard entry.procedure != .open else { return }
        var conversation = opened(isReadOnly: true)
        guard entry.access == .readWrite else {
            guard case .call = conversation.call(entry.procedure, arguments(entry)) else {
                Issue.record("refused")
                return
            }
            return
        }
        let error = try conversation.refusal(entry.procedure, arguments(entry))
        #expect(error.code == 29)
        #expect(
            error.message
                == "operation forbidden: read only access prevents \(entry.procedure.function)")
    }

    @Test("what changes something is refused to who may only read: the whole list")
    func readWriteList() {
        let names = ProcedureTable.all.filter { $0.access == .readWrite }.map(\.procedure.function)
        #expect(
            Set(names) == [
                "virDomainFSFreeze", "virDomainFSThaw", "virDomainSetBlockThreshold",
                "virDomainBlockJobAbort", "virDomainAbortJob", "virDomainAbortJobFlags",
                "virDomainBackupBegin", "virDomainCheckpointCreateXML",
                "virDomainCheckpointDelete",
            ])
    }

    @Test("a connection is opened once")
    func openTwice() throws {
        var conversation = opened()
        let body = arguments(try #require(ProcedureTable.entry(.open)))
        #expect(try conversation.refusal(.open, body) == WireError.alreadyOpen)
    }

    @Test("what is said after the close is not looked at")
    func closed() {
        var conversation = opened()
        conversation.machine.closed()
        #expect(conversation.call(.getType) == nil)
    }

    // MARK: Refusals

    @Test("arguments that end early are refused as libvirtd does", arguments: ProcedureTable.all)
    func short(entry: ProcedureEntry) throws {
        guard !entry.arguments.isEmpty, entry.procedure != .open else { return }
        var conversation = opened()
        let whole = arguments(entry)
        for count in [0, whole.count / 2, whole.count - 1] {
            let error = try conversation.refusal(entry.procedure, Array(whole.prefix(count)))
            #expect(error == WireError.malformed)
            #expect(error.code == 39 && error.domain == 7)
            #expect(error.message == "Unable to decode message payload")
        }
    }

    @Test("P6: an array in arguments that promises too much is refused")
    func arrays() throws {
        var conversation = opened()
        var writer = XDRWriter()
        writer.uint(0x7FFF_FFFF)
        #expect(try conversation.refusal(.getAllDomainStats, writer.bytes) == .malformed)
        writer = XDRWriter()
        writer.domain(WireDomain(name: "vm", uuid: [UInt8](repeating: 0, count: 16), id: 1))
        writer.uint(UInt32(LibvirtLimits.mountPointsMax) + 1)
        #expect(try conversation.refusal(.domainFSFreeze, writer.bytes) == .malformed)
    }

    @Test("a procedure that is not served is handed on, and refused by its name")
    func unserved() throws {
        var conversation = opened()
        for (number, text) in [
            (9, "virDomainCreate"), (39, "virNetworkCreate"), (999, "procedure 999"),
            (-5, "procedure -5"), (Int32.max, "procedure 2147483647"),
        ] {
            guard case .unserved(let packet) = conversation.call(Procedure(rawValue: number))
            else {
                Issue.record("\(number)")
                continue
            }
            let error = try #require(WireError.unserved(packet))
            #expect(error.code == 3)
            #expect(
                error.message
                    == "this function is not supported by the connection driver: \(text)")
        }
        guard
            case .unserved(let packet) = conversation.call(.open, program: LibvirtProgram.qemu)
        else {
            Issue.record("another program")
            return
        }
        #expect(WireError.unserved(packet)?.code == 3)
    }

    @Test("a call that says it has failed is refused, and the next is heard")
    func status() {
        var conversation = opened()
        guard case .send(let reply) = conversation.call(.getType, status: .error) else {
            Issue.record("no answer")
            return
        }
        #expect(reply.body == WireError.unexpectedStatus(1).body)
        guard case .call = conversation.call(.getType) else {
            Issue.record("not heard")
            return
        }
    }

    @Test(
        "P6: what a client cannot say ends its connection",
        arguments: [
            PacketType.reply, .message, .replyWithDescriptors,
        ])
    func types(type: PacketType) {
        var conversation = opened()
        #expect(
            conversation.call(.getType, type: type) == .hangUp(.unexpectedType(type.rawValue)))
        #expect(conversation.call(.getType) == nil)
    }

    @Test("a part of a stream that nobody has begun is not answered")
    func stream() {
        var conversation = opened()
        guard case .unserved(let packet) = conversation.call(.getType, type: .stream) else {
            Issue.record("not handed on")
            return
        }
        #expect(WireError.unserved(packet) == nil)
    }

    @Test("P6: a packet before the open is short")
    func longGreeting() {
        var machine = ConnectionMachine()
        var writer = XDRWriter()
        writer.uint(UInt32(LibvirtLimits.greetingBytesMax) + 1)
        machine.append(writer.bytes)
        #expect(
            machine.next()
                == .hangUp(
                    .framing(
                        .tooLong(
                            UInt32(LibvirtLimits.greetingBytesMax) + 1,
                            limit: LibvirtLimits.greetingBytesMax))))
        machine = ConnectionMachine()
        machine.opened(isReadOnly: false)
        machine.append(writer.bytes)
        #expect(machine.next() == nil)
    }

    // MARK: Bounds

    @Test("P6: a connection has so many calls in progress and no more; an answer makes room")
    func calls() {
        var conversation = opened()
        for _ in 0..<LibvirtLimits.callsPerConnection {
            guard case .call = conversation.call(.getType) else {
                Issue.record("refused")
                return
            }
        }
        #expect(!conversation.machine.takesCalls)
        #expect(conversation.call(.getType) == nil)
        conversation.machine.finished(bytes: 0)
        guard case .call(let call) = conversation.machine.next() else {
            Issue.record("not taken up again")
            return
        }
        #expect(call.packet.header.serial == UInt32(LibvirtLimits.callsPerConnection) + 1)
    }

    @Test("P6: the bytes of calls in progress are bounded, too")
    func callBytes() {
        var conversation = opened()
        var writer = XDRWriter()
        writer.string(String(repeating: "x", count: LibvirtLimits.stringBytesMax))
        for _ in 0..<2 {
            guard case .call = conversation.call(.domainLookupByName, writer.bytes) else {
                Issue.record("refused")
                return
            }
        }
        #expect(!conversation.machine.takesCalls)
    }

    // MARK: Keepalive

    @Test("PING is answered by PONG at any time, before the open as well")
    func ping() {
        for var conversation in [Conversation(), opened()] {
            #expect(
                conversation.say(.keepalive(KeepaliveProcedure.ping))
                    == .send(.keepalive(KeepaliveProcedure.pong)))
            #expect(conversation.say(.keepalive(KeepaliveProcedure.pong)) == nil)
            #expect(conversation.say(.keepalive(77)) == nil)
        }
    }

    @Test("a client that understands PINGs is sent some, and is given up when it answers none")
    func silence() {
        var conversation = opened()
        #expect(conversation.machine.silent() == nil)
        conversation.machine.learnedKeepalive()
        for _ in 0..<LibvirtLimits.keepaliveCount {
            #expect(
                conversation.machine.silent() == .send(.keepalive(KeepaliveProcedure.ping)))
        }
        _ = conversation.say(.keepalive(KeepaliveProcedure.pong))
        for _ in 0..<LibvirtLimits.keepaliveCount {
            #expect(
                conversation.machine.silent() == .send(.keepalive(KeepaliveProcedure.ping)))
        }
        #expect(conversation.machine.silent() == .hangUp(.silent))
        #expect(conversation.machine.silent() == nil)
    }
}
