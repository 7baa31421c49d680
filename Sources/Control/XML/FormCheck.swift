/// Finds what a document's schema has no place for.
///
/// It words what a schema has refused and never decides by itself; so a check that is missing here
/// costs a good message and nothing else.
enum FormCheck {
    /// `line N: <NAME>`, the beginning of a sentence about an element.
    static func place(_ element: XMLElement) -> String { "line \(element.line): <\(element.name)>" }

    /// One sentence for each attribute that `element` cannot have.
    static func attributes(of element: XMLElement, allowed: [String]) -> [String] {
        element.attributes.filter { $0.isForeign || !allowed.contains($0.name) }.map { attribute in
            "\(place(element)): attribute '\(attribute.name)' is not allowed: "
                + advice(attribute.name, allowed, none: "it has no attributes")
        }
    }

    /// One sentence for each child that `element` cannot have, or has more than once.
    ///
    /// - Parameter repeatable: children that may occur any number of times.
    static func children(
        of element: XMLElement, allowed: [String], repeatable: [String] = []
    ) -> [String] {
        var reasons: [String] = []
        var seen: Set<String> = []
        for child in element.children {
            guard child.namespace == nil, (allowed + repeatable).contains(child.name) else {
                reasons.append(
                    "\(place(child)) is not allowed in <\(element.name)>: "
                        + advice(child.name, allowed + repeatable, none: "nothing is"))
                continue
            }
            if !seen.insert(child.name).inserted, !repeatable.contains(child.name) {
                reasons.append("\(place(child)) may stand once in <\(element.name)>")
            }
        }
        return reasons
    }

    /// A sentence when an attribute is there and has none of the values it may have.
    static func value(of name: String, in element: XMLElement, allowed: [String]) -> [String] {
        guard let value = element.attribute(name), !allowed.contains(value) else { return [] }
        return [
            "\(place(element)): \(name)='\(value)' is not allowed: "
                + advice(value, allowed, none: "no value is")
        ]
    }

    /// A sentence if text that must be a number is not one.
    static func number(_ element: XMLElement?) -> [String] {
        guard let element, element.text.isEmpty || !element.text.utf8.allSatisfy(isDigit) else {
            return []
        }
        return ["\(place(element)) must hold a number, not '\(element.text)'"]
    }

    /// A sentence if there is text where only elements may be.
    static func text(in element: XMLElement) -> [String] {
        guard let word = element.text.split(whereSeparator: \.isWhitespace).first else { return [] }
        return ["\(place(element)) must not hold text, as '\(word.prefix(40))'"]
    }

    static func isDigit(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }

    private static func advice(_ word: String, _ allowed: [String], none: String) -> String {
        if let near = Spelling.nearest(word, in: allowed) { return "did you mean '\(near)'?" }
        return allowed.isEmpty ? none : "allowed are \(allowed.joined(separator: ", "))"
    }
}
