extension XMLSchema {
    /// The parts of `<domain>` that matter here; everything else is allowed anywhere and kept.
    package static let domain = XMLSchema(
        name: "domain.rng", documentLabel: "domain_definition",
        source: relaxNGGrammar(domainDocument + domainDisk), maximumBytes: 1 << 18,
        explain: { DomainSchemaExplanation.reasons(for: $0) })

    /// The same, for XML that is not a user's: longer by what was added to it.
    static let machine = XMLSchema(
        name: domain.name, documentLabel: domain.documentLabel, source: domain.source,
        maximumBytes: 1 << 20, explain: domain.explain)
}

private let domainDocument = """
      <define name="document">
        <element name="domain">
          <ref name="anyAttributes"/>
          <interleave>
            <element name="name"><text/></element>
            <optional><element name="uuid"><text/></element></optional>
            <optional>
              <element name="devices">
                <ref name="anyAttributes"/>
                <interleave>
                  <zeroOrMore><ref name="disk"/></zeroOrMore>
                  <zeroOrMore>
                    <element>
                      <anyName><except><name ns="">disk</name></except></anyName>
                      <ref name="anything"/>
                    </element>
                  </zeroOrMore>
                </interleave>
              </element>
            </optional>
            <zeroOrMore>
              <element>
                <anyName>
                  <except>
                    <name ns="">name</name><name ns="">uuid</name><name ns="">devices</name>
                  </except>
                </anyName>
                <ref name="anything"/>
              </element>
            </zeroOrMore>
          </interleave>
        </element>
      </define>
      <define name="anyAttributes">
        <zeroOrMore><attribute><anyName/></attribute></zeroOrMore>
      </define>
    """

private let domainDisk = """
      <define name="disk">
        <element name="disk">
          <ref name="anyAttributes"/>
          <interleave>
            <element name="target">
              <attribute name="dev"/>
              <zeroOrMore>
                <attribute><anyName><except><name ns="">dev</name></except></anyName></attribute>
              </zeroOrMore>
              <zeroOrMore><element><anyName/><ref name="anything"/></element></zeroOrMore>
            </element>
            <optional><element name="source"><ref name="anything"/></element></optional>
            <optional><element name="driver"><ref name="anything"/></element></optional>
            <optional><element name="readonly"><ref name="anything"/></element></optional>
            <zeroOrMore>
              <element>
                <anyName>
                  <except>
                    <name ns="">target</name><name ns="">source</name>
                    <name ns="">driver</name><name ns="">readonly</name>
                  </except>
                </anyName>
                <ref name="anything"/>
              </element>
            </zeroOrMore>
          </interleave>
        </element>
      </define>
    """
