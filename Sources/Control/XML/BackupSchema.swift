extension XMLSchema {
    /// `<domainbackup>` as clients send it; what libvirt accepts in push and in pull mode.
    ///
    /// Wider than libvirt 9.0: it takes names of NVMe disks, `transport='fd'` and `'rdma'`, which
    /// are refused later with a reason of their own, any combination in a push disk's target, and
    /// scratch that is reached over a network.
    package static let backup = XMLSchema(
        name: "domainbackup.rng", documentLabel: "domain_backup",
        source: relaxNGGrammar(
            backupDocument + backupServer + pullDisk + pushDisk + backupStore + networkStore),
        maximumBytes: 1 << 18,
        explain: { BackupSchemaExplanation.reasons(for: $0) })
}

private let backupDocument = """
      <define name="document">
        <element name="domainbackup">
          <choice>
            <group>
              <optional>
                <attribute name="mode"><value type="string">push</value></attribute>
              </optional>
              <interleave>
                <ref name="incrementalElement"/>
                <optional>
                  <element name="disks"><oneOrMore><ref name="pushDisk"/></oneOrMore></element>
                </optional>
              </interleave>
            </group>
            <group>
              <attribute name="mode"><value type="string">pull</value></attribute>
              <interleave>
                <ref name="incrementalElement"/>
                <ref name="server"/>
                <optional>
                  <element name="disks"><oneOrMore><ref name="pullDisk"/></oneOrMore></element>
                </optional>
              </interleave>
            </group>
          </choice>
        </element>
      </define>
      <define name="incrementalElement">
        <optional><element name="incremental"><text/></element></optional>
      </define>
    """

private let backupServer = """
      <define name="server">
        <element name="server">
          <optional>
            <attribute name="tls">
              <choice><value type="string">yes</value><value type="string">no</value></choice>
            </attribute>
          </optional>
          <choice>
            <group>
              <optional>
                <attribute name="transport">
                  <choice><value type="string">tcp</value><value type="string">rdma</value></choice>
                </attribute>
              </optional>
              <attribute name="name">
                <data type="string"><param name="pattern">[a-zA-Z0-9.:_\\-]+</param></data>
              </attribute>
              <optional><attribute name="port"><ref name="unsigned"/></attribute></optional>
            </group>
            <group>
              <attribute name="transport"><value type="string">unix</value></attribute>
              <attribute name="socket"><ref name="absolutePath"/></attribute>
            </group>
            <group>
              <attribute name="transport"><value type="string">fd</value></attribute>
              <attribute name="fdgroup"/>
            </group>
          </choice>
        </element>
      </define>
    """

private let pullDisk = """
      <define name="pullDisk">
        <element name="disk">
          <attribute name="name"><ref name="target"/></attribute>
          <ref name="diskMode"/>
          <optional><attribute name="exportname"/></optional>
          <optional><attribute name="exportbitmap"/></optional>
          <choice>
            <attribute name="backup"><value type="string">no</value></attribute>
            <group>
              <optional><ref name="fileType"/></optional>
              <ref name="pullFileStore"/>
            </group>
            <group>
              <attribute name="backup"><value type="string">yes</value></attribute>
              <ref name="fileType"/>
              <ref name="pullFileStore"/>
            </group>
            <group>
              <optional>
                <attribute name="backup"><value type="string">yes</value></attribute>
              </optional>
              <ref name="blockType"/>
              <interleave>
                <optional><ref name="pullDriver"/></optional>
                <element name="scratch"><ref name="blockStore"/></element>
                <ref name="moreBitmaps"/>
              </interleave>
            </group>
            <group>
              <optional>
                <attribute name="backup"><value type="string">yes</value></attribute>
              </optional>
              <attribute name="type"><value type="string">network</value></attribute>
              <interleave>
                <optional><ref name="pullDriver"/></optional>
                <element name="scratch"><ref name="networkStore"/></element>
                <ref name="moreBitmaps"/>
              </interleave>
            </group>
          </choice>
        </element>
      </define>
      <define name="pullFileStore">
        <choice>
          <interleave>
            <optional><ref name="pullDriver"/></optional>
            <element name="scratch"><ref name="fileStore"/></element>
            <ref name="moreBitmaps"/>
          </interleave>
          <ref name="moreBitmaps"/>
        </choice>
      </define>
      <define name="moreBitmaps">
        <zeroOrMore>
          <element name="bitmap" ns="urn:nbdpull:backup:1">
            <attribute name="checkpoint" ns=""/>
            <optional><attribute name="name" ns=""/></optional>
          </element>
        </zeroOrMore>
      </define>
      <define name="pullDriver">
        <element name="driver">
          <attribute name="type"><value type="string">qcow2</value></attribute>
        </element>
      </define>
      <define name="diskMode">
        <choice>
          <attribute name="backupmode"><value type="string">full</value></attribute>
          <group>
            <optional>
              <attribute name="backupmode"><value type="string">incremental</value></attribute>
            </optional>
            <optional><attribute name="incremental"/></optional>
          </group>
        </choice>
      </define>
      <define name="fileType">
        <attribute name="type"><value type="string">file</value></attribute>
      </define>
      <define name="blockType">
        <attribute name="type"><value type="string">block</value></attribute>
      </define>
    """

