import LibvirtProtocol

/// A client of the libvirt door: its whole conversation, in pieces of any size.
enum LibvirtEntry {
    /// The first byte says how the stream is cut and whether the connection is open, the rest is
    /// what the client sends.
    static func run(_ bytes: [UInt8]) {
        guard let choice = bytes.first else { return }
        var machine = ConnectionMachine()
        switch choice & 3 {
        case 0: break
        case 1: machine.opened(isReadOnly: true)
        default: machine.opened(isReadOnly: false)
        }
        let size = Int(choice >> 2) + 1
        let rest = bytes.dropFirst()
        var start = rest.startIndex
        while start < rest.endIndex {
            let end = min(start + size, rest.endIndex)
            machine.append(rest[start..<end])
            start = end
            guard drain(&machine) else { return }
        }
        for _ in 0...LibvirtLimits.keepaliveCount { _ = machine.silent() }
    }

    /// Does what is to be done; false when the connection has ended.
    private static func drain(_ machine: inout ConnectionMachine) -> Bool {
        // A call is answered at the latest when there is room for no more.
        var unanswered: [Int] = []
        while true {
            guard let action = machine.next() else {
                if machine.phase == .closing { return false }
                guard !machine.takesCalls else { break }
                for count in unanswered { machine.finished(bytes: count) }
                unanswered = []
                continue
            }
            switch action {
            case .send(let packet): check(packet)
            case .call(let call):
                check(call, machine.phase)
                if call.entry.procedure == .close { machine.closed() }
                if call.entry.procedure == .open { machine.opened(isReadOnly: false) }
                unanswered.append(call.packet.body.count)
                precondition(machine.callCount <= LibvirtLimits.callsPerConnection)
            case .unserved(let packet):
                if let error = WireError.unserved(packet) {
                    check(.failure(packet.header, error))
                }
            case .hangUp: return false
            }
        }
        for count in unanswered { machine.finished(bytes: count) }
        precondition(machine.callCount == 0 && machine.callBytes == 0, "calls are miscounted")
        return true
    }

    /// What is sent can be read, and an error says something.
    private static func check(_ packet: Packet) {
        var framer = PacketFramer(bytesMax: LibvirtLimits.packetBytesMax)
        framer.append(packet.bytes)
        precondition((try? framer.next()) == packet, "a packet that nobody can read")
        guard packet.header.status == PacketStatus.error.rawValue else { return }
        guard let error = try? WireError(body: packet.body) else {
            preconditionFailure("an error that nobody can read")
        }
        precondition(!error.message.isEmpty && error.code != 0)
    }

    /// A call's arguments can be read, and it is one that may be made.
    private static func check(_ call: IncomingCall, _ phase: ConnectionMachine.Phase) {
        precondition(phase != .greeting || call.entry.access == .anybody)
        precondition(phase != .open(isReadOnly: true) || call.entry.access != .readWrite)
        var arguments = call.arguments
        do throws(XDRError) {
            for shape in call.entry.arguments { try shape.skip(&arguments) }
        } catch {
            preconditionFailure("arguments of another shape: \(error)")
        }
    }
}
