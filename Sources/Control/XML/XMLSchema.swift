/// A RELAX NG schema of this project, and the names its errors go by.
package struct XMLSchema: Sendable {
    /// Name in error messages, for example `domainbackup.rng`.
    package let name: String
    /// The name of this kind of document in parse errors, for example `domain_backup`.
    package let documentLabel: String
    /// The schema itself, RELAX NG in XML syntax, without includes.
    package let source: String
    /// Largest document accepted, in bytes of UTF-8.
    package let maximumBytes: Int
    /// Says in plain words what is wrong with a document of this kind; empty if unknown.
    ///
    /// RELAX NG validators answer "extra element in interleave" for most mistakes.
    package let explain: @Sendable (XMLElement) -> [String]

    package init(
        name: String, documentLabel: String, source: String, maximumBytes: Int,
        explain: @escaping @Sendable (XMLElement) -> [String] = { _ in [] }
    ) {
        self.name = name
        self.documentLabel = documentLabel
        self.source = source
        self.maximumBytes = maximumBytes
        self.explain = explain
    }
}

/// Wraps definitions into a complete grammar that starts at the definition `document`.
func relaxNGGrammar(_ definitions: String) -> String {
    """
    <grammar xmlns="http://relaxng.org/ns/structure/1.0"
             datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
      <start><ref name="document"/></start>
    \(definitions)
    \(sharedDefinitions)
    </grammar>
    """
}

/// Definitions that more than one schema refers to.
private let sharedDefinitions = """
      <define name="target">
        <data type="string">
          <param name="pattern">\(TargetName.pattern)</param>
        </data>
      </define>
      <define name="absolutePath">
        <data type="string"><param name="pattern">/.+</param></data>
      </define>
      <define name="unsigned">
        <data type="string"><param name="pattern">[0-9]+</param></data>
      </define>
      <define name="anything">
        <zeroOrMore>
          <choice>
            <attribute><anyName/></attribute>
            <text/>
            <element><anyName/><ref name="anything"/></element>
          </choice>
        </zeroOrMore>
      </define>
    """
