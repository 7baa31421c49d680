import LibvirtProtocol

extension LibvirtCalls {
    static let backups: [Procedure: LibvirtHandler] = [:]
}
