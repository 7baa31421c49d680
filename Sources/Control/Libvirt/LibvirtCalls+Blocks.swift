import LibvirtProtocol

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
        }
    ]
}
