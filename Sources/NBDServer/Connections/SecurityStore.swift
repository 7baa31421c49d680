import ServerInterface
import Synchronization
import SystemLayer
import TLS

/// The credentials and rules in force.
///
/// Consulted when a client connects and when its TLS begins, never per request. A reload puts new
/// ones in their place; connections keep what they have.
final class SecurityStore: Sendable {
    /// What was read from the files.
    struct Current: Sendable {
        fileprivate var credentials: TLSCredentials?
        fileprivate var rules: AccessRules?
        fileprivate var reload: UInt64 = 0
    }

    private let files: SecurityConfiguration
    private let current: Mutex<Current>
    private let lastReload = Atomic<UInt64>(0)

    init(_ files: SecurityConfiguration) throws(ServerFault) {
        self.files = files
        current = Mutex(try Self.load(files))
    }

    /// Whether listeners can offer TLS.
    var offersTLS: Bool { files.offersTLS }

    var credentials: TLSCredentials? { current.withLock { $0.credentials } }

    /// Numbers a reload: a later one has the higher number.
    func nextReload() -> UInt64 { lastReload.add(1, ordering: .relaxed).newValue }

    /// Reads every file; nothing is in force by that.
    func load() throws(ServerFault) -> Current { try Self.load(files) }

    /// Puts in force what a reload has read, unless a later one has been faster.
    func install(_ loaded: Current, _ number: UInt64) {
        current.withLock { current in
            guard number > current.reload else { return }
            current = loaded
            current.reload = number
        }
    }

    /// What a peer may use; `tls` is present once TLS is up, `local` on unix sockets.
    func rights(tls: TLSPeer?, local: LocalPeer?) -> AccessRights {
        current.withLock { $0.rules?.rights(tls: tls, local: local) ?? .everything }
    }

    private static let rulesBytesMax = 4 << 20

    private static func load(_ files: SecurityConfiguration) throws(ServerFault) -> Current {
        var loaded = Current()
        if let tls = files.files {
            do throws(TLSFault) {
                loaded.credentials = try TLSCredentials(tls)
            } catch {
                throw .securityUnusable(detail: error.text)
            }
        }
        if let path = files.rules { loaded.rules = try loadRules(path, files) }
        return loaded
    }

    private static func loadRules(
        _ path: String, _ files: SecurityConfiguration
    ) throws(ServerFault) -> AccessRules {
        func unusable(_ detail: String) -> ServerFault {
            .securityUnusable(detail: "cannot use '\(path)': \(detail)")
        }
        let bytes: [UInt8]
        do throws(SystemFault) {
            guard let read = try StateFiles.read(path, limit: rulesBytesMax) else {
                throw SystemFault(call: "open", errno: Errno.notFound)
            }
            bytes = read
        } catch {
            throw unusable(error.errorText)
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw unusable("it is not UTF-8 text")
        }
        let rules: AccessRules
        do throws(AccessRules.Fault) {
            rules = try AccessRules(parsing: text)
        } catch {
            throw unusable("line \(error.line): \(error.detail)")
        }
        if rules.namesCertificates, files.certificates == nil || !files.verifiesPeer {
            throw unusable("rules for dn and san need client certificates to be verified")
        }
        return rules
    }
}

extension SecurityConfiguration {
    /// Where credentials are read; nil without TLS.
    var files: TLSFiles? {
        guard offersTLS else { return nil }
        return TLSFiles(certificates: certificates, keys: keys, verifiesPeer: verifiesPeer)
    }
}
