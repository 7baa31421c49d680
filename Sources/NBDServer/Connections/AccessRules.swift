package import TLS

/// Who may use which exports: the file that `--tls-authz` names, read.
///
/// A line is `KIND PATTERN EXPORT...`. KIND is `dn`, `san`, `psk`, `uid` or `gid`; EXPORT is
/// `[live:|backup:]DOMAIN[/NAME]`. In patterns `*` matches any bytes and `?` one character;
/// words with spaces stand in double quotes. A peer has the rights of every line that fits it, and
/// no others.
package struct AccessRules: Sendable, Hashable {
    /// Lines of a file; more is a mistake.
    static let rulesMax = 10_000

    /// What is wrong with a line.
    package struct Fault: Error, Hashable {
        package let line: Int
        package let detail: String
    }

    /// Which property of a peer a rule tests.
    enum Subject: Sendable, Hashable {
        case distinguishedName(WildcardPattern)
        case alternativeName(WildcardPattern)
        case keyUser(WildcardPattern)
        case user(UInt32)
        case group(UInt32)
    }

    struct Rule: Sendable, Hashable {
        let subject: Subject
        let exports: [ExportPattern]
    }

    private(set) var rules: [Rule] = []

    /// Whether peers on unix sockets are told apart; without such a rule the socket file's
    /// permissions are all that guards it.
    package var namesLocalPeers: Bool {
        rules.contains { rule in
            switch rule.subject {
            case .user, .group: true
            case .distinguishedName, .alternativeName, .keyUser: false
            }
        }
    }

    /// Whether a rule needs client certificates.
    package var namesCertificates: Bool {
        rules.contains { rule in
            switch rule.subject {
            case .distinguishedName, .alternativeName: true
            case .user, .group, .keyUser: false
            }
        }
    }

    /// Reads a file's text.
    package init(parsing text: String) throws(Fault) {
        var number = 0
        for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
            number += 1
            let words = try Self.words(line, number)
            guard let kind = words.first else { continue }
            guard words.count >= 3 else {
                throw Fault(line: number, detail: "it must be KIND PATTERN EXPORT...")
            }
            var exports: [ExportPattern] = []
            for word in words[2...] {
                guard let export = ExportPattern(word) else {
                    throw Fault(
                        line: number,
                        detail: "'\(word)' is not [live:|backup:]DOMAIN[/NAME]")
                }
                exports.append(export)
            }
            rules.append(
                Rule(subject: try Self.subject(kind, words[1], number), exports: exports))
            guard rules.count <= Self.rulesMax else {
                throw Fault(line: number, detail: "there are more than \(Self.rulesMax) rules")
            }
        }
    }

    private static func subject(
        _ kind: String, _ pattern: String, _ line: Int
    ) throws(Fault) -> Subject {
        switch kind {
        case "dn": return .distinguishedName(WildcardPattern(pattern))
        case "san": return .alternativeName(WildcardPattern(pattern))
        case "psk": return .keyUser(WildcardPattern(pattern))
        case "uid", "gid":
            guard let number = UInt32(pattern) else {
                throw Fault(line: line, detail: "'\(pattern)' is not a number")
            }
            return kind == "uid" ? .user(number) : .group(number)
        default:
            throw Fault(line: line, detail: "'\(kind)' is none of dn, san, psk, uid, gid")
        }
    }

    /// Splits at blanks; double quotes hold a word together, `#` at a word's start ends the line.
    private static func words(_ line: Substring, _ number: Int) throws(Fault) -> [String] {
        var words: [String] = []
        var word: String?
        var isQuoted = false
        for character in line {
            if character == "\"" {
                isQuoted.toggle()
                word = word ?? ""
            } else if isQuoted {
                word?.append(character)
            } else if character == " " || character == "\t" || character == "\r" {
                if let done = word { words.append(done) }
                word = nil
            } else if character == "#", word == nil {
                return words
            } else {
                word = (word ?? "") + String(character)
            }
        }
        guard !isQuoted else { throw Fault(line: number, detail: "a quote is not closed") }
        if let word { words.append(word) }
        return words
    }

    /// The rights of a peer; `tls` is present once TLS is up, `local` on unix sockets.
    package func rights(tls: TLSPeer?, local: LocalPeer?) -> AccessRights {
        if tls == nil, local != nil, !namesLocalPeers { return .everything }
        return .some(rules.filter { Self.fits($0.subject, tls, local) }.flatMap(\.exports))
    }

    private static func fits(_ subject: Subject, _ tls: TLSPeer?, _ local: LocalPeer?) -> Bool {
        switch subject {
        case .distinguishedName(let pattern):
            tls?.subject.map(pattern.matches) ?? false
        case .alternativeName(let pattern):
            tls?.alternativeNames.contains(where: pattern.matches) ?? false
        case .keyUser(let pattern):
            tls?.user.map(pattern.matches) ?? false
        case .user(let number): local?.user == number
        case .group(let number): local?.group == number
        }
    }
}

/// The process at the other end of a unix socket when it connected (SO_PEERCRED).
package struct LocalPeer: Sendable, Hashable {
    /// 0 when it cannot be seen from here.
    package let process: Int32
    package let user: UInt32
    package let group: UInt32
    package init(process: Int32 = 0, user: UInt32, group: UInt32) {
        self.process = process
        self.user = user
        self.group = group
    }
}

/// What one peer may use.
package enum AccessRights: Sendable, Hashable {
    case everything
    case some([ExportPattern])

    /// Whether an export may be used, and is shown.
    package func permit(_ kind: ExportKind, domain: String, name: String) -> Bool {
        switch self {
        case .everything: true
        case .some(let patterns):
            patterns.contains { $0.matches(kind, domain: domain, name: name) }
        }
    }
}
