import LibvirtProtocol

/// Whether a packet of a client's that is not served here goes to libvirtd as it is.
enum UpstreamPassage: Sendable, Hashable {
    case free
    /// It describes a machine or a device, and is read first: see ``UpstreamReading``.
    case read(Procedure)
    case refused(WireError)

    init(_ packet: Packet) {
        let header = packet.header
        let procedure = Procedure(rawValue: header.procedure)
        if UpstreamSerial.isOurs(header.serial) {
            self = .refused(.serialTaken(header.serial))
        } else if header.type == PacketType.call.rawValue,
            header.program == LibvirtProgram.remote, let name = procedure.name,
            name.hasPrefix("DOMAIN"), name.contains("XML") || name.contains("DEVICE")
        {
            // Longer than a description can be: libvirtd would not take it either.
            self =
                packet.body.count <= LibvirtLimits.packetBytesMax
                ? .read(procedure) : .refused(.malformed)
        } else {
            self = .free
        }
    }
}

/// Reads a call that describes a machine or a device, before it goes to libvirtd.
///
/// An image that replaces a disk in what clients are shown must not become a machine's disk, and no
/// machine may be defined on a file that is served here. Who takes a disk away or changes it by the
/// description that he was shown means the machine's own: that one is told to libvirtd.
struct UpstreamReading: Sendable {
    let packet: Packet
    let procedure: Procedure
    let context: LibvirtContext
    let connection: UpstreamConnection

    /// The call as libvirtd is to get it, or why it does not.
    func result() async -> Result<Packet, WireError> {
        let directory = context.manager.standInDirectory
        let escaped = XMLWriter.escaped(directory, inAttribute: true)
        if Self.contains(packet.body, Array((directory + "/").utf8))
            || (escaped != directory && Self.contains(packet.body, Array((escaped + "/").utf8)))
        {
            guard Self.namesDisk.contains(procedure) else {
                return .failure(.standInInDefinition(directory))
            }
            return await translated()
        }
        if Self.definesMachine.contains(procedure), let error = await servedSource() {
            return .failure(error)
        }
        return .success(packet)
    }

    private static let namesDisk: Set<Procedure> = [
        .domainDetachDevice, .domainDetachDeviceFlags, .domainUpdateDeviceFlags,
    ]
    private static let definesMachine: Set<Procedure> = [
        .domainCreateXML, .domainDefineXML, .domainCreateXMLWithFiles, .domainDefineXMLFlags,
    ]

    // MARK: A disk as it was shown

    private func translated() async -> Result<Packet, WireError> {
        var arguments = XDRReader(packet.body)
        guard let wire = try? arguments.domain(), let shown = try? arguments.string() else {
            return .failure(.malformed)
        }
        let flags = procedure == .domainDetachDevice ? nil : try? arguments.uint()
        guard let domain = await context.domain(uuid: UUIDText.text(wire.uuid)) else {
            return .failure(.standInInDefinition(context.manager.standInDirectory))
        }
        do {
            let machineXML = try await machineXML(wire, isDefinition: (flags ?? 0) & 3 == 2)
            let options = BackupToolXML.Options(
                standIns: [:], liveExports: await context.manager.liveExports(of: domain.name),
                places: context.places)
            guard
                let disk = try BackupToolXML.machineDisk(shown, of: machineXML, options)
            else { return .failure(.notAMachinesDisk(wire.name)) }
            return .success(
                Packet(
                    packet.header,
                    body: LibvirtCalls.reply {
                        $0.domain(wire)
                        $0.string(disk)
                        if let flags { $0.uint(flags) }
                    }.bytes))
        } catch let fault as UpstreamFault {
            return .failure(fault.wire)
        } catch {
            return .failure(.unreadableMachine(wire.name, "\(error)"))
        }
    }

    private func machineXML(_ wire: WireDomain, isDefinition: Bool) async throws -> String {
        let asked = LibvirtCalls.reply {
            $0.domain(wire)
            $0.uint(isDefinition ? LibvirtDomainXML.Flag.inactive : 0)
        }
        let reply = try await connection.call(.domainGetXMLDesc, asked.bytes)
        var reader = XDRReader(reply.body)
        return try reader.string()
    }

    // MARK: A disk that is served here

    private func servedSource() async -> WireError? {
        var arguments = XDRReader(packet.body)
        // What cannot be read is for libvirtd to refuse.
        guard let xml = try? arguments.string(),
            let root = try? XMLDocument.parse(xml, schema: .machine)
        else { return nil }
        for disk in root.child("devices")?.all("disk") ?? [] where disk.child("readonly") == nil {
            let source = disk.child("source")
            guard let path = source?.attribute("file") ?? source?.attribute("dev"),
                let served = await context.manager.servedDisk(onSource: path)
            else { continue }
            return .servedHere(path, served.target, of: served.domain)
        }
        return nil
    }

    private static func contains(_ bytes: [UInt8], _ part: [UInt8]) -> Bool {
        guard let first = part.first, bytes.count >= part.count else { return false }
        let last = bytes.count - part.count
        var start = 0
        while start <= last, let found = bytes[start...last].firstIndex(of: first) {
            if bytes[found..<found + part.count].elementsEqual(part) { return true }
            start = found + 1
        }
        return false
    }
}

extension JobManager {
    /// Names of a domain's live exports, by target.
    func liveExports(of name: String) -> [String: String] {
        guard let definition = domains[name]?.definition else { return [:] }
        let disks = definition.disks.filter(\.isServable)
        return Dictionary(
            disks.map { ($0.target, definition.liveExportName(target: $0.target)) }
        ) { first, _ in first }
    }

    /// The disk that is served from a file or device and that machines may write; nil when there is
    /// none.
    func servedDisk(onSource path: String) -> (domain: String, target: String)? {
        let plain = BackupPlanner.lexicallyNormal(path)
        for (name, domain) in domains {
            let found = domain.definition.disks.first {
                $0.isServable && !$0.readOnly
                    && $0.path.map(BackupPlanner.lexicallyNormal) == plain
            }
            if let found { return (name, found.target) }
        }
        return nil
    }
}

extension WireError {
    /// A machine would run on an image that only stands in for its disk.
    static func standInInDefinition(_ directory: String) -> WireError {
        WireError(
            code: 67, domain: WireErrorDomain.domain, prefix: "unsupported configuration: ",
            detail: "an image below '\(directory)' only stands in for a disk in what backup tools "
                + "are shown: define the machine with the XML of dumpxml --inactive")
    }

    /// A machine would write a disk behind our back.
    static func servedHere(_ path: String, _ target: String, of domain: String) -> WireError {
        WireError(
            code: 67, domain: WireErrorDomain.domain, prefix: "unsupported configuration: ",
            detail: "'\(path)' is disk '\(target)' of domain '\(domain)', which nbdpull serves: a "
                + "machine reaches it by its live export (docs/libvirt.md), or undefine the domain first"
        )
    }

    /// What was shown is not a disk that the machine has now.
    static func notAMachinesDisk(_ machine: String) -> WireError {
        WireError(
            code: 67, domain: WireErrorDomain.domain, prefix: "unsupported configuration: ",
            detail: "machine '\(machine)' has no disk of this target that it reaches through "
                + "nbdpull: read its XML again (dumpxml)")
    }
}
