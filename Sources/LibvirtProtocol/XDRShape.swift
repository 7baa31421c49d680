/// The shape of a value on the wire: what arguments and results are made of.
package enum XDRShape: Sendable, Hashable {
    case int, uint, hyper, uhyper, double, string, optionalString, uuid
    case domain, optionalDomain, checkpoint, parameter
    /// A count of at most so many, and as many values of the shapes.
    case array([XDRShape], limit: Int)

    static let domains = XDRShape.array([.domain], limit: LibvirtLimits.domainsMax)
    static let checkpoints = XDRShape.array([.checkpoint], limit: LibvirtLimits.checkpointsMax)
    static let parameters = XDRShape.array([.parameter], limit: LibvirtLimits.parametersMax)

    /// Reads a value of this shape and drops it.
    package func skip(_ reader: inout XDRReader) throws(XDRError) {
        switch self {
        case .int: _ = try reader.int()
        case .uint: _ = try reader.uint()
        case .hyper: _ = try reader.hyper()
        case .uhyper: _ = try reader.uhyper()
        case .double: _ = try reader.double()
        case .string: _ = try reader.string()
        case .optionalString: _ = try reader.optionalString()
        case .uuid: _ = try reader.opaque(count: 16)
        case .domain: _ = try reader.domain()
        case .optionalDomain: _ = try reader.optionalDomain()
        case .checkpoint: _ = try reader.checkpoint()
        case .parameter: _ = try reader.parameter()
        case .array(let shapes, let limit):
            for _ in 0..<(try reader.count(limit: limit)) {
                for shape in shapes { try shape.skip(&reader) }
            }
        }
    }

    /// Throws unless the bytes begin with values of these shapes, one after the other; returns how
    /// many bytes follow them, which libvirtd does not look at either.
    @discardableResult
    package static func check(_ shapes: [XDRShape], _ bytes: [UInt8]) throws(XDRError) -> Int {
        var reader = XDRReader(bytes)
        for shape in shapes { try shape.skip(&reader) }
        return reader.left
    }
}
