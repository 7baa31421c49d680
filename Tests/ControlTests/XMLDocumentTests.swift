import Control
import Testing
import UnitSupport

@Suite struct XMLDocumentTests {
    /// A schema that allows everything, to test the reader alone.
    private static let open = XMLSchema(
        name: "open.rng", documentLabel: "open",
        source: """
            <grammar xmlns="http://relaxng.org/ns/structure/1.0">
              <start><ref name="any"/></start>
              <define name="any">
                <element><anyName/><zeroOrMore><choice>
                  <attribute><anyName/></attribute><text/><ref name="any"/>
                </choice></zeroOrMore></element>
              </define>
            </grammar>
            """, maximumBytes: 1 << 20)

    @Test func treeKeepsNamesAttributesTextAndOrder() throws {
        let root = try XMLDocument.parse(
            """
            <?xml version='1.0' encoding='UTF-16'?>
            <!-- before --><a y='1' x="&lt;&#228;>" q:z='0' xmlns:q='urn:q'>
              <b/><![CDATA[<c>]]><q:b/>é&amp;<?pi x?></a>
            """, schema: Self.open)
        #expect(root.name == "a")
        #expect(root.line == 2)
        #expect(root.attributes.map(\.name) == ["y", "x", "z"])
        #expect(root.attribute("x") == "<ä>")
        #expect(root.attribute("z") == nil)
        #expect(root.children.map(\.name) == ["b", "b"])
        #expect(root.all("b").count == 1)
        #expect(root.children.last?.namespace == "urn:q")
        #expect(root.text == "\n  <c>é&")
    }

    @Test(arguments: [
        "", " ", "text", "<a>", "<a", "</a>", "<a><b></a></b>", "<a x='1' x='2'/>", "<a/><b/>",
        "<a>&undefined;</a>", "<a x=1/>", "<a>\u{0}</a>", "<a/>\u{0}", "<a>\u{1}</a>", "<a><!-- --",
        "<a>&#0;</a>", "<p:a/>\u{FFFE}",
    ])
    func malformedIsRefusedWithItsPlace(xml: String) {
        let error = refusal { () throws(ControlError) in
            try XMLDocument.parse(xml, schema: Self.open)
        }
        #expect(error?.libvirtCode == 35)
        #expect(error?.code == "xml-malformed")
        #expect(error?.httpStatus == 400)
        #expect(error?.message.hasPrefix("(open):1: ") == true)
    }

    @Test func errorNamesTheLine() {
        let error = refusal { () throws(ControlError) in
            try BackupRequest.parse("<domainbackup>\n<server \n")
        }
        #expect(error?.message.hasPrefix("(domain_backup):3: ") == true)
        #expect(error?.message.contains("\n") == false)
    }

    @Test(arguments: [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
        "<!DOCTYPE a [<!ENTITY % x SYSTEM 'http://127.0.0.1:1/'> %x;]><a/>",
        """
        <!DOCTYPE a [<!ENTITY l0 'lol'><!ENTITY l1 '&l0;&l0;&l0;&l0;&l0;&l0;&l0;&l0;&l0;&l0;'>
        <!ENTITY l2 '&l1;&l1;&l1;&l1;&l1;&l1;&l1;&l1;&l1;&l1;'>
        <!ENTITY l3 '&l2;&l2;&l2;&l2;&l2;&l2;&l2;&l2;&l2;&l2;'>]><a>&l3;&l3;&l3;&l3;</a>
        """,
        "<!DOCTYPE a [<!ATTLIST a x CDATA 'default'>]><a/>",
    ])
    func documentTypeIsRefused(xml: String) {
        for text in [xml, "<?xml version='1.0'?>" + xml] {
            let error = refusal { () throws(ControlError) in
                try XMLDocument.parse(text, schema: Self.open)
            }
            #expect(error?.libvirtCode == 35)
            #expect(error?.message == "(open):1: a DOCTYPE is not accepted")
        }
    }

    @Test func wordDoctypeInTextIsNoDoctype() throws {
        let xml = "<a><!-- <!DOCTYPE a> --><![CDATA[<!DOCTYPE a>]]></a>"
        #expect(try XMLDocument.parse(xml, schema: Self.open).text == "<!DOCTYPE a>")
    }

    @Test func depthIsBounded() throws {
        func nested(_ depth: Int) -> String {
            String(repeating: "<a>", count: depth) + String(repeating: "</a>", count: depth)
        }
        _ = try XMLDocument.parse(nested(XMLDocument.depthMax), schema: Self.open)
        for depth in [XMLDocument.depthMax + 1, 300, 100_000] {
            let error = refusal { () throws(ControlError) in
                try XMLDocument.parse(nested(depth), schema: Self.open)
            }
            #expect(error?.libvirtCode == 35)
        }
    }

