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
                return endOfTag(rest)
            }
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

    private static func endOfTag(_ tag: Substring.UnicodeScalarView) -> String.Index? {
        var quote: Unicode.Scalar?
        var previous: Unicode.Scalar = "<"
        for index in tag.indices {
            let scalar = tag[index]
            if let open = quote {
                quote = scalar == open ? nil : open
            } else if scalar == "\"" || scalar == "'" {
                quote = scalar
            } else if scalar == ">" {
                return previous == "/" ? nil : tag.index(after: index)
            }
            previous = scalar
        }
        return nil
    }
}
