/// One attribute of an element, as written.
package struct XMLAttribute: Sendable, Hashable {
    /// Local name, without a namespace prefix.
    package let name: String
    /// Value with character references resolved and white space normalised (XML 1.0, 3.3.3).
    package let value: String
    /// True if the attribute belongs to a namespace and so does not concern us.
    package let isForeign: Bool

    package init(name: String, value: String, isForeign: Bool = false) {
        self.name = name
        self.value = value
        self.isForeign = isForeign
    }
}

/// An element of a parsed document: a plain value with no tie to the parser.
package struct XMLElement: Sendable, Hashable {
    /// Local name, without a namespace prefix.
    package let name: String
    /// Namespace URI, nil for the elements that the schemas of this project describe.
    package let namespace: String?
    /// Attributes in document order.
    package let attributes: [XMLAttribute]
    /// Child elements in document order; comments and processing instructions are left out.
    package let children: [XMLElement]
    /// The element's own text, CDATA included, joined over child elements.
    package let text: String
    /// Line of the start tag, counted from 1.
    package let line: Int

    package init(
        name: String, namespace: String? = nil, attributes: [XMLAttribute] = [],
        children: [XMLElement] = [], text: String = "", line: Int = 1
    ) {
        self.name = name
        self.namespace = namespace
        self.attributes = attributes
        self.children = children
        self.text = text
        self.line = line
    }

    /// Returns the value of the attribute `name`, or nil when the element has none.
    package func attribute(_ name: String) -> String? {
        attributes.first { $0.name == name && !$0.isForeign }?.value
    }

    /// Returns the first child element `name` that is in no namespace.
    package func child(_ name: String) -> XMLElement? {
        children.first { $0.name == name && $0.namespace == nil }
    }

    /// Returns all child elements `name` that are in no namespace, in document order.
    package func all(_ name: String) -> [XMLElement] {
        children.filter { $0.name == name && $0.namespace == nil }
    }
}
