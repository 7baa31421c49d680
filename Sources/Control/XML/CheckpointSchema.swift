extension XMLSchema {
    /// `<domaincheckpoint>` as clients send it to create a checkpoint or to describe a known one.
    package static let checkpoint = XMLSchema(
        name: "domaincheckpoint.rng", documentLabel: "domain_checkpoint",
        source: relaxNGGrammar(checkpointDocument), maximumBytes: 3 << 17,
        explain: { CheckpointSchemaExplanation.reasons(for: $0) })
}

private let checkpointDocument = """
      <define name="document">
        <element name="domaincheckpoint">
          <interleave>
            <optional><element name="name"><ref name="checkpointName"/></element></optional>
            <optional><element name="description"><text/></element></optional>
            <optional><element name="creationTime"><ref name="unsigned"/></element></optional>
            <optional>
              <element name="parent">
                <element name="name"><ref name="checkpointName"/></element>
              </element>
            </optional>
            <optional>
              <element name="disks"><oneOrMore><ref name="checkpointDisk"/></oneOrMore></element>
            </optional>
            <optional><element name="domain"><ref name="anything"/></element></optional>
          </interleave>
        </element>
      </define>
      <define name="checkpointName">
        <data type="string">
          <param name="pattern">[a-zA-Z0-9_\\-][a-zA-Z0-9_\\-.]*</param>
        </data>
      </define>
      <define name="checkpointDisk">
        <element name="disk">
          <attribute name="name">
            <choice><ref name="target"/><ref name="absolutePath"/></choice>
          </attribute>
          <choice>
            <attribute name="checkpoint"><value type="string">no</value></attribute>
            <group>
              <optional>
                <attribute name="checkpoint"><value type="string">bitmap</value></attribute>
              </optional>
              <optional><attribute name="bitmap"/></optional>
              <optional><attribute name="size"><ref name="unsigned"/></attribute></optional>
            </group>
          </choice>
        </element>
      </define>
    """
