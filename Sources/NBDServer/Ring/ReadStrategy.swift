/// How bytes of a read reach a peer: the one place where that is decided.
///
/// Chosen by measurement (docs/decisions/0006): a page that cannot change goes by reference to a unix
/// socket, which halves what the server spends on it. Over TCP on one machine the copy is faster.
struct ReadStrategy {
    /// The peer is on a unix socket.
    var isUnix: Bool

    /// Whether pages of a file may go to the peer by reference.
    ///
    /// `isDirect`: reads bypass the page cache, so there are no pages. `neverChanges`: nobody of ours
    /// can write these bytes while a reply is on its way.
    func sendsByReference(isDirect: Bool, neverChanges: Bool) -> Bool {
        isUnix && neverChanges && !isDirect
    }
}
