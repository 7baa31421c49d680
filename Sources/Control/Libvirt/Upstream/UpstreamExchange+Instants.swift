import LibvirtProtocol

/// Instants of a machine that libvirtd runs: only of disks that it reaches through this server.
extension UpstreamExchange {
    /// Whether the call fixes an instant of disks, and does not only note one down.
    var fixesInstant: Bool {
        switch procedure {
        case .domainBackupBegin: return true
        case .checkpointCreateXML:
            var arguments = call.arguments
            _ = try? arguments.domain()
            _ = try? arguments.string()
            return ((try? arguments.uint()) ?? 0) & Self.redefine == 0
        default: return false
        }
    }

    private static let redefine: UInt32 = 1

    /// Our answer, unless the machine has one of the disks from elsewhere.
    ///
    /// Nobody writes our disk of that name then: a backup of it would be old, an incremental one
    /// empty, and both would look good.
    func instant() async -> Packet {
        guard let named, let domain = await ourDomain else { return await theirs(seconds: nil) }
        let asked = LibvirtCalls.reply {
            $0.domain(named)
            $0.uint(0)
        }
        let reply = await connection.reply(
            to: .domainGetXMLDesc, asked.bytes, seconds: UpstreamLimits.shortAnswerSeconds)
        let described = packet(reply)
        if let error = described.error {
            // A machine that it does not know uses nothing; one that is connected here uses ours.
            guard error.code == WireErrorCode.noDomain || domain.isRunning else { return described }
            return await ours()
        }
        var reader = XDRReader(described.body)
        guard let xml = try? reader.string() else {
            return failure(connection.garbled("no XML").wire)
        }
        do {
            let foreign = try await context.manager.disksFromElsewhere(
                of: domain.definition.name, machineXML: xml, context.places, requests)
            guard let first = foreign.first else { return await ours() }
            return failure(.notReachedHere(first, of: named.name))
        } catch {
            return failure(.unreadableMachine(named.name, "\(error)"))
        }
    }

    private var requests: InstantRequests {
        var arguments = call.arguments
        _ = try? arguments.domain()
        let first = try? arguments.string()
        guard procedure == .domainBackupBegin else { return InstantRequests(checkpointXML: first) }
        return InstantRequests(
            backupXML: first, checkpointXML: (try? arguments.optionalString()) ?? nil)
    }
}

/// The documents that say which disks take part in an instant.
struct InstantRequests: Sendable {
    var backupXML: String?
    var checkpointXML: String?
}

extension JobManager {
    /// Targets of disks that take part in an instant, and that the machine, by its XML, has from
    /// elsewhere.
    ///
    /// - Throws: 35 or 92 for XML that is none.
    func disksFromElsewhere(
        of name: String, machineXML: String, _ places: LivePlaces, _ requests: InstantRequests
    ) throws(ControlError) -> [String] {
        let definition = try domain(name).definition
        var exports: [String: String] = [:]
        // A disk that nobody writes is what it was, no matter who has it.
        for disk in definition.disks where disk.isServable && !disk.readOnly {
            exports[disk.target] = definition.liveExportName(target: disk.target)
        }
        let foreign = try BackupToolXML.foreignDisks(
            in: machineXML, liveExports: exports, places: places)
        guard !foreign.isEmpty else { return [] }
        // What is wrong with a request is for the call itself to say.
        let backup = requests.backupXML.flatMap { try? BackupRequest.parse($0) }
        let checkpoint = requests.checkpointXML.flatMap { try? CheckpointRequest.parse($0) }
        return foreign.filter { target in
            let isBackedUp = requests.backupXML != nil && takesPart(target, backup)
            let isMarked = requests.checkpointXML != nil && takesPart(target, checkpoint, name)
            return isBackedUp || isMarked
        }
    }

    private func takesPart(_ target: String, _ request: BackupRequest?) -> Bool {
        guard let disks = request?.disks else { return true }
        return disks.contains { $0.target == target && $0.participates }
    }

    private func takesPart(
        _ target: String, _ request: CheckpointRequest?, _ name: String
    ) -> Bool {
        guard let disks = request?.disks else { return true }
        return disks.contains { disk in
            disk.participates && (try? diskTarget(named: disk.name, of: name)) ?? nil == target
        }
    }
}

extension WireError {
    /// The machine has a disk of this name that is not ours.
    static func notReachedHere(_ target: String, of machine: String) -> WireError {
        WireError(
            code: Int32(ErrorCategory.unsupportedConfiguration.rawValue),
            domain: WireErrorDomain.qemu,
            prefix: ErrorCategory.unsupportedConfiguration.prefix,
            detail:
                "machine '\(machine)' does not reach disk '\(target)' through this server, so what it"
                + " writes is not seen here: move the disk here (docs/libvirt.md), or leave it out"
                + " (backup='no')")
    }

    static func unreadableMachine(_ machine: String, _ detail: String) -> WireError {
        WireError(
            code: WireErrorCode.internalError, domain: WireErrorDomain.qemu,
            prefix: ErrorCategory.internalError.prefix,
            detail: "libvirtd's XML of machine '\(machine)' cannot be read: \(detail)")
    }
}