private let pushDisk = """
      <define name="pushDisk">
        <element name="disk">
          <attribute name="name"><ref name="target"/></attribute>
          <ref name="diskMode"/>
          <choice>
            <attribute name="backup"><value type="string">no</value></attribute>
            <group>
              <optional>
                <attribute name="backup"><value type="string">yes</value></attribute>
              </optional>
              <optional><ref name="fileType"/></optional>
              <interleave>
                <optional><ref name="pushDriver"/></optional>
                <optional><element name="target"><ref name="fileStore"/></element></optional>
              </interleave>
            </group>
            <group>
              <optional>
                <attribute name="backup"><value type="string">yes</value></attribute>
              </optional>
              <ref name="blockType"/>
              <interleave>
                <optional><ref name="pushDriver"/></optional>
                <optional><element name="target"><ref name="blockStore"/></element></optional>
              </interleave>
            </group>
          </choice>
        </element>
      </define>
      <define name="pushDriver">
        <element name="driver"><attribute name="type"/></element>
      </define>
    """

private let backupStore = """
      <define name="fileStore">
        <attribute name="file"><ref name="absolutePath"/></attribute>
        <ref name="storeDetails"/>
      </define>
      <define name="blockStore">
        <attribute name="dev"><ref name="absolutePath"/></attribute>
        <ref name="storeDetails"/>
      </define>
      <define name="storeDetails">
        <interleave>
          <zeroOrMore>
            <element name="seclabel">
              <optional><attribute name="model"/></optional>
              <optional>
                <attribute name="relabel">
                  <choice><value type="string">yes</value><value type="string">no</value></choice>
                </attribute>
              </optional>
              <optional>
                <attribute name="labelskip"><value type="string">yes</value></attribute>
              </optional>
              <optional><element name="label"><text/></element></optional>
            </element>
          </zeroOrMore>
          <optional>
            <element name="encryption">
              <attribute name="format"><value type="string">luks</value></attribute>
              <optional>
                <attribute name="engine"><value type="string">qemu</value></attribute>
              </optional>
              <interleave>
                <oneOrMore>
                  <element name="secret">
                    <attribute name="type"><value type="string">passphrase</value></attribute>
                    <choice><attribute name="uuid"/><attribute name="usage"/></choice>
                  </element>
                </oneOrMore>
                <optional><element name="cipher"><ref name="anything"/></element></optional>
                <optional><element name="ivgen"><ref name="anything"/></element></optional>
              </interleave>
            </element>
          </optional>
        </interleave>
      </define>
    """

// The children are those of a domain's `<source>`.
private let networkStore = """
      <define name="networkStore">
        <attribute name="protocol">
          <choice><value type="string">nbd</value><value type="string">rbd</value></choice>
        </attribute>
        <optional><attribute name="name"/></optional>
        <optional>
          <attribute name="tls">
            <choice><value type="string">yes</value><value type="string">no</value></choice>
          </attribute>
        </optional>
        <interleave>
          <zeroOrMore>
            <element name="host">
              <optional><attribute name="transport"/></optional>
              <optional><attribute name="socket"/></optional>
              <optional><attribute name="name"/></optional>
              <optional><attribute name="port"/></optional>
            </element>
          </zeroOrMore>
          <optional><element name="config"><attribute name="file"/></element></optional>
          <optional>
            <element name="auth">
              <attribute name="username"/>
              <zeroOrMore><element><anyName/><ref name="anything"/></element></zeroOrMore>
            </element>
          </optional>
          <optional>
            <element name="credentials" ns="\(DomainDiskReader.namespace)">
              <ref name="anything"/>
            </element>
          </optional>
        </interleave>
      </define>
    """
