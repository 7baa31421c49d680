import LibvirtProtocol

/// What clients ask of the connection and the host.
extension LibvirtCalls {
    /// The version of libvirt whose procedures, texts and shapes are followed: 9.0.0.
    static let libvirtVersion: UInt64 = 9_000_000
    /// The version of qemu whose exports are followed: 7.2.0.
    static let qemuVersion: UInt64 = 7_002_000

    static let connection: [Procedure: LibvirtHandler] = [
        // One way to authenticate: none. The socket's permissions have let the client in.
        .authList: { _ in
            reply {
                $0.count(1)
                $0.int(0)
            }
        },
        .supportsFeature: { call in
            let known: Set = [
                LibvirtFeature.parameterStrings, LibvirtFeature.keepalive,
                LibvirtFeature.eventCallback, LibvirtFeature.closeCallback,
            ]
            let isKnown = known.contains(try call.arguments.int())
            return reply { $0.bool(isKnown) }
        },
        .open: { call in
            let name = try call.arguments.optionalString() ?? ""
            // Of the flags only 1, read-only, is the server's matter.
            if !name.isEmpty { call.session.uri = name }
            return nothing
        },
        .close: { _ in nothing },
        .setIdentity: { call in
            _ = try call.arguments.parameters()
            _ = try call.flags()
            return nothing
        },
        .registerCloseCallback: { _ in nothing },
        .unregisterCloseCallback: { _ in nothing },
        .getType: { _ in reply { $0.string("QEMU") } },
        .getVersion: { _ in reply { $0.uhyper(qemuVersion) } },
        .getLibVersion: { _ in reply { $0.uhyper(libvirtVersion) } },
        .getHostname: { call in
            let name = call.context.host.name
            return reply { $0.string(name) }
        },
        .getURI: { call in
            let uri = call.session.uri
            return reply { $0.string(uri) }
        },
        .isSecure: { _ in reply { $0.bool(true) } },
        .getMaxVcpus: { _ in reply { $0.int(255) } },
        .nodeGetInfo: { call in nodeInfo(call.context.host) },
        .getCapabilities: { call in
            let xml = LibvirtDocuments.capabilities(call.context.host)
            return reply { $0.string(xml) }
        },
        .getDomainCapabilities: { call in
            let xml = LibvirtDocuments.domainCapabilities(call.context.host)
            return reply { $0.string(xml) }
        },
        // No model: an empty name and no domain of interpretation.
        .nodeGetSecurityModel: { _ in
            reply {
                for _ in 0..<2 {
                    $0.count(1)
                    $0.int(0)
                }
            }
        },
    ]

    private static func nodeInfo(_ host: HostFacts) -> XDRWriter {
        reply { writer in
            // 32 signs, of which the last is zero.
            let model = Array(host.architecture.utf8.prefix(31))
            for index in 0..<32 { writer.int(index < model.count ? Int32(model[index]) : 0) }
            writer.uhyper(host.memory)
            writer.int(Int32(clamping: host.processors))
            writer.int(host.megahertz)
            // One node, one socket, a thread a core: how they lie is of no matter here.
            writer.int(1)
            writer.int(1)
            writer.int(Int32(clamping: host.processors))
            writer.int(1)
        }
    }
}
