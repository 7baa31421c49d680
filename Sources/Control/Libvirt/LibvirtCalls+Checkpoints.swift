import LibvirtProtocol

extension LibvirtCalls {
    static let checkpoints: [Procedure: LibvirtHandler] = [:]
}
