/// Whether a directory that exists already is one that only the server's user can change.
///
/// Who may write to the state directory may replace its files: what a backup rests on, and what the
/// next server does as its own user. Who may write to the run directory may put a socket of his
/// own where clients look.
package enum DirectoryTrust {
    /// What is asked about, as `stat` has it.
    package struct Facts: Sendable, Hashable {
        package var owner: UInt32
        package var mode: UInt32

        package init(owner: UInt32, mode: UInt32) {
            self.owner = owner
            self.mode = mode
        }
    }

    private static let groupWrites: UInt32 = 0o020
    private static let othersWrite: UInt32 = 0o002
    private static let sticky: UInt32 = 0o1000

    /// Why it cannot be the state directory of a server that runs as `user`, with what to do; nil:
    /// it can.
    ///
    /// A directory of root's is fine for everybody: root can do anything anyway.
    package static func refusal(_ facts: Facts, user: UInt32) -> String? {
        guard facts.owner == user || facts.owner == 0 else {
            return "it belongs to another user (uid \(facts.owner), the server runs as"
                + " \(user)), who could replace its files: run the server as that user, give the"
                + " directory to uid \(user) (chown), or name another (--state-dir)"
        }
        guard facts.mode & othersWrite == 0 || facts.mode & sticky != 0 else {
            return "every user may replace its files (mode \(octal(facts.mode))): make it private"
                + " (chmod 0700), or name another (--state-dir)"
        }
        return nil
    }

    /// What somebody should know of a directory that is used all the same; nil: nothing.
    package static func warning(
        _ path: String, what: String, _ facts: Facts, user: UInt32
    ) -> String? {
        let whole = "\(what) '\(path)'"
        guard facts.owner == user || facts.owner == 0 else {
            return "\(whole) belongs to another user (uid \(facts.owner)), who can replace what is"
                + " in it: give it to uid \(user) (chown), or name another"
        }
        guard facts.mode & othersWrite == 0 else {
            return "\(whole) can be written to by every user (mode \(octal(facts.mode))): make it"
                + " private (chmod 0700), or name another"
        }
        guard facts.mode & groupWrites == 0 || facts.mode & sticky != 0 else {
            return "\(whole) can be written to by its group (mode \(octal(facts.mode))), which"
                + " can replace what is in it: take that away (chmod g-w) unless it is meant"
        }
        return nil
    }

    /// The same of a directory as it is now; nil as well when it cannot be looked at.
    package static func warning(_ path: String, what: String) -> String? {
        guard let facts = SystemCalls.trustFacts(of: path) else { return nil }
        return warning(path, what: what, facts, user: SystemCalls.userID)
    }

    private static func octal(_ mode: UInt32) -> String {
        let digits = String(mode & 0o7777, radix: 8)
        return String(repeating: "0", count: max(4 - digits.count, 0)) + digits
    }
}