    @Test func sizeIsBounded() {
        let huge = pullXML("<incremental>\(String(repeating: "x", count: 1 << 20))</incremental>")
        let error = refusal { () throws(ControlError) in try BackupRequest.parse(huge) }
        #expect(error?.libvirtCode == 35)
        #expect(error?.message.contains("longer than 262144") == true)
    }

    @Test func manyDisksAreReadInReasonableTime() throws {
        let disk = "<disk name='vda' type='file'><scratch file='/s'/></disk>"
        let list = String(repeating: disk, count: 4000)
        let start = ContinuousClock.now
        let request = try BackupRequest.parse(pullXML("<disks>\(list)</disks>"))
        #expect(request.disks?.count == 4000)
        #expect(ContinuousClock.now - start < .seconds(10))
    }

    /// The validator is quadratic in attributes and in siblings: what is beyond a bound is refused.
    @Test func widthIsBounded() throws {
        func attributes(_ count: Int) -> String {
            "<a" + (0..<count).map { " a\($0)=''" }.joined() + "/>"
        }
        let children = { (count: Int) in
            "<a>" + String(repeating: "<b/>", count: count) + "</a>"
        }
        _ = try XMLDocument.parse(attributes(XMLDocument.attributesMax), schema: Self.open)
        _ = try XMLDocument.parse(children(XMLDocument.siblingsMax), schema: Self.open)
        let wide = [
            attributes(XMLDocument.attributesMax + 1), attributes(20_000),
            children(XMLDocument.siblingsMax + 1), children(60_000),
        ]
        let start = ContinuousClock.now
        for xml in wide {
            let error = refusal { () throws(ControlError) in
                try XMLDocument.parse(xml, schema: Self.open)
            }
            #expect(error?.libvirtCode == 35)
            #expect(error?.message.contains("more than ") == true)
        }
        #expect(ContinuousClock.now - start < .seconds(10))
    }

    @Test func readersInManyTasks() async {
        await withTaskGroup(of: Bool.self) { group in
            for index in 0..<64 {
                group.addTask {
                    let xml = pullXML("<incremental>c\(index)</incremental>")
                    return (try? BackupRequest.parse(xml))?.incremental == "c\(index)"
                }
            }
            for await isRight in group {
                #expect(isRight)
            }
        }
    }

    /// Changes valid documents at random: none may crash, and every refusal has words.
    @Test func mutatedDocumentsNeverCrash() {
        let seed: UInt64 = 0x6e62_6470
        var generator = SplitMix64(seed: seed)
        let alphabet = Array("<>/'\"&;=! \u{0}-[]?\nabvdx19é".utf8)
        for original in Self.corpus {
            for _ in 0..<600 {
                var bytes = Array(original.utf8)
                for _ in 0...Int.random(in: 0..<4, using: &generator) where !bytes.isEmpty {
                    let place = Int.random(in: 0..<bytes.count, using: &generator)
                    switch Int.random(in: 0..<4, using: &generator) {
                    case 0: bytes.remove(at: place)
                    case 1: bytes[place] = alphabet.randomElement(using: &generator) ?? 0
                    case 2: bytes[place] = UInt8.random(in: 0...255, using: &generator)
                    default:
                        let end = min(bytes.count, place + 40)
                        let from = Int.random(in: 0..<bytes.count, using: &generator)
                        bytes.insert(contentsOf: Array(bytes[place..<end]), at: from)
                    }
                }
                let xml = String(decoding: bytes, as: UTF8.self)
                Self.check { () throws(ControlError) in _ = try plan(xml) }
                Self.check { () throws(ControlError) in _ = try CheckpointRequest.parse(xml) }
                Self.check { () throws(ControlError) in
                    let domain = try DomainDefinition.parse(xml)
                    let again = try DomainDefinition.parse(domain.xml)
                    #expect(again.uuid == domain.uuid)
                }
            }
        }
    }

    private static let corpus = [
        pullXML(
            """
            <incremental>c1</incremental><disks><disk name='vda' backup='yes' type='file'
            backupmode='incremental' exportname='e'><driver type='qcow2'/><scratch file='/s'>
            <seclabel model='dac' relabel='no'/></scratch></disk><disk name='vdb'/></disks>
            """),
        """
        <domaincheckpoint><name>c1</name><description>&lt;d</description><disks>
        <disk name='vda' checkpoint='bitmap' bitmap='c1'/></disks></domaincheckpoint>
        """,
        """
        <?xml version='1.0'?><!-- > --><domain type='kvm'><name>vm</name><devices><disk type='file'>
        <source file='/d'/><target dev='vda' bus='virtio'/></disk><x:y xmlns:x='urn:x'/></devices>
        </domain>
        """,
    ]

    private static func check(_ body: () throws(ControlError) -> Void) {
        do throws(ControlError) {
            try body()
        } catch {
            #expect(!error.message.isEmpty)
        }
    }
}
