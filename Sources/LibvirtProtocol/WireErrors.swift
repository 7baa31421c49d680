/// Errors of the protocol itself; the numbers and texts are libvirtd's.
extension WireError {
    /// Arguments that are not what the procedure takes; nothing of them is repeated.
    package static let malformed = WireError(
        code: WireErrorCode.rpc, domain: WireErrorDomain.rpc, prefix: "",
        detail: "Unable to decode message payload")

    /// A call before the connection is opened.
    package static let notOpen = WireError(
        code: WireErrorCode.internalError, domain: WireErrorDomain.rpc, prefix: "internal error: ",
        detail: "hypervisor connection not open")

    /// A connection is opened once.
    package static let alreadyOpen = WireError(
        code: WireErrorCode.internalError, domain: WireErrorDomain.rpc, prefix: "internal error: ",
        detail: "connection already open")

    /// A call says of itself that it has failed.
    package static func unexpectedStatus(_ status: UInt32) -> WireError {
        WireError(
            code: WireErrorCode.rpc, domain: WireErrorDomain.rpc, prefix: "",
            detail: "Unexpected message status \(status)")
    }

    /// A read-only connection may not change anything.
    package static func readOnly(_ procedure: Procedure) -> WireError {
        WireError(
            code: WireErrorCode.operationDenied, domain: procedure.errorDomain,
            prefix: "operation forbidden: ",
            detail: "read only access prevents \(procedure.function)")
    }

    /// A procedure that is not served.
    package static func unsupported(_ procedure: Procedure) -> WireError {
        noSupport(procedure.function, domain: procedure.errorDomain)
    }

    /// The answer to a call that is not served; nil if it is not a call.
    package static func unserved(_ packet: Packet) -> WireError? {
        switch PacketType(rawValue: packet.header.type) {
        case .call, .callWithDescriptors: break
        default: return nil
        }
        guard packet.header.program == LibvirtProgram.remote,
            packet.header.version == LibvirtProgram.version
        else {
            return noSupport(
                "program \(packet.header.program) version \(packet.header.version)",
                domain: WireErrorDomain.rpc)
        }
        return unsupported(Procedure(rawValue: packet.header.procedure))
    }

    private static func noSupport(_ what: String, domain: Int32) -> WireError {
        WireError(
            code: WireErrorCode.noSupport, domain: domain,
            prefix: "this function is not supported by the connection driver: ", detail: what)
    }
}

extension Procedure {
    /// The part of libvirt's library that a procedure belongs to, which its errors name.
    var errorDomain: Int32 {
        let names: [(String, Int32)] = [
            ("DOMAIN_CHECKPOINT_", 69), ("DOMAIN_LIST_ALL_CHECKPOINTS", 69),
            ("DOMAIN_SNAPSHOT_", 50), ("DOMAIN_", WireErrorDomain.domain), ("NETWORK_", 19),
            ("STORAGE_", 18), ("INTERFACE_", 26), ("SECRET_", 30), ("NWFILTER_", 31),
            ("NODE_DEVICE_", 22),
        ]
        guard let name else { return WireErrorDomain.none }
        return names.first { name.hasPrefix($0.0) }?.1 ?? WireErrorDomain.none
    }
}
