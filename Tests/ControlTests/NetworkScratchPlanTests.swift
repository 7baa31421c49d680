import Control
import ServerInterface
import Testing

/// Scratch of `<disk type='network'>`: what is read of it, planned, and shown again.
@Suite struct NetworkScratchPlanTests {
    private static func request(
        _ scratch: String, disks: String = ""
    ) throws(ControlError) -> BackupRequest {
        try BackupRequest.parse(
            pullXML("<disks><disk name='vda' type='network'>\(scratch)</disk>\(disks)</disks>"))
    }

    private static func domain(_ source: String) throws -> DomainDefinition {
        try DomainDefinition.parse(
            """
            <domain type='kvm'><name>vm1</name><devices>
              <disk type='network' device='disk'>\(source)<target dev='vda'/></disk>
              <disk type='file' device='disk'><source file='/b'/><target dev='vdb'/></disk>
            </devices></domain>
            """)
    }

    private static func plan(
        _ scratch: String, disks: String = "",
        source: String = "<source protocol='nbd' name='d'><host name='h'/></source>"
    ) throws -> BackupPlan {
        try BackupPlan.make(
            try request(scratch, disks: disks), domain: try domain(source), jobID: "j",
            reuseExternal: false, scratchSuffix: "1", firstIndex: 1)
    }

    @Test(
        "scratch is named by a URI, and is shown as it was given",
        arguments: [
            (
                "<scratch protocol='nbd' name='s'><host name='store' port='10810'/></scratch>",
                "nbd://store:10810/s"
            ),
            (
                "<scratch protocol='nbd'><host transport='unix' socket='/run/s.sock'/></scratch>",
                "nbd+unix:///?socket=/run/s.sock"
            ),
            (
                "<scratch protocol='nbd' name='s' tls='yes'><host name='store'/>"
                    + "<credentials xmlns='urn:nbdpull:disk:1' certs='/etc/c'/></scratch>",
                "nbds://store/s?tls-certificates=/etc/c"
            ),
            (
                "<scratch protocol='nbd' name='s' tls='yes'><host name='store'/>"
                    + "<credentials xmlns='urn:nbdpull:disk:1' psk='/etc/k' user='u'/></scratch>",
                "nbds://u@store/s?tls-psk-file=/etc/k"
            ),
        ])
    func nbd(scratch: String, uri: String) throws {
        let plan = try Self.plan(scratch)
        let found = try #require(plan.disks[0].scratch)
        #expect(found.kind == .network)
        #expect(found.path == uri)
        #expect(found.image == nil)
        let again = try BackupRequest.parse(
            plan.xml(startedEndpoint: nil).replacing(" index='1'", with: ""))
        #expect(again.disks?[0].scratchKind == .network)
        #expect(again.disks?[0].scratchPath == uri)
    }

    @Test("an image of a Ceph cluster is opened by an adapter")
    func rbd() throws {
        let plan = try Self.plan(
            """
            <scratch protocol='rbd' name='pool/image'>
              <host name='mon' port='6789'/><config file='/etc/ceph.conf'/>
              <auth username='u'><secret xmlns='urn:nbdpull:disk:1' file='/etc/key'/></auth>
            </scratch>
            """)
        let found = try #require(plan.disks[0].scratch)
        #expect(found.path == "rbd:pool/image")
        var expected = try #require(RBDImage(name: "pool/image"))
        expected.hosts = [StorageHost(name: "mon", port: 6789)]
        expected.configuration = "/etc/ceph.conf"
        expected.user = "u"
        expected.keyFile = "/etc/key"
        #expect(found.image == ImageConfiguration(layers: [ImageLayer(.raw, .rbd(expected))]))
        let again = try BackupRequest.parse(
            plan.xml(startedEndpoint: nil).replacing(" index='1'", with: ""))
        #expect(again.disks?[0].scratchImage == found.image)
    }

    @Test("scratch on another server goes with bitmaps from several bases")
    func severalBases() throws {
        let bitmap = "<bitmap xmlns='urn:nbdpull:backup:1' checkpoint='monday' name='m'/>"
        let scratch = "<scratch protocol='nbd' name='s'><host name='store'/></scratch>"
        let driver = "<driver type='qcow2'/>"
        for inner in [scratch + bitmap, bitmap + scratch, driver + scratch + bitmap + bitmap] {
            let request = try Self.request(inner)
            let count = inner == driver + scratch + bitmap + bitmap ? 2 : 1
            #expect(request.disks?[0].bitmaps.count == count)
        }
        let request = try Self.request(scratch + bitmap)
        let plan = try BackupPlan.make(
            request,
            domain: try Self.domain("<source protocol='nbd' name='d'><host name='h'/></source>"),
            jobID: "j", reuseExternal: false, scratchSuffix: "1", firstIndex: 1,
            bases: IncrementalBases(known: ["monday"], usable: ["vda": ["monday"]]))
        let again = try BackupRequest.parse(
            plan.xml(startedEndpoint: nil).replacing(" index='1'", with: ""))
        #expect(again.disks?[0].scratchPath == "nbd://store/s")
        #expect(again.disks?[0].bitmaps.map(\.checkpoint) == ["monday"])
        #expect(again.disks?[0].bitmaps.map(\.name) == ["m"])
    }

    @Test(
        "what leads nowhere is refused",
        arguments: [
            ("<scratch protocol='nbd'/>", "it has 0 <host>"),
            ("<scratch protocol='nbd'><host name='a'/><host name='b'/></scratch>", "2 <host>"),
            ("<scratch protocol='nbd'><host transport='unix'/></scratch>", "socket='PATH'"),
            (
                "<scratch protocol='nbd'><host transport='rdma' name='a'/></scratch>",
                "transport 'rdma'"
            ),
            ("<scratch protocol='nbd' tls='yes'><host name='a'/></scratch>", "credentials"),
            (
                "<scratch protocol='nbd'><host name='a'/>"
                    + "<credentials xmlns='urn:nbdpull:disk:1' certs='/c'/></scratch>",
                "<scratch tls='yes'>"
            ),
            ("<scratch protocol='rbd' name='image'/>", "POOL/IMAGE"),
        ])
    func refused(scratch: String, words: String) {
        let error = refusal { () throws(ControlError) in try Self.request(scratch) }
        #expect(error?.code == "scratch-address-invalid")
        #expect(error?.libvirtCode == 67)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test("a disk's own source, and one scratch for two disks, are refused by name")
    func taken() {
        let own = "<scratch protocol='nbd' name='d'><host name='h' port='10809'/></scratch>"
        #expect(throws: ControlError.self) { try Self.plan(own) }
        let twice = "<scratch protocol='nbd' name='s'><host name='h'/></scratch>"
        #expect(throws: ControlError.self) {
            try Self.plan(twice, disks: "<disk name='vdb' type='network'>\(twice)</disk>")
        }
    }
}
