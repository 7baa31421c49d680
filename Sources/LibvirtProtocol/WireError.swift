/// An error as the wire carries it.
package struct WireError: Error, Sendable, Hashable {
    /// Number of the error (`virErrorNumber`).
    package var code: Int32
    /// Number of the part of libvirt that it comes from (`virErrorDomain`).
    package var domain: Int32
    /// The whole text.
    package var message: String
    /// The text's format, with `%s` for the detail; absent if there is none.
    package var form: String?
    package var detail: String?
    /// Two numbers that go with the text; -1 says that there are none.
    package var number: Int32 = -1

    /// Makes an error about one argument of a function, which are named beside the text.
    package init(code: Int32, domain: Int32, argument: String, of function: String, _ text: String)
    {
        self.code = code
        self.domain = domain
        message = text
        form = function
        detail = argument
        number = 0
    }

    /// Makes an error whose text is `prefix` and `detail`.
    package init(code: Int32, domain: Int32, prefix: String, detail: String) {
        self.code = code
        self.domain = domain
        message = prefix + detail
        form = prefix + "%s"
        self.detail = detail
    }

    /// The error's body: its level is always that of an error, and it names no domain and no
    /// network.
    package var body: [UInt8] {
        var writer = XDRWriter()
        writer.int(code)
        writer.int(domain)
        writer.optionalString(message)
        writer.int(2)
        writer.bool(false)
        writer.optionalString(form)
        writer.optionalString(detail)
        writer.bool(false)
        writer.int(number)
        writer.int(number)
        writer.bool(false)
        return writer.bytes
    }

    /// Reads an error's body; what it says of a domain or a network is skipped.
    package init(body: [UInt8]) throws(XDRError) {
        var reader = XDRReader(body)
        code = try reader.int()
        domain = try reader.int()
        message = try reader.optionalString() ?? ""
        _ = try reader.int()
        _ = try reader.optionalDomain()
        form = try reader.optionalString()
        detail = try reader.optionalString()
        _ = try reader.optionalString()
        number = try reader.int()
        _ = try reader.int()
        if try reader.bool() {
            _ = try reader.string(limit: WireDomain.nameBytesMax)
            _ = try reader.opaque(count: 16)
        }
        try reader.finish()
    }
}

/// Numbers of the errors that the protocol itself makes (`virErrorNumber`).
package enum WireErrorCode {
    package static let internalError: Int32 = 1
    package static let noSupport: Int32 = 3
    package static let invalidArgument: Int32 = 8
    package static let operationDenied: Int32 = 29
    package static let rpc: Int32 = 39
    package static let noDomain: Int32 = 42
    package static let operationInvalid: Int32 = 55
    package static let argumentUnsupported: Int32 = 74
    package static let blockCopyActive: Int32 = 83
}

/// Parts of libvirt that errors are said to come from (`virErrorDomain`).
package enum WireErrorDomain {
    package static let none: Int32 = 0
    package static let xml: Int32 = 5
    package static let rpc: Int32 = 7
    package static let qemu: Int32 = 10
    package static let remote: Int32 = 13
    package static let domain: Int32 = 20
    package static let checkpoint: Int32 = 69
}
