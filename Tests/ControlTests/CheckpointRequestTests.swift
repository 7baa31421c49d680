import Control
import Testing

@Suite struct CheckpointRequestTests {
    private static func checkpoint(_ inner: String) -> String {
        "<domaincheckpoint>\(inner)</domaincheckpoint>"
    }

    @Test(arguments: [
        checkpoint(""), checkpoint("<name>-a.b_1</name>"), checkpoint("<description/>"),
        checkpoint("<creationTime>1525889631</creationTime><parent><name>p</name></parent>"),
        checkpoint("<disks><disk name='vda'/></disks>"),
        checkpoint("<disks><disk name='/img/a'/><disk name='vdb' checkpoint='no'/></disks>"),
        checkpoint("<name>c2</name><disks><disk name='vda' bitmap='c2' size='1048576'/></disks>"),
        checkpoint("<domain type='kvm'><name>x</name><any thing='1'><else/></any></domain>"),
    ])
    func accepted(xml: String) throws {
        _ = try CheckpointRequest.parse(xml)
    }

    @Test(arguments: [
        "<domainbackup/>", checkpoint("<name>../escape</name>"), checkpoint("<name>.a</name>"),
        checkpoint("<name/>"), checkpoint("<name>a b</name>"), checkpoint("<name>ä</name>"),
        checkpoint("<name>a</name><name>b</name>"), checkpoint("<current/>"),
        checkpoint("<disks/>"), checkpoint("<disks><disk/></disks>"),
        checkpoint("<disks><disk name='a b'/></disks>"),
        checkpoint("<disks><disk name='vda' checkpoint='maybe'/></disks>"),
        checkpoint("<disks><disk name='vda' checkpoint='no' size='1'/></disks>"),
        checkpoint("<disks><disk name='vda' checkpoint='no' bitmap='b'/></disks>"),
        checkpoint("<creationTime>-1</creationTime>"), checkpoint("<parent/>"),
    ])
    func refusedBySchema(xml: String) {
        let error = refusal { () throws(ControlError) in try CheckpointRequest.parse(xml) }
        #expect(error?.libvirtCode == 92)
        #expect(error?.message.contains("domaincheckpoint.rng: ") == true)
    }

    @Test(arguments: [
        (checkpoint("<disks><disk name='vda'/><disk name='vda'/></disks>"), 67, "specified twice"),
        (checkpoint("<creationTime>99999999999999999999</creationTime>"), 27, "out of range"),
        (checkpoint("<creationTime>253402300800</creationTime>"), 27, "out of range"),
    ])
    func refusedByMeaning(xml: String, number: Int, words: String) {
        let error = refusal { () throws(ControlError) in try CheckpointRequest.parse(xml) }
        #expect(error?.libvirtCode == number)
        #expect(error?.message.contains(words) == true)
    }

    @Test func theDomainIsKeptAsWritten() throws {
        let domain =
            "<domain type='x'><!-- </domain> --><uuid> 1 </uuid><a:b xmlns:a='u'/></domain>"
        let request = try CheckpointRequest.parse(
            Self.checkpoint("<description>&lt;domain/></description>\(domain)<name>c</name>"))
        #expect(request.domainXML == domain)
        #expect(request.domainUUID == " 1 ")
        let empty = CheckpointMetadata(name: "c", domainXML: "<?xml version='1.0'?>\n<domain/>\n")
        #expect(empty.xml(withDomain: true).contains("\n  <domain/>\n</domaincheckpoint>\n"))
    }

    @Test func treeIsTyped() throws {
        let request = try CheckpointRequest.parse(
            Self.checkpoint(
                """
                <description>Backup checkpoint</description><name>virtnbdbackup.1</name>
                <parent><name>virtnbdbackup.0</name></parent>
                <disks><disk name="vda"/><disk name='vdb' checkpoint='no'/></disks>
                """))
        #expect(request.name == "virtnbdbackup.1")
        #expect(request.description == "Backup checkpoint")
        #expect(request.parent == "virtnbdbackup.0")
        #expect(request.disks?.map(\.participates) == [true, false])
    }
}
