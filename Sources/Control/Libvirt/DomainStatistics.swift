import LibvirtProtocol
import ServerInterface

/// What `virConnectGetAllDomainStats` tells of a domain.
enum DomainStatistics {
    /// Kinds of figures (`virDomainStatsTypes`).
    private static let state: UInt32 = 1 << 0
    private static let balloon: UInt32 = 1 << 2
    private static let vcpu: UInt32 = 1 << 3
    private static let block: UInt32 = 1 << 5
    /// Those that there are here.
    static let known = state | balloon | vcpu | block

    /// The scratch of running backups as well.
    static let backing: UInt32 = 1 << 30
    /// Kinds that are not known are an error.
    static let enforce: UInt32 = 1 << 31
    /// Filters as of lists, `1 << 29`: nothing is waited for, and the two above.
    static let flags: UInt32 = 0xFF | 1 << 29 | backing | enforce

    static func parameters(
        of domain: LibvirtDomain, types: UInt32, withScratch: Bool, _ manager: JobManager
    ) async -> [TypedParameter] {
        var list: [TypedParameter] = []
        if types & state != 0 {
            list.append(
                TypedParameter(
                    "state.state",
                    .int(
                        domain.isRunning
                            ? LibvirtCalls.State.running : LibvirtCalls.State.shutOff)))
            list.append(TypedParameter("state.reason", .int(LibvirtCalls.State.unknownReason)))
        }
        let machine = MachineFacts(domain.definition)
        if types & balloon != 0 {
            list.append(TypedParameter("balloon.current", .uhyper(machine.memory)))
            list.append(TypedParameter("balloon.maximum", .uhyper(machine.memoryMax)))
        }
        if types & vcpu != 0 {
            list.append(TypedParameter("vcpu.current", .uint(machine.processors)))
            list.append(TypedParameter("vcpu.maximum", .uint(machine.processorsMax)))
        }
        if types & block != 0 {
            list += await blocks(of: domain, withScratch: withScratch, manager)
        }
        return list
    }

    private static func blocks(
        of domain: LibvirtDomain, withScratch: Bool, _ manager: JobManager
    ) async -> [TypedParameter] {
        let scratch = withScratch ? await manager.scratchFigures(of: domain.name) : []
        var list: [TypedParameter] = []
        var count: UInt32 = 0
        func add(_ name: String, _ value: TypedParameter.Value) {
            list.append(TypedParameter("block.\(count).\(name)", value))
        }
        for disk in domain.definition.disks {
            add("name", .string(disk.target))
            if let path = await manager.shownPath(of: disk.target, in: domain.definition) {
                add("path", .string(path))
            }
            if let figures = try? await manager.guestFigures(disk.target, of: domain.name) {
                add("rd.reqs", .uhyper(figures.readRequests))
                add("rd.bytes", .uhyper(figures.readBytes))
                add("wr.reqs", .uhyper(figures.writeRequests))
                add("wr.bytes", .uhyper(figures.writeBytes))
                add("fl.reqs", .uhyper(figures.flushRequests))
            }
            if let size = try? await manager.blockInfo(disk.target, of: domain.name) {
                add("allocation", .uhyper(size.allocation))
                add("capacity", .uhyper(size.capacity))
                add("physical", .uhyper(size.physical))
            }
            count += 1
            for part in scratch where part.target == disk.target {
                add("name", .string(part.target))
                add("path", .string(part.path))
                add("backingIndex", .uint(part.index))
                add("allocation", .uhyper(part.usedBytes))
                add("capacity", .uhyper(part.sizeBytes))
                count += 1
            }
        }
        return [TypedParameter("block.count", .uint(count))] + list
    }
}
