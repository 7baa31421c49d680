import NBDProtocol

/// A connection before it has its export.
struct Negotiation {
    /// What goes on when the socket has taken the replies that are on their way.
    enum Next {
        /// The next option is parsed.
        case option
        /// STARTTLS is granted: TLS begins behind its reply.
        case tls
        /// An export is agreed upon: the connection moves to the export's home ring.
        case move(Negotiated)
    }

    var handshake: Handshake
    var next = Next.option

    init(tls: TLSPolicy) { handshake = Handshake(tls: tls) }
}
