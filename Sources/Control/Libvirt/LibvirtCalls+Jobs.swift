import LibvirtProtocol

extension LibvirtCalls {
    static let jobs: [Procedure: LibvirtHandler] = [:]
}
