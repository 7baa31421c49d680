/// The two kinds of exports that rights tell apart.
package enum ExportKind: Sendable, Hashable {
    /// A disk as its machine uses it: who may use it may write.
    case live
    /// A point in time, read-only.
    case backup
}

/// `[live:|backup:]DOMAIN[/NAME]`: which exports a rule speaks of.
///
/// NAME is a live export's disk or a backup export's name; left out, it means all.
package struct ExportPattern: Sendable, Hashable {
    let kind: ExportKind?
    let domain: WildcardPattern
    let name: WildcardPattern

    /// Reads a pattern; nil when it is none.
    package init?(_ text: String) {
        var rest = text[...]
        if rest.hasPrefix("live:") {
            kind = .live
            rest = rest.dropFirst("live:".count)
        } else if rest.hasPrefix("backup:") {
            kind = .backup
            rest = rest.dropFirst("backup:".count)
        } else {
            kind = nil
        }
        let slash = rest.firstIndex(of: "/")
        let domainText = rest[..<(slash ?? rest.endIndex)]
        guard !rest.isEmpty, !domainText.contains(":") else { return nil }
        domain = WildcardPattern(String(domainText))
        name = WildcardPattern(slash.map { String(rest[rest.index(after: $0)...]) } ?? "*")
    }

    func matches(_ kind: ExportKind, domain: String, name: String) -> Bool {
        (self.kind ?? kind) == kind && self.domain.matches(domain) && self.name.matches(name)
    }
}

/// A text in which `*` matches any number of characters and `?` one.
package struct WildcardPattern: Sendable, Hashable {
    // Unicode scalars: what looks the same but is written otherwise is not the same name.
    private let parts: [Unicode.Scalar]

    package init(_ text: String) { parts = Array(text.unicodeScalars) }

    /// Whether the whole text fits.
    ///
    /// In at most (length of text) x (length of pattern) steps.
    package func matches(_ text: String) -> Bool {
        let text = Array(text.unicodeScalars)
        var position = 0
        var part = 0
        // Where to go on when what follows the last star does not fit: one character later.
        var retry: (part: Int, position: Int)?
        while position < text.count {
            if part < parts.count, parts[part] == "*" {
                retry = (part + 1, position)
                part += 1
            } else if part < parts.count, parts[part] == "?" || parts[part] == text[position] {
                part += 1
                position += 1
            } else if let last = retry {
                retry = (last.part, last.position + 1)
                part = last.part
                position = last.position + 1
            } else {
                return false
            }
        }
        while part < parts.count, parts[part] == "*" { part += 1 }
        return part == parts.count
    }
}
