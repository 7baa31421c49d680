/// Where a document's elements are in its text, for changing one and keeping the rest
/// as it was written.
struct XMLTags {
    /// One element.
    struct Element {
        /// As written, prefix included.
        let name: Substring
        /// From `<` of the start tag to `>` of the end tag.
        var range: Range<String.Index>
        /// The start tag.
        let startTag: Range<String.Index>
        /// `<name/>`: there is no end tag.
        let isEmpty: Bool
        /// Place in `elements` of the element around it.
        let parent: Int?
    }

    /// In the order of their start tags.
    private(set) var elements: [Element] = []

    /// The text must be well-formed and without a DOCTYPE; what is not leaves elements out.
    init(_ text: String) {
        var open: [Int] = []
        var rest = text.unicodeScalars[...]
        while let start = rest.firstIndex(of: "<") {
            rest = rest[start...]
            if let after = XMLText.skipNonElement(rest) {
                rest = after
                continue
            }
            guard let tag = XMLText.endOfTag(rest) else { return }
            if rest.dropFirst().first == "/" {
                guard let last = open.popLast() else { return }
                elements[last].range = elements[last].range.lowerBound..<tag.end
            } else {
                if !tag.isEmpty { open.append(elements.count) }
                let parent = tag.isEmpty ? open.last : open.dropLast().last
                elements.append(
                    Element(
                        name: Self.name(text[start..<tag.end]), range: start..<tag.end,
                        startTag: start..<tag.end, isEmpty: tag.isEmpty, parent: parent))
            }
            rest = rest[tag.end...]
        }
    }

    /// The elements of a name directly within another one; nil means the document.
    func children(of parent: Int?, named name: String) -> [Int] {
        elements.indices.filter {
            elements[$0].parent == parent
                && elements[$0].name.unicodeScalars.elementsEqual(name.unicodeScalars)
        }
    }

    private static func name(_ tag: Substring) -> Substring {
        let ends: [Unicode.Scalar] = [" ", "\t", "\n", "\r", "/", ">"]
        let scalars = tag.unicodeScalars.dropFirst()
        let end = scalars.firstIndex(where: ends.contains) ?? scalars.endIndex
        return tag[scalars.startIndex..<end]
    }
}
