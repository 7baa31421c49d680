import CGnuTLS

/// A fault of credentials or of a session.
///
/// Texts are the library's own or ours: nothing a peer sent is ever in them.
package enum TLSFault: Error, Sendable, Hashable {
    /// A file of the credentials cannot be used; `detail` says why.
    case file(path: String, detail: String)
    /// The library refuses something that does not depend on files or peers.
    case gnutls(call: String, code: Int32)
    /// The session failed; `code` is GnuTLS's, `detail` what it means.
    case session(code: Int32, detail: String)

    /// One line for people.
    package var text: String {
        switch self {
        case .file(let path, let detail): "cannot use '\(path)': \(detail)"
        case .gnutls(let call, let code): "\(call): \(Self.text(of: code))"
        case .session(_, let detail): detail
        }
    }

    /// The library's text for one of its codes.
    static func text(of code: Int32) -> String {
        // SAFETY: a constant string, or nil; copied.
        guard let text = unsafe gnutls_strerror(code) else { return "GnuTLS error \(code)" }
        return unsafe String(cString: text)
    }

    /// Throws unless the call was successful.
    static func check(_ call: StaticString, _ code: Int32) throws(TLSFault) {
        guard code >= 0 else { throw .gnutls(call: "\(call)", code: code) }
    }
}
