import LibvirtProtocol
import ServerInterface

/// What clients ask about a domain's disks.
extension LibvirtCalls {
    static let blocks: [Procedure: LibvirtHandler] = [
        .domainGetBlockInfo: { call in
            let domain = try await call.domain()
            let path = try call.arguments.string()
            _ = try call.flags()
            let info = try await call.manager.blockInfo(path, of: domain.name)
            return reply {
                $0.uhyper(info.allocation)
                $0.uhyper(info.capacity)
                $0.uhyper(info.physical)
            }
        },
        .domainBlockStats: { call in
            let domain = try await call.domain()
            let path = try call.arguments.string()
            let figures = try await call.manager.guestFigures(path, of: domain.name)
            return reply {
                $0.hyper(Int64(clamping: figures.readRequests))
                $0.hyper(Int64(clamping: figures.readBytes))
                $0.hyper(Int64(clamping: figures.writeRequests))
                $0.hyper(Int64(clamping: figures.writeBytes))
                // Errors are not counted.
                $0.hyper(-1)
            }
        },
        .domainBlockStatsFlags: { call in
            let domain = try await call.domain()
            let path = try call.arguments.string()
            let room = try call.arguments.int()
            // 4: parameters may be strings.
            _ = try call.flags(4)
            let figures = try await call.manager.guestFigures(path, of: domain.name)
            let list = [
                TypedParameter("wr_bytes", .hyper(Int64(clamping: figures.writeBytes))),
                TypedParameter("wr_operations", .hyper(Int64(clamping: figures.writeRequests))),
                TypedParameter("rd_bytes", .hyper(Int64(clamping: figures.readBytes))),
                TypedParameter("rd_operations", .hyper(Int64(clamping: figures.readRequests))),
                TypedParameter("flush_operations", .hyper(Int64(clamping: figures.flushRequests))),
            ]
            // Clients ask how many there are, then for as many.
            guard room != 0 else {
                return reply {
                    $0.parameters([])
                    $0.int(Int32(list.count))
                }
            }
            return reply {
                $0.parameters(Array(list.prefix(max(Int(room), 0))))
                $0.int(0)
            }
        },
        .getAllDomainStats: { call in try await allStats(&call) },
        .domainSetBlockThreshold: { call in
            let domain = try await call.domain()
            let device = try call.arguments.string()
            let bytes = try call.arguments.uhyper()
            _ = try call.flags()
            try await call.context.thresholds.set(
                device, of: domain, bytes: bytes, call.manager)
            return nothing
        },
    ]

    // MARK: Statistics of many domains

    private static func allStats(_ call: inout LibvirtCall) async throws -> XDRWriter {
        var asked: [WireDomain] = []
        // Each once, however often it is named.
        var named: Set<[UInt8]> = []
        for _ in 0..<(try call.arguments.count(limit: LibvirtLimits.domainsMax, elementBytes: 24)) {
            let wire = try call.arguments.domain()
            if named.insert(Array(wire.uuid)).inserted { asked.append(wire) }
        }
        let types = try call.arguments.uint()
        let flags = try call.flags(DomainStatistics.flags)
        if flags & DomainStatistics.enforce != 0, types & ~DomainStatistics.known != 0 {
            throw WireError(
                code: WireErrorCode.argumentUnsupported, domain: WireErrorDomain.qemu,
                prefix: "argument unsupported: ",
                detail: "Stats types bits 0x\(String(types & ~DomainStatistics.known, radix: 16))"
                    + " are not supported by this daemon")
        }
        var domains: [LibvirtDomain] = []
        if asked.isEmpty {
            domains = await call.context.domains().filter { passes($0, flags & 0xFF) }
        } else {
            for wire in asked {
                // One that has gone meanwhile is left out, as libvirt does.
                let domain = await call.context.domain(uuid: UUIDText.text(wire.uuid))
                if let domain, passes(domain, flags & 0xFF) { domains.append(domain) }
            }
        }
        var writer = XDRWriter()
        writer.count(domains.count)
        for domain in domains {
            let parameters = await DomainStatistics.parameters(
                of: domain, types: types == 0 ? DomainStatistics.known : types,
                withScratch: flags & DomainStatistics.backing != 0, call.manager)
            guard parameters.count <= LibvirtLimits.statisticsMax else {
                throw WireError.tooManyStatistics(parameters.count, of: domain.name)
            }
            writer.domain(domain.wire)
            writer.parameters(parameters)
            // Checked on the way: what nobody could read is not gathered first.
            guard writer.bytes.count <= call.context.replyBytesMax else {
                throw WireError.replyTooLong
            }
        }
        return writer
    }
}

extension WireError {
    /// What a client's library could not take.
    static let replyTooLong = WireError(
        code: WireErrorCode.rpc, domain: WireErrorDomain.rpc, prefix: "",
        detail: "the answer is longer than the \(LibvirtLimits.replyBytesMax) bytes that clients"
            + " take: ask for fewer domains at a time, or for fewer kinds of figures")

    static func tooManyStatistics(_ count: Int, of domain: String) -> WireError {
        WireError(
            code: WireErrorCode.rpc, domain: WireErrorDomain.rpc, prefix: "",
            detail: "domain '\(domain)' has \(count) figures, more than the"
                + " \(LibvirtLimits.statisticsMax) that clients take: ask for fewer kinds of them")
    }
}
