import ArgumentParser

/// Reads arguments as virsh does: each may also be given by an option of its name, and the words
/// that stand alone fill those that are left, in their order.
enum Words {
    /// The values of the arguments, in their order; nil for one that was not given.
    ///
    /// - Parameter words: what stood alone, in its order.
    /// - Parameter options: each argument's option, in the order of the arguments.
    static func fill(
        _ words: [String?], _ options: [String?]
    ) throws(ValidationError) -> [String?] {
        var rest = words.compactMap { $0 }[...]
        let values = options.map { $0 ?? rest.popFirst() }
        guard let extra = rest.first else { return values }
        throw ValidationError("Unexpected argument '\(extra)'")
    }

    /// The value of an argument that is needed.
    static func need(_ value: String?, _ name: String) throws(ValidationError) -> String {
        guard let value else { throw ValidationError("Missing expected argument '<\(name)>'") }
        return value
    }
}

/// The domain that a command is about.
struct DomainArgument: ParsableArguments {
    @Argument(help: "The domain's name or uuid.", completion: LiveNames.domains)
    var domain: String?
    @Option(
        name: .customLong("domain"), help: "The same as <domain>.", completion: LiveNames.domains)
    var domainOption: String?

    /// The domain, for a command with no other argument.
    func name() throws(ValidationError) -> String {
        try Words.need(try Words.fill([domain], [domainOption])[0], "domain")
    }

    /// The domain and one more argument, nil when that was not given.
    func and(
        _ word: String?, _ option: String?
    ) throws(ValidationError) -> (domain: String, other: String?) {
        let values = try Words.fill([domain, word], [domainOption, option])
        return (try Words.need(values[0], "domain"), values[1])
    }
}

/// A domain and one of its checkpoints.
struct CheckpointArguments: ParsableArguments {
    @OptionGroup var domainArgument: DomainArgument
    @Argument(help: "The checkpoint's name.", completion: LiveNames.checkpoints)
    var checkpoint: String?
    @Option(
        name: .customLong("checkpointname"), help: "The same as <checkpoint>.",
        completion: LiveNames.checkpoints)
    var checkpointOption: String?

    /// Both names.
    func names() throws(ValidationError) -> (domain: String, checkpoint: String) {
        let (domain, checkpoint) = try domainArgument.and(checkpoint, checkpointOption)
        return (domain, try Words.need(checkpoint, "checkpoint"))
    }

    func validate() throws { _ = try names() }
}

/// Options of virsh that ask for what is always so here.
struct IgnoredXMLOptions: ParsableArguments {
    @Flag(name: .customLong("inactive"), help: .hidden) var inactive = false
    @Flag(name: .customLong("security-info"), help: .hidden) var securityInfo = false
    @Flag(name: .customLong("update-cpu"), help: .hidden) var updateCPU = false
    @Flag(name: .customLong("migratable"), help: .hidden) var migratable = false
}
