/// Finds places in the text of a document that has already been parsed.
enum XMLText {
    /// Returns the position behind the `>` of the root element's start tag.
    ///
    /// Nil when there is none or the root element is empty. The text must be well-formed and
    /// without a DOCTYPE.
    static func endOfRootStartTag(_ text: String) -> String.Index? {
        // Scalars, not characters: a combining mark must not hide a delimiter.
        var rest = text.unicodeScalars[...]
        while let open = rest.firstIndex(of: "<") {
            rest = rest[open...]
            if rest.starts(with: "<!--".unicodeScalars) {
                guard let after = skip(rest.dropFirst(4), past: "-->") else { return nil }
                rest = after
            } else if rest.starts(with: "<?".unicodeScalars) {
                guard let after = skip(rest.dropFirst(2), past: "?>") else { return nil }
                rest = after
            } else {
                return endOfTag(rest).flatMap { $0.isEmpty ? nil : $0.end }
            }
        }
        return nil
    }

    /// Returns the root element as it was written, without what comes before and after it.
    ///
    /// The text must be well-formed and without a DOCTYPE.
    static func rootElement(_ text: String) -> String? { element(of: text, depth: 0, name: nil) }

    /// Returns the root's first child element `name` as it is written.
    ///
    /// The text must be well-formed and without a DOCTYPE.
    static func child(_ name: String, of text: String) -> String? {
        element(of: text, depth: 1, name: name)
    }

    private static func element(of text: String, depth wanted: Int, name: String?) -> String? {
        var depth = 0
        var start: String.Index?
        var rest = text.unicodeScalars[...]
        while let open = rest.firstIndex(of: "<") {
            rest = rest[open...]
            if let after = skipNonElement(rest) {
                rest = after
                continue
            }
            guard let tag = endOfTag(rest) else { return nil }
            if rest.dropFirst().first == "/" {
                depth -= 1
                if depth == wanted, let start { return String(text[start..<tag.end]) }
            } else {
                if depth == wanted, start == nil, name.map({ isNamed($0, rest) }) ?? true {
                    start = open
                    if tag.isEmpty { return String(text[open..<tag.end]) }
                }
                depth += tag.isEmpty ? 0 : 1
            }
            rest = rest[tag.end...]
        }
        return nil
    }

    private static func isNamed(_ name: String, _ tag: Substring.UnicodeScalarView) -> Bool {
        let ends: [Unicode.Scalar] = [" ", "\t", "\n", "\r", "/", ">"]
        let rest = tag.dropFirst()
        guard rest.starts(with: name.unicodeScalars) else { return false }
        return rest.dropFirst(name.unicodeScalars.count).first.map(ends.contains) ?? false
    }

    // The text behind a comment, CDATA section or processing instruction; nil before a tag.
    static func skipNonElement(
        _ text: Substring.UnicodeScalarView
    ) -> Substring.UnicodeScalarView? {
        for (open, close) in [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")]
        where text.starts(with: open.unicodeScalars) {
            return skip(text.dropFirst(open.unicodeScalars.count), past: close)
        }
        return nil
    }

    private static func skip(
        _ text: Substring.UnicodeScalarView, past mark: String
    ) -> Substring.UnicodeScalarView? {
        var rest = text
        let length = mark.unicodeScalars.count
        while !rest.isEmpty {
            guard !rest.starts(with: mark.unicodeScalars) else { return rest.dropFirst(length) }
            rest = rest.dropFirst()
        }
        return nil
    }

    static func endOfTag(
        _ tag: Substring.UnicodeScalarView
    ) -> (end: String.Index, isEmpty: Bool)? {
        var quote: Unicode.Scalar?
        var previous: Unicode.Scalar = "<"
        for index in tag.indices {
            let scalar = tag[index]
            if let open = quote {
                quote = scalar == open ? nil : open
            } else if scalar == "\"" || scalar == "'" {
                quote = scalar
            } else if scalar == ">" {
                return (tag.index(after: index), previous == "/")
            }
            previous = scalar
        }
        return nil
    }
}
