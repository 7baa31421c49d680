extension ControlError {
    /// The server stops and begins nothing new.
    static let serverStopping = ControlError(
        .operationInvalid, code: "server-stopping", status: 503, detail: "the server is stopping")

    /// The next server will do it.
    static let serverRestarting = ControlError(
        .operationInvalid, code: "server-restarting", status: 503,
        detail: "the server is being replaced by its next version: try again in a moment")

    /// The job does not accept this now.
    static func jobNotReady(id: String, state: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "job-not-ready", status: 409,
            detail: "job '\(id)' is \(state)")
    }

    /// A disk that is to be backed up is not served.
    static func diskUnavailable(domain: String, target: String, reason: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "disk-unavailable", status: 409,
            detail: "disk '\(target)' of domain '\(domain)' cannot be opened: \(reason)")
    }

    /// Somebody else defines, changes or undefines the domain.
    static func domainChanging(_ name: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "domain-changing", status: 409,
            detail: "domain '\(name)' is being defined, changed or opened: try again when that is "
                + "done")
    }

    /// Clients are connected to disks that would be closed.
    static func disksInUse(
        _ name: String, _ used: [(target: String, clients: Int)]
    ) -> ControlError {
        let list = used.map { "disk '\($0.target)' has \(clients($0.clients))" }
        return inUse(
            "domain '\(name)' is in use: " + list.joined(separator: ", "))
    }

    /// The same of one export, where the domain is not known.
    static func diskInUse(_ export: String, clients count: Int) -> ControlError {
        inUse("disk '\(export)' is in use: it has \(clients(count))")
    }

    private static func inUse(_ what: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "disk-in-use", status: 409,
            detail: what + ": shut the machine down first, or give --force to disconnect it")
    }

    private static func clients(_ count: Int) -> String {
        count == 1 ? "1 client" : "\(count) clients"
    }

    /// Whether clients are in the way.
    var isInUse: Bool { code == "disk-in-use" }

    /// A disk takes part in a job, which needs it as it is.
    static func diskInJob(_ target: String, domain: String, job id: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "disk-in-job", status: 409,
            detail: "disk '\(target)' of domain '\(domain)' takes part in backup job '\(id)': end "
                + "that first")
    }

    /// The target is taken.
    static func diskExists(_ target: String, domain: String) -> ControlError {
        ControlError(
            .operationFailed, code: "disk-exists", status: 409,
            detail: "domain '\(domain)' has a disk '\(target)' already")
    }

    /// The change is made, but what was written last may be lost.
    static func diskNotFlushed(_ detail: String, done: String) -> ControlError {
        ControlError(
            .systemError, code: "disk-not-flushed", status: 500,
            detail: "the domain has been \(done), but a disk was closed with writes that may not "
                + "be durable: \(detail)")
    }

    /// This server serves or uses the source already.
    static func sourceServed(_ path: String, as holder: String) -> ControlError {
        ControlError(
            .operationInvalid, code: "source-locked", status: 409,
            detail: "source '\(path)' is in use by this server: it is \(holder)")
    }

    /// The same error with more to say.
    func adding(_ text: String) -> ControlError {
        ControlError(
            code: code, libvirtCode: libvirtCode, message: message + text, httpStatus: httpStatus)
    }

    /// A named limit is reached.
    static func limit(_ what: String, _ limit: Int) -> ControlError {
        ControlError(
            .operationInvalid, code: "limit-reached", status: 409,
            detail: "there are already \(limit) \(what)")
    }

    /// A domain of this UUID exists under another name.
    static func uuidTaken(_ uuid: String, by name: String) -> ControlError {
        ControlError(
            .operationFailed, code: "domain-exists", status: 409,
            detail: "domain '\(name)' already exists with uuid \(uuid)")
    }
}
