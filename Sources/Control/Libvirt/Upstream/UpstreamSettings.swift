import LibvirtProtocol

/// The libvirtd behind the door.
package struct UpstreamSettings: Sendable, Hashable {
    /// Absolute path of its socket.
    package var socketPath: String
    /// The URI it is opened with whatever a client says; nil: by ``UpstreamURI``.
    package var uri: String?

    package init(socketPath: String, uri: String? = nil) {
        self.socketPath = socketPath
        self.uri = uri
    }
}

/// The bounds of what libvirtd can make the server hold or do.
enum UpstreamLimits {
    /// The longest packet that is passed either way, in bytes: libvirt's own limit and a header.
    static let packetBytesMax = (32 << 20) + (64 << 10)
    /// Seconds until a connection is opened.
    static let openSeconds: Int64 = 10
    /// Seconds for an answer that is merged with ours.
    static let answerSeconds: Int64 = 30
    /// The same where ours may stand for it: libvirtd looks up a name or a size at once.
    static let shortAnswerSeconds: Int64 = 5
    /// Seconds of silence, while an answer is due, until a PING is sent, and between two.
    static let pingSeconds: Int64 = 5
    /// Seconds of silence, PINGs included, until libvirtd counts as dead.
    static let silenceSeconds: Int64 = 60
    /// Answers that nobody waits for any more; more of them mean that libvirtd is dead.
    static let abandonedMax = 256
    /// Events of ours that wait for libvirtd to say how it names their domains.
    static let untoldMax = 1024
    /// Bytes towards libvirtd that it has not taken; above them a client is not read.
    static let unsentBytesMax = 4 << 20
}

/// What goes wrong between the door and libvirtd.
enum UpstreamFault: Error, Sendable, Hashable {
    case unreachable(path: String, detail: String)
    /// It wants to know who we are; only `none` is spoken.
    case wantsAuthentication(path: String)
    case refused(WireError)
    case silent(path: String, seconds: Int64)
    case closed(path: String)
    /// It says what cannot be understood.
    case garbled(path: String, detail: String)

    /// The error as a client is told.
    var wire: WireError {
        switch self {
        case .refused(let error): error
        case .unreachable(let path, let detail):
            Self.failure(38, "", "Failed to connect socket to '\(path)': \(detail)")
        case .wantsAuthentication(let path):
            Self.failure(
                45, "authentication failed: ",
                "libvirtd at '\(path)' asks for authentication: run nbdpull as the user it trusts,"
                    + " or set auth_unix_rw = \"none\" in libvirtd.conf")
        case .silent(let path, let seconds):
            Self.failure(
                68, "Timed out during operation: ",
                "libvirtd at '\(path)' has not answered for \(seconds) seconds")
        case .closed(let path):
            Self.failure(
                38, "", "End of file while reading data: libvirtd at '\(path)' is gone")
        case .garbled(let path, let detail):
            Self.failure(
                39, "", "libvirtd at '\(path)' sent what cannot be understood: \(detail)")
        }
    }

    private static func failure(_ code: Int32, _ prefix: String, _ detail: String) -> WireError {
        WireError(code: code, domain: WireErrorDomain.remote, prefix: prefix, detail: detail)
    }
}
