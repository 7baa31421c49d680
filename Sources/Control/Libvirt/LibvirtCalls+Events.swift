import LibvirtProtocol

extension LibvirtCalls {
    static let events: [Procedure: LibvirtHandler] = [:]
}
