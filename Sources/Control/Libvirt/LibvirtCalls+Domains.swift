import LibvirtProtocol

/// Lists and lookups of domains.
extension LibvirtCalls {
    /// What a list is cut down to (`virConnectListAllDomainsFlags`), in groups: of a group none,
    /// all, or those that are named.
    enum ListFlag {
        static let active: UInt32 = 1 << 0
        static let inactive: UInt32 = 1 << 1
        static let persistent: UInt32 = 1 << 2
        static let transient: UInt32 = 1 << 3
        static let running: UInt32 = 1 << 4
        static let paused: UInt32 = 1 << 5
        static let shutOff: UInt32 = 1 << 6
        static let other: UInt32 = 1 << 7
        static let managedSave: UInt32 = 1 << 8
        static let noManagedSave: UInt32 = 1 << 9
        static let autostart: UInt32 = 1 << 10
        static let noAutostart: UInt32 = 1 << 11
        static let hasSnapshot: UInt32 = 1 << 12
        static let noSnapshot: UInt32 = 1 << 13
        static let hasCheckpoint: UInt32 = 1 << 14
        static let noCheckpoint: UInt32 = 1 << 15
        static let all: UInt32 = 1 << 16 - 1
    }

    static let domains: [Procedure: LibvirtHandler] = [
        .listAllDomains: { call in
            let needsResults = try call.arguments.int() != 0
            let flags = try call.flags(ListFlag.all)
            let found = await call.context.domains().filter { passes($0, flags) }
            return reply {
                $0.domains(needsResults ? found.map(\.wire) : [])
                $0.uint(UInt32(clamping: found.count))
            }
        },
        .numOfDomains: { call in
            let count = await call.context.domains().count(where: \.isRunning)
            return reply { $0.int(Int32(clamping: count)) }
        },
        .listDomains: { call in
            let limit = max(Int(try call.arguments.int()), 0)
            let ids = await call.context.domains().filter(\.isRunning).map(\.id).prefix(limit)
            return reply {
                $0.count(ids.count)
                for id in ids { $0.int(id) }
            }
        },
        .numOfDefinedDomains: { call in
            let count = await call.context.domains().count { !$0.isRunning }
            return reply { $0.int(Int32(clamping: count)) }
        },
        .listDefinedDomains: { call in
            let limit = max(Int(try call.arguments.int()), 0)
            let names = await call.context.domains().filter { !$0.isRunning }.map(\.name)
            return reply { $0.strings(Array(names.prefix(limit))) }
        },
        .domainLookupByID: { call in
            let id = try call.arguments.int()
            guard id > 0, let domain = await call.context.domains().first(where: { $0.id == id })
            else { throw WireError.noDomain("no domain with matching id \(id)") }
            return reply { $0.domain(domain.wire) }
        },
        .domainLookupByName: { call in
            let name = try call.arguments.string()
            guard let domain = await call.context.domain(name: name) else {
                throw WireError.noDomain("no domain with matching name '\(name)'")
            }
            return reply { $0.domain(domain.wire) }
        },
        .domainLookupByUUID: { call in
            let uuid = UUIDText.text(try call.arguments.opaque(count: 16))
            guard let domain = await call.context.domain(uuid: uuid) else {
                throw WireError.noDomain("no domain with matching uuid '\(uuid)'")
            }
            return reply { $0.domain(domain.wire) }
        },
    ]

    /// Whether a domain is in a list of these flags.
    static func passes(_ domain: LibvirtDomain, _ flags: UInt32) -> Bool {
        let groups: [[(flag: UInt32, holds: Bool)]] = [
            [(ListFlag.active, domain.isRunning), (ListFlag.inactive, !domain.isRunning)],
            [
                (ListFlag.persistent, domain.isPersistent),
                (ListFlag.transient, !domain.isPersistent),
            ],
            [
                (ListFlag.running, domain.isRunning), (ListFlag.paused, false),
                (ListFlag.shutOff, !domain.isRunning), (ListFlag.other, false),
            ],
            [(ListFlag.managedSave, false), (ListFlag.noManagedSave, true)],
            [(ListFlag.autostart, false), (ListFlag.noAutostart, true)],
            [(ListFlag.hasSnapshot, false), (ListFlag.noSnapshot, true)],
            [
                (ListFlag.hasCheckpoint, domain.checkpointCount > 0),
                (ListFlag.noCheckpoint, domain.checkpointCount == 0),
            ],
        ]
        return groups.allSatisfy { group in
            let asked = group.filter { flags & $0.flag != 0 }
            return asked.isEmpty || asked.contains(where: \.holds)
        }
    }
}
