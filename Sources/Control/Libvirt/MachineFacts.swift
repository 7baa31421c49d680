/// What a domain's XML says about the machine, beside its disks.
struct MachineFacts: Sendable, Hashable {
    /// KiB.
    var memoryMax: UInt64 = 0
    /// KiB.
    var memory: UInt64 = 0
    var processors: UInt32 = 1
    var processorsMax: UInt32 = 1
    var osType = "hvm"

    /// What is missing or cannot be read counts as not said.
    init(_ definition: DomainDefinition) {
        guard let root = try? XMLDocument.parse(definition.xml, schema: .domain) else { return }
        memoryMax = Self.kibibytes(root.child("memory")) ?? 0
        memory = Self.kibibytes(root.child("currentMemory")) ?? memoryMax
        let vcpu = root.child("vcpu")
        processorsMax = vcpu.flatMap { UInt32($0.text.trimmingWhitespace()) } ?? 1
        processors = vcpu?.attribute("current").flatMap { UInt32($0) } ?? processorsMax
        if let type = root.child("os")?.child("type")?.text.trimmingWhitespace(), !type.isEmpty {
            osType = type
        }
    }

    private static let units: [String: UInt64] = [
        "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 1_000_000,
        "M": 1 << 20, "MiB": 1 << 20, "GB": 1_000_000_000, "G": 1 << 30, "GiB": 1 << 30,
        "TB": 1_000_000_000_000, "T": 1 << 40, "TiB": 1 << 40,
    ]

    private static func kibibytes(_ element: XMLElement?) -> UInt64? {
        guard let element, let count = UInt64(element.text.trimmingWhitespace()),
            let unit = units[element.attribute("unit") ?? "KiB"]
        else { return nil }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: unit)
        return overflow ? UInt64.max / 1024 : bytes / 1024
    }
}
