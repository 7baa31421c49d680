/// Writes XML in the form libvirt prints: two spaces per level, single quotes, `<empty/>`.
///
/// The text of an element stays on the line of its tags, so that no white space is added to it.
package struct XMLWriter: Sendable {
    private var output = ""
    private var depth = 0

    package init() {}

    /// Everything written so far; every line ends with a newline.
    package var text: String { output }

    /// Writes an element without content.
    package mutating func empty(_ name: String, _ attributes: [(String, String?)] = []) {
        output += indentation + "<\(name)\(Self.list(attributes))/>\n"
    }

    /// Writes an element that holds text only.
    package mutating func leaf(
        _ name: String, _ attributes: [(String, String?)] = [], text: String
    ) {
        let tag = "<\(name)\(Self.list(attributes))>"
        output += indentation + tag + Self.escaped(text) + "</\(name)>\n"
    }

    /// Writes an element whose children `body` writes.
    package mutating func element(
        _ name: String, _ attributes: [(String, String?)] = [], body: (inout XMLWriter) -> Void
    ) {
        output += indentation + "<\(name)\(Self.list(attributes))>\n"
        depth += 1
        body(&self)
        depth -= 1
        output += indentation + "</\(name)>\n"
    }

    /// Writes an element that is markup already; only its first line is indented.
    package mutating func markup(_ text: String) {
        output += indentation + text + "\n"
    }

    private var indentation: String { String(repeating: "  ", count: depth) }

    /// Attributes in the order given; those without a value are left out.
    private static func list(_ attributes: [(String, String?)]) -> String {
        attributes.reduce(into: "") { list, attribute in
            guard let value = attribute.1 else { return }
            list += " \(attribute.0)='\(escaped(value, inAttribute: true))'"
        }
    }

    /// Returns `text` with every character replaced that would not come back from a parser.
    ///
    /// Control characters that XML 1.0 cannot carry at all are dropped.
    package static func escaped(_ text: String, inAttribute: Bool = false) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "'": result += "&apos;"
            case "\"": result += "&quot;"
            case "\r": result += "&#13;"
            case "\t" where inAttribute: result += "&#9;"
            case "\n" where inAttribute: result += "&#10;"
            case "\t", "\n": result.unicodeScalars.append(scalar)
            case _ where scalar.value < 0x20, "\u{FFFE}", "\u{FFFF}": continue
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
