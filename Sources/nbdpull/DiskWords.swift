import ArgumentParser

/// A domain and the XML of a device.
struct DeviceArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(help: "XML of one <disk>; - is standard input.", completion: .file())
    var file: String?
    @Option(name: .customLong("file"), help: "The same as <file>.") var fileOption: String?

    func values() throws(ValidationError) -> (domain: String, file: String) {
        let (domain, file) = try domainArgument.and(file, fileOption)
        return (domain, try Words.need(file, "file"))
    }

    func validate() throws { _ = try values() }
}

/// A domain and one of its disks.
struct DiskTargetArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(
        help: "The disk's target, or the path of its source.", completion: LiveNames.disks)
    var target: String?
    @Option(name: .customLong("target"), help: "The same as <target>.") var targetOption: String?

    func values() throws(ValidationError) -> (domain: String, target: String) {
        let (domain, target) = try domainArgument.and(target, targetOption)
        return (domain, try Words.need(target, "target"))
    }

    func validate() throws { _ = try values() }
}

/// A new disk: its domain, where its bytes are, and its name there.
struct NewDiskArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(help: "The file or block device.", completion: .file()) var source: String?
    @Option(name: .customLong("source"), help: "The same as <source>.") var sourceOption: String?
    @Argument(help: "The disk's target, such as vdb.") var target: String?
    @Option(name: .customLong("target"), help: "The same as <target>.") var targetOption: String?

    func values() throws(ValidationError) -> (domain: String, source: String, target: String) {
        let values = try Words.fill(
            [domainArgument.domain, source, target],
            [domainArgument.domainOption, sourceOption, targetOption])
        return (
            try Words.need(values[0], "domain"), try Words.need(values[1], "source"),
            try Words.need(values[2], "target")
        )
    }

    func validate() throws { _ = try values() }
}

/// A drive and what goes into it.
struct MediaArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(
        help: "The drive's target, or the path of its medium.", completion: LiveNames.disks)
    var path: String?
    @Option(name: .customLong("path"), help: "The same as <path>.") var pathOption: String?
    @Argument(help: "The new medium.", completion: .file()) var source: String?
    @Option(name: .customLong("source"), help: "The same as <source>.") var sourceOption: String?

    func values() throws(ValidationError) -> (domain: String, path: String, source: String?) {
        let values = try Words.fill(
            [domainArgument.domain, path, source],
            [domainArgument.domainOption, pathOption, sourceOption])
        return (
            try Words.need(values[0], "domain"), try Words.need(values[1], "path"), values[2]
        )
    }

    func validate() throws { _ = try values() }
}

/// A disk and its new size.
struct DiskSizeArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(
        help: "The disk's target, or the path of its source.", completion: LiveNames.disks)
    var path: String?
    @Option(name: .customLong("path"), help: "The same as <path>.") var pathOption: String?
    @Argument(help: "The new size: in KiB, or with a unit such as b, M, GiB, T.")
    var size: String?
    @Option(name: .customLong("size"), help: "The same as <size>.") var sizeOption: String?

    func values() throws(ValidationError) -> (domain: String, path: String, size: String?) {
        let values = try Words.fill(
            [domainArgument.domain, path, size],
            [domainArgument.domainOption, pathOption, sizeOption])
        return (
            try Words.need(values[0], "domain"), try Words.need(values[1], "path"), values[2]
        )
    }

    func validate() throws { _ = try values() }
}
