/// How bytes of a read reach a peer: the one place where that is decided.
///
/// Chosen by measurement (docs/decisions/0006): a page that cannot change goes by reference, which
/// spares the server most of its work. Only several TCP connections at once are served faster with
/// copies, because what is saved here their client has to spend.
struct ReadStrategy {
    /// The peer is on a unix socket.
    var isUnix: Bool
    /// What is sent is encrypted, which no page of a file is.
    var isSecured: Bool
    /// Connections of the same export, this one included.
    var clients: Int

    /// Whether pages of a file may go to the peer by reference.
    ///
    /// `isDirect`: reads bypass the page cache, so there are no pages. `neverChanges`: nobody of
    /// ours can write these bytes while a reply is on its way.
    func sendsByReference(isDirect: Bool, neverChanges: Bool) -> Bool {
        neverChanges && !isDirect && !isSecured && (isUnix || clients <= 1)
    }
}
