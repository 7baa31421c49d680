/// What the fuzzer feeds with bytes; the corpus of each lies in `Tests/Corpus/` under its name.
///
/// An entry ends the process when the code under test, or a rule that must hold, is broken: that is
/// what a fuzzer looks for and what a test that replays the corpus cannot overlook.
package enum FuzzTarget: String, CaseIterable, Sendable {
    /// The handshake as a machine over bytes.
    case handshake
    /// Requests and replies of the transmission phase, as values.
    case transmission
    /// Backup, checkpoint and domain XML.
    case document
    /// Everything that is read back from the state directory.
    case state
    /// A client of the libvirt door.
    case libvirt
    /// A vhost-user front-end, and a guest's rings.
    case vhost
    /// A program that shares memory with the server: its replies, and its side of the queue.
    case program
    /// A whole server behind a socket, from the client's flags on.
    case server

    /// Runs the entry over one input; `server` is there for ``FuzzTarget/server``.
    package func run(_ bytes: [UInt8], server: FuzzServer?) {
        switch self {
        case .handshake: HandshakeEntry.run(bytes)
        case .transmission: TransmissionEntry.run(bytes)
        case .document: DocumentEntry.run(bytes)
        case .state: StateEntry.run(bytes)
        case .libvirt: LibvirtEntry.run(bytes)
        case .vhost: VhostEntry.run(bytes)
        case .program: ProgramEntry.run(bytes)
        case .server: server?.feed(bytes)
        }
    }
}
