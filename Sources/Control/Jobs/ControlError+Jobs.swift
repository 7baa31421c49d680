extension ControlError {
    /// The server stops and begins nothing new.
    static let serverStopping = ControlError(
        code: "server-stopping", libvirtCode: 55,
        message: "Requested operation is not valid: the server is stopping", httpStatus: 503)

    /// The job does not accept this now.
    static func jobNotReady(id: String, state: String) -> ControlError {
        ControlError(
            code: "job-not-ready", libvirtCode: 55,
            message: "Requested operation is not valid: job '\(id)' is \(state)", httpStatus: 409)
    }

    /// A disk that is to be backed up is not served.
    static func diskUnavailable(domain: String, target: String, reason: String) -> ControlError {
        ControlError(
            code: "disk-unavailable", libvirtCode: 55,
            message: "Requested operation is not valid: disk '\(target)' of domain '\(domain)' "
                + "cannot be opened: \(reason)",
            httpStatus: 409)
    }

    /// A named limit is reached.
    static func limit(_ what: String, _ limit: Int) -> ControlError {
        ControlError(
            code: "limit-reached", libvirtCode: 55,
            message: "Requested operation is not valid: there are already \(limit) \(what)",
            httpStatus: 409)
    }

    /// A domain of this UUID exists under another name.
    static func uuidTaken(_ uuid: String, by name: String) -> ControlError {
        ControlError(
            code: "domain-exists", libvirtCode: 9,
            message: "operation failed: domain '\(name)' already exists with uuid \(uuid)",
            httpStatus: 409)
    }
}
