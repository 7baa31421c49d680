import LibvirtProtocol

/// What clients ask about one domain.
extension LibvirtCalls {
    /// A domain's states (`virDomainState`) that there are here, and their reasons.
    enum State {
        static let running: Int32 = 1
        static let shutOff: Int32 = 5
        /// 0 says that the reason is not known: of a machine that others run there is no more.
        static let unknownReason: Int32 = 0
    }

    static let domainFacts: [Procedure: LibvirtHandler] = [
        .domainGetXMLDesc: { call in
            let domain = try await call.domain()
            // Beside these 4: with the processor as it is, and 8: fit to migrate. It is that
            // always.
            let flags = try call.flags(0xF)
            if flags & LibvirtDomainXML.Flag.secure != 0 {
                try call.session.refuseSecrets("virDomainGetXMLDesc")
            }
            let xml = try await LibvirtDomainXML.text(domain, flags: flags, call.manager)
            return reply { $0.string(xml) }
        },
        .domainGetState: { call in
            let domain = try await call.domain()
            _ = try call.flags()
            return reply {
                $0.int(domain.isRunning ? State.running : State.shutOff)
                $0.int(State.unknownReason)
            }
        },
        .domainGetInfo: { call in
            let domain = try await call.domain()
            let machine = MachineFacts(domain.definition)
            return reply {
                $0.int(domain.isRunning ? State.running : State.shutOff)
                $0.uhyper(machine.memoryMax)
                $0.uhyper(machine.memory)
                $0.uint(machine.processors)
                // What a machine has used is not known here.
                $0.uhyper(0)
            }
        },
        // Backups and checkpoints can be had at any time, which is what clients ask this for: see
        // docs/libvirt-rpc.md.
        .domainIsActive: { call in
            _ = try await call.domain()
            return reply { $0.bool(true) }
        },
        .domainIsPersistent: { call in
            let domain = try await call.domain()
            return reply { $0.bool(domain.isPersistent) }
        },
        .domainIsUpdated: { call in
            _ = try await call.domain()
            return reply { $0.bool(false) }
        },
        // No machine is started here, neither with the host nor otherwise.
        .domainGetAutostart: { call in
            _ = try await call.domain()
            return reply { $0.bool(false) }
        },
        .domainGetOSType: { call in
            let type = MachineFacts(try await call.domain().definition).osType
            return reply { $0.string(type) }
        },
        .domainGetMaxMemory: { call in
            let memory = MachineFacts(try await call.domain().definition).memoryMax
            return reply { $0.uhyper(memory) }
        },
        .domainGetMaxVcpus: { call in
            let count = MachineFacts(try await call.domain().definition).processorsMax
            return reply { $0.uint(count) }
        },
        .domainGetVcpusFlags: { call in
            let domain = try await call.domain()
            // 1: of the running machine, 2: as defined, 4: the most there may be.
            let flags = try call.flags(7)
            let machine = MachineFacts(domain.definition)
            return reply { $0.uint(flags & 4 == 0 ? machine.processors : machine.processorsMax) }
        },
        .domainHasManagedSaveImage: { call in
            _ = try await call.domain()
            _ = try call.flags()
            return reply { $0.bool(false) }
        },
        .domainGetSecurityLabel: { call in
            _ = try await call.domain()
            return reply {
                $0.count(1)
                $0.int(0)
                $0.bool(false)
            }
        },
        .domainGetMessages: { call in
            let domain = try await call.domain()
            _ = try call.flags(3)
            let problems = await call.manager.problems(ofDomain: domain.name)
            return reply { $0.strings(problems) }
        },
        .domainFSFreeze: { call in
            _ = try await call.domain()
            _ = try call.arguments.strings(limit: LibvirtLimits.mountPointsMax)
            _ = try call.flags()
            throw WireError.agentNotConfigured
        },
        .domainFSThaw: { call in
            _ = try await call.domain()
            _ = try call.arguments.strings(limit: LibvirtLimits.mountPointsMax)
            _ = try call.flags()
            throw WireError.agentNotConfigured
        },
    ]
}
