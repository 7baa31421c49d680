/// A domain as calls and replies name it.
package struct WireDomain: Sendable, Hashable {
    /// Longest name that is accepted, in bytes.
    package static let nameBytesMax = 4096

    package var name: String
    /// Sixteen bytes.
    package var uuid: [UInt8]
    /// -1 while it does not run.
    package var id: Int32

    package init(name: String, uuid: [UInt8], id: Int32) {
        self.name = name
        self.uuid = uuid
        self.id = id
    }
}

/// A checkpoint as calls and replies name it.
package struct WireCheckpoint: Sendable, Hashable {
    package var name: String
    package var domain: WireDomain

    package init(name: String, domain: WireDomain) {
        self.name = name
        self.domain = domain
    }
}

/// A value with a name and a type of its own.
package struct TypedParameter: Sendable, Hashable {
    /// The types there are.
    package enum Value: Sendable, Hashable {
        case int(Int32)
        case uint(UInt32)
        case hyper(Int64)
        case uhyper(UInt64)
        case double(Double)
        case bool(Bool)
        case string(String)

        /// The type's number on the wire.
        package var type: Int32 {
            switch self {
            case .int: 1
            case .uint: 2
            case .hyper: 3
            case .uhyper: 4
            case .double: 5
            case .bool: 6
            case .string: 7
            }
        }
    }

    package var field: String
    package var value: Value

    package init(_ field: String, _ value: Value) {
        self.field = field
        self.value = value
    }
}

extension XDRReader {
    /// A domain.
    package mutating func domain() throws(XDRError) -> WireDomain {
        WireDomain(
            name: try string(limit: WireDomain.nameBytesMax), uuid: try opaque(count: 16),
            id: try int())
    }

    /// An array of domains.
    package mutating func domains() throws(XDRError) -> [WireDomain] {
        var list: [WireDomain] = []
        for _ in 0..<(try count(limit: LibvirtLimits.domainsMax, elementBytes: 24)) {
            list.append(try domain())
        }
        return list
    }

    /// A domain that may be absent.
    package mutating func optionalDomain() throws(XDRError) -> WireDomain? {
        try bool() ? try domain() : nil
    }

    /// A checkpoint.
    package mutating func checkpoint() throws(XDRError) -> WireCheckpoint {
        WireCheckpoint(name: try string(limit: WireDomain.nameBytesMax), domain: try domain())
    }

    /// A typed parameter.
    package mutating func parameter() throws(XDRError) -> TypedParameter {
        let field = try string(limit: WireDomain.nameBytesMax)
        let type = try int()
        let value: TypedParameter.Value =
            switch type {
            case 1: .int(try int())
            case 2: .uint(try uint())
            case 3: .hyper(try hyper())
            case 4: .uhyper(try uhyper())
            case 5: .double(try double())
            case 6: .bool(try int() != 0)
            case 7: .string(try string())
            default: throw .unknownType(type)
            }
        return TypedParameter(field, value)
    }

    /// An array of typed parameters.
    package mutating func parameters() throws(XDRError) -> [TypedParameter] {
        var list: [TypedParameter] = []
        for _ in 0..<(try count(limit: LibvirtLimits.parametersMax, elementBytes: 12)) {
            list.append(try parameter())
        }
        return list
    }
}

extension XDRWriter {
    /// Appends a domain.
    package mutating func domain(_ value: WireDomain) {
        string(value.name)
        opaque(value.uuid)
        int(value.id)
    }

    /// Appends domains and their count.
    package mutating func domains(_ values: [WireDomain]) {
        count(values.count)
        for value in values { domain(value) }
    }

    /// Appends a checkpoint.
    package mutating func checkpoint(_ value: WireCheckpoint) {
        string(value.name)
        domain(value.domain)
    }

    /// Appends checkpoints and their count.
    package mutating func checkpoints(_ values: [WireCheckpoint]) {
        count(values.count)
        for value in values { checkpoint(value) }
    }

    /// Appends a typed parameter.
    package mutating func parameter(_ parameter: TypedParameter) {
        string(parameter.field)
        int(parameter.value.type)
        switch parameter.value {
        case .int(let value): int(value)
        case .uint(let value): uint(value)
        case .hyper(let value): hyper(value)
        case .uhyper(let value): uhyper(value)
        case .double(let value): double(value)
        case .bool(let value): bool(value)
        case .string(let value): string(value)
        }
    }

    /// Appends typed parameters and their count.
    package mutating func parameters(_ values: [TypedParameter]) {
        count(values.count)
        for value in values { parameter(value) }
    }
}
