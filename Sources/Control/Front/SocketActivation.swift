/// Listening sockets that the service manager has opened (the protocol of `sd_listen_fds(3)`).
package enum SocketActivation {
    /// The first descriptor that is passed.
    package static let firstDescriptor: Int32 = 3
    /// More sockets than anybody has addresses for are a mistake.
    package static let descriptorsMax = 64
    /// A name under which no socket is taken.
    static let reservedName = "control"
    /// In front of the names of sockets that the service manager keeps for the server itself, as
    /// many as it has jobs and a few.
    package static let storedPrefix = "nbdpull-"
    private static let countMax = 1024

    /// The descriptors meant for this process, in order; none when nothing was passed to it.
    ///
    /// All of them serve live exports, whatever they are called; only the name `control` is
    /// refused, as the control socket is made by the server itself. Those that it keeps for the
    /// server from one start to the next are none of them.
    ///
    /// - Throws: 8 for values that are no numbers, too many, or a name that is not taken.
    package static func descriptors(
        _ environment: [String: String], processID: Int32
    ) throws(ControlError) -> [Int32] {
        guard let count = environment["LISTEN_FDS"], let owner = environment["LISTEN_PID"] else {
            return []
        }
        // Meant for a parent process that left its variables behind.
        guard Int32(owner) == processID else { return [] }
        guard let count = Int(count), (0...countMax).contains(count) else { throw outOfBounds }
        let names = (environment["LISTEN_FDNAMES"] ?? "").split(
            separator: ":", omittingEmptySubsequences: false)
        guard !names.contains(where: { $0 == reservedName }) else {
            throw .invalidArgument(
                what: "socket '\(reservedName)' of the service manager",
                detail: "the control socket cannot be passed in, only sockets for live exports")
        }
        let passed = (0..<count).filter {
            !names.indices.contains($0) || !names[$0].hasPrefix(storedPrefix)
        }
        guard passed.count <= descriptorsMax else { throw outOfBounds }
        return passed.map { firstDescriptor + Int32($0) }
    }

    private static var outOfBounds: ControlError {
        .invalidArgument(
            what: "LISTEN_FDS", detail: "it must be between 0 and \(descriptorsMax)")
    }
}

/// Reads the permissions of unix sockets from options.
package enum SocketPermissions {
    /// Octal permission bits, `0660`: read and write for user, group and others.
    package static func mode(_ text: String) throws(ControlError) -> UInt32 {
        try mode(text, option: "--socket-mode")
    }

    /// The same, for an option of another name.
    package static func mode(
        _ text: String, option: String
    ) throws(ControlError) -> UInt32 {
        guard let mode = UInt32(text, radix: 8), mode & ~0o777 == 0, mode & 0o600 == 0o600 else {
            throw .invalidArgument(
                what: "\(option) '\(text)'",
                detail: "it must be octal permission bits that include 0600, for example 0660")
        }
        return mode
    }

    /// A group's name or number.
    package static func group(_ text: String) throws(ControlError) -> UInt32 {
        try group(text, option: "--socket-group")
    }

    /// The same, for an option of another name.
    package static func group(
        _ text: String, option: String
    ) throws(ControlError) -> UInt32 {
        // The highest number says "no change" to the kernel.
        if let number = UInt32(text), number != .max { return number }
        guard let number = SystemCalls.group(named: text) else {
            throw .invalidArgument(
                what: "\(option) '\(text)'", detail: "there is no such group")
        }
        return number
    }
}
