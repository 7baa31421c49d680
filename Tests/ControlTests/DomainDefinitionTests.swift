import Control
import ServerInterface
import Testing

@Suite struct DomainDefinitionTests {
    private static func domain(_ disks: String, name: String = "vm1") -> String {
        "<domain><name>\(name)</name><devices>\(disks)</devices></domain>"
    }

    private static func disk(
        _ source: String = "<source file='/img/a'/>", driver: String = "",
        attributes: String = "type='file'", target: String = "vda"
    ) -> String {
        domain("<disk \(attributes)>\(driver)\(source)<target dev='\(target)'/></disk>")
    }

    private static let full = """
        <?xml version="1.0"?>
        <!-- made by > hand -->
        <domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
          <title>a > b</title>
          <name>vm1</name>
          <uuid>C7A5FDBD-edaf-9455-926a-d65c16db1809</uuid>
          <metadata><x:name xmlns:x='urn:x'>other</x:name></metadata>
          <devices>
            <emulator>/usr/bin/qemu</emulator>
            <disk type='file' device='disk' snapshot='no'>
              <driver name='qemu' type='raw' cache='none' discard='ignore' io='native'/>
              <source file='/img/vda.raw' index='1'><seclabel model='dac'/></source>
              <backingStore/>
              <target dev='vda' bus='virtio'/>
              <address type='pci'/>
            </disk>
            <interface type='user'/>
            <disk type='block' device='lun'>
              <driver cache='directsync' discard='unmap'/>
              <source dev='/dev/vg/b'/><target dev='sda'/><readonly/>
            </disk>
            <disk type='file' device='cdrom'><target dev='hda'/></disk>
            <disk device='floppy'><target dev='fda'/></disk>
            <disk><driver cache='writethrough'/><source file='/n'/><target dev='nvme0n1'/></disk>
          </devices>
          <qemu:commandline><qemu:arg value='-x'/></qemu:commandline>
        </domain>
        """

    @Test func onlyNameUUIDAndDisksAreRead() throws {
        let domain = try DomainDefinition.parse(Self.full)
        #expect(domain.name == "vm1")
        #expect(domain.uuid == "c7a5fdbd-edaf-9455-926a-d65c16db1809")
        #expect(domain.xml == Self.full)
        #expect(
            domain.disks == [
                DomainDisk(
                    target: "vda", path: "/img/vda.raw", cacheMode: .none, discardMode: .ignore),
                DomainDisk(
                    target: "sda", kind: .block, path: "/dev/vg/b", readOnly: true,
                    cacheMode: .none, discardMode: .unmap, device: "lun"),
                DomainDisk(target: "hda", path: nil, readOnly: true, device: "cdrom"),
                DomainDisk(target: "fda", path: nil, device: "floppy"),
                DomainDisk(target: "nvme0n1", path: "/n"),
            ])
        #expect(domain.liveExportName(target: "vda") == "vm1/vda")
    }

    @Test(arguments: [
        "<domain><name>a</name></domain>",
        "<?xml version='1.0'?><!-- <domain> -->\n<domain type='a>b'\n><name>a</name></domain>",
        "<?x > ?><domain x=\"/>\"><!-- <uuid/> --><name>a</name></domain>",
        "<!--\u{301}--><domain>\n<!--\u{301}--\u{3e}<name>e\u{301}</name></domain>",
    ])
    func missingUUIDIsAdded(xml: String) throws {
        let domain = try DomainDefinition.parse(xml)
        #expect(domain.xml.contains("\n  <uuid>\(domain.uuid)</uuid>"))
        let again = try DomainDefinition.parse(domain.xml)
        #expect(again == domain)
        #expect(try DomainDefinition.parse(xml).uuid != domain.uuid)
    }

    @Test(arguments: [
        "<domain/>", "<domainbackup/>", "<domain xmlns='urn:x'><name>a</name></domain>",
        "<domain><name>a</name><name>b</name></domain>",
        "<domain><name>a</name><devices/><devices/></domain>",
        "<domain><name>a</name><uuid/><uuid/></domain>",
        domain("<disk><source file='/a'/></disk>"),
        domain("<disk><target/></disk>"),
        domain("<disk><source/><source/><target dev='vda'/></disk>"),
        domain("<disk><driver/><driver/><target dev='vda'/></disk>"),
    ])
    func refusedBySchema(xml: String) {
        let error = refusal { () throws(ControlError) in try DomainDefinition.parse(xml) }
        #expect(error?.libvirtCode == 92)
        #expect(error?.message.contains("domain.rng: ") == true)
    }

    @Test(arguments: [
        (disk(driver: "<driver type='qcow3'/>"), 27, "unknown driver type 'qcow3'"),
        (disk(attributes: "type='netwrok'"), 27, "unknown type 'netwrok'"),
        (disk(driver: "<driver cache='writeboth'/>"), 67, "cache 'writeboth' is unknown"),
        (disk("<source file='/a'/><transient/>"), 67, "<transient/> is not supported"),
        (disk("<source file='/a'/><shareable/>"), 67, "<shareable/> is not supported"),
        (disk("<source file='/a'/><mirror/>"), 67, "<mirror> is not supported"),
        (disk("<source file='/a' startupPolicy='maybe'/>"), 67, "startupPolicy 'maybe'"),
        (disk("<source file='a'/>"), 27, "'a' of disk 'vda' must be an absolute path"),
        (disk("<source file=''/>"), 27, "missing source information for device 'vda'"),
        (disk(""), 27, "missing source information for device 'vda'"),
        (disk("<source dev='/dev/x'/>"), 27, "missing source information"),
        (disk(attributes: "device='tape'"), 27, "unknown device 'tape'"),
        (disk(driver: "<driver discard='on'/>"), 27, "unknown discard 'on'"),
        (disk(target: "a/b"), 27, "disk target 'a/b'"),
        (disk(target: ""), 27, "disk target ''"),
        (
            domain(
                "<disk><source file='/a'/><target dev='vda'/></disk>"
                    + "<disk><source file='/b'/><target dev='vda'/></disk>"), 67,
            "disk 'vda': target is used by two disks"
        ),
        ("<domain><name>a</name><uuid>123</uuid></domain>", 27, "malformed uuid '123'"),
    ])
    func refusedByMeaning(xml: String, number: Int, words: String) {
        let error = refusal { () throws(ControlError) in try DomainDefinition.parse(xml) }
        #expect(error?.libvirtCode == number)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test(arguments: [
        ("<driver type='qed'/>", "type='file'", "<source file='/a'/>", "driver type is 'qed'"),
        ("", "type='network'", "<source protocol='rbd' name='p'/>", "'POOL/IMAGE'"),
        ("", "type='network'", "<source protocol='iscsi' name='t/1'/>", "one <host>"),
        ("", "type='network'", "<source protocol='gluster' name='v'/>", "'VOLUME/PATH'"),
        ("", "type='network'", "<source protocol='ssh' name='v'/>", "its protocol 'ssh'"),
        (
            "<driver type='qcow2'/>", "type='file'",
            "<source file='/a'/><backingStore type='file'><source file='/b'/></backingStore>",
            "<format type="
        ),
        (
            "<driver type='qcow2'/>", "type='file'",
            "<source file='/a'/><backingStore type='file'><format type='raw'/>"
                + "<source file='b'/></backingStore>", "absolute path"
        ),
        ("<driver type='luks'/>", "type='file'", "<source file='/a'/>", "encrypted"),
        (
            "", "type='network'",
            "<source protocol='nbd' tls='yes'><host name='h'/></source>", "<credentials"
        ),
        ("", "type='network'", "<source protocol='nbd' name='x'/>", "0 <host>"),
        (
            "", "type='network'",
            "<source protocol='nbd'><host transport='vsock' socket='/s'/></source>", "vsock"
        ),
        (
            "<driver type='qcow2'/>", "type='network'",
            "<source protocol='nbd'><host name='h'/></source>", "driver type is 'qcow2'"
        ),
        ("", "type='volume' device='cdrom'", "<source pool='p' volume='v'/>", "type is 'volume'"),
        ("", "type='file'", "<source file='/a'><encryption format='luks'/></source>", "passphrase"),
        ("", "type='file'", "<source file='/a'/><encryption format='qcow'/>", "encryption is"),
        ("", "type='file'", "<source file='/a'><slices><slice/></slices></source>", "slice"),
        ("", "type='file'", "<source file='/a' fdgroup='g'/>", "descriptor"),
        (
            "", "type='file'",
            "<source file='/a'/><backingStore type='file'><source file='/b'/></backingStore>",
            "backing store"
        ),
    ])
    func disksThatCannotBeServedAreKeptWithTheirReason(
        driver: String, attributes: String, source: String, words: String
    ) throws {
        let domain = try DomainDefinition.parse(
            Self.disk(source, driver: driver, attributes: attributes))
        let disk = try #require(domain.disks.first)
        #expect(disk.unserved?.reason.contains(words) == true, "\(disk)")
        #expect(!disk.isServable)
    }

    @Test(
        "an NBD source is an upstream, named by its URI",
        arguments: [
            ("name='a b'", "<host name='h' port='10810'/>", "nbd://h:10810/a%20b"),
            ("", "<host name='::1'/>", "nbd://[::1]/"),
            ("name='x'", "<host transport='unix' socket='/run/s'/>", "nbd+unix:///x?socket=/run/s"),
            (
                "tls='yes' name='x'",
                "<host name='h'/><credentials xmlns='urn:nbdpull:disk:1' certs='/d'/>",
                "nbds://h/x?tls-certificates=/d"
            ),
            (
                "tls='yes'",
                "<host name='h'/><credentials xmlns='urn:nbdpull:disk:1' psk='/k' user='me'/>",
                "nbds://me@h/?tls-psk-file=/k"
            ),
        ])
    func upstreams(attributes: String, inside: String, uri: String) throws {
        let source = "<source protocol='nbd' \(attributes)>\(inside)<reconnect delay='7'/></source>"
        let domain = try DomainDefinition.parse(Self.disk(source, attributes: "type='network'"))
        let disk = try #require(domain.disks.first)
        #expect(disk.path == uri && disk.kind == .network && disk.isServable)
        #expect(disk.patienceSeconds == 7)
    }

    @Test("a chain is read as it is named, and storage by its protocol")
    func images() throws {
        let chain = """
            <source file='/top'><dataStore type='file'><source file='/data'/></dataStore></source>
            <backingStore type='file'><format type='qcow2'/><source file='/mid'/>
              <backingStore type='block'><format type='raw'/><source dev='/dev/base'/>
                <backingStore/></backingStore></backingStore>
            """
        let disk = try #require(
            try DomainDefinition.parse(Self.disk(chain, driver: "<driver type='qcow2'/>")).disks
                .first)
        let layers = try #require(disk.image?.layers)
        #expect(layers.map(\.format) == [.qcow2, .qcow2, .raw])
        #expect(
            layers.map(\.place)
                == [.file(path: "/top"), .file(path: "/mid"), .block(path: "/dev/base")])
        #expect(layers[0].dataPlace == .file(path: "/data"))
        #expect(disk.path == "/top" && disk.kind == .file && disk.isServable)

        let rbd = """
            <source protocol='rbd' name='p/n/i'><host name='m1'/><host name='m2' port='3300'/>
              <snapshot name='s'/><config file='/c'/><auth username='u'>
                <secret xmlns='urn:nbdpull:disk:1' file='/k'/></auth></source>
            """
        let network = try #require(
            try DomainDefinition.parse(Self.disk(rbd, attributes: "type='network'")).disks.first)
        guard case .rbd(let image) = network.image?.layers.first?.place else {
            Issue.record("\(network)")
            return
        }
        #expect(image.pool == "p" && image.namespace == "n" && image.image == "i")
        #expect(image.hosts.map(\.port) == [6789, 3300] && image.snapshot == "s")
        #expect(image.configuration == "/c" && image.user == "u" && image.keyFile == "/k")
        #expect(network.path == "rbd:p/n/i@s" && network.kind == .network && network.isServable)
    }

    @Test("credentials may stand beside the source, and are those of that source only")
    func credentialsBeside() throws {
        let secret = "<secret xmlns='urn:nbdpull:disk:1' file='/k'/>"
        let rbd = """
            <auth username='u'><secret type='ceph' usage='s'/>\(secret)</auth>
            <source protocol='rbd' name='p/i'/>
            """
        let network = try #require(
            try DomainDefinition.parse(Self.disk(rbd, attributes: "type='network'")).disks.first)
        guard case .rbd(let image) = network.image?.layers.first?.place else {
            Issue.record("\(network)")
            return
        }
        #expect(image.user == "u" && image.keyFile == "/k")

        let encrypted = """
            <source file='/top'/><encryption format='luks'>\(secret)</encryption>
            <backingStore type='file'><format type='qcow2'/><source file='/base'/><backingStore/>
            </backingStore>
            """
        let disk = try #require(
            try DomainDefinition.parse(Self.disk(encrypted, driver: "<driver type='qcow2'/>")).disks
                .first)
        #expect(disk.image?.layers.map(\.passphraseFile) == ["/k", nil])
    }

    @Test("what changes nothing about the bytes is kept")
    func harmlessAttributes() throws {
        let xml = Self.disk(
            """
            <source file='/a' index='3' startupPolicy='optional'/><backingStore/>
            <iotune><total_iops_sec>1</total_iops_sec></iotune><serial>x</serial>
            <blockio logical_block_size='4096'/><geometry cyls='1' heads='1' secs='1'/>
            """,
            driver: """
                <driver name='qemu' type='raw' cache='unsafe' io='io_uring' detect_zeroes='on' \
                copy_on_read='on' error_policy='stop' iothread='1' queues='4'/>
                """, attributes: "type='file' snapshot='external' model='virtio'")
        let domain = try DomainDefinition.parse(xml)
        #expect(domain.disks.first?.isServable == true)
        #expect(domain.disks.first?.isOptional == true)
        #expect(domain.xml.contains("<iotune>"))
    }

    @Test("a read-only disk may be shared")
    func sharedReadOnly() throws {
        let xml = Self.disk("<source file='/a'/><shareable/><readonly/>")
        #expect(try DomainDefinition.parse(xml).disks.first?.readOnly == true)
    }

    @Test("what was accepted once is served as it was, with a warning")
    func keptDefinitions() throws {
        let xml = Self.disk("<source file='/a'/><transient/>", driver: "<driver cache='x'/>")
        let (domain, warnings) = try DomainDefinition.kept(xml)
        #expect(domain.disks == [DomainDisk(target: "vda", path: "/a")])
        #expect(warnings.count == 2)
    }

    @Test(arguments: [
        "", " ", "a/b", "a\nb", "a\u{7f}", "a\u{85}", String(repeating: "n", count: 256),
        String(repeating: "é", count: 128),
    ])
    func namesThatCannotNameFilesAreRefused(name: String) {
        let error = refusal { () throws(ControlError) in
            try DomainDefinition.parse(Self.domain("", name: name))
        }
        #expect(error?.libvirtCode == 27)
        #expect(error?.message.hasPrefix("XML error: domain name '") == true)
    }

    @Test(arguments: [
        "a", ".", "..", "...", "vm 1", "é", "a&amp;b", "%2F", "\u{1F600}",
        String(repeating: "n", count: 255), String(repeating: "ж", count: 45),
    ])
    func otherNamesAreAccepted(name: String) throws {
        _ = try DomainDefinition.parse(Self.domain("", name: name))
    }

    @Test func definitionFromTheCommandLineDescribesItself() throws {
        let disks = [
            DomainDisk(target: "vda", path: "/img/a & 'b'", cacheMode: .none),
            DomainDisk(target: "vdb", kind: .block, path: "/dev/b", readOnly: true),
            DomainDisk(target: "hda", path: nil, readOnly: true, device: "cdrom"),
        ]
        let domain = DomainDefinition(name: "a<b", disks: disks)
        try domain.validate()
        #expect(try DomainDefinition.parse(domain.xml) == domain)
    }

    @Test func tooManyDisksAreRefused() {
        let disks = (0...DomainDefinition.disksMax).map {
            DomainDisk(target: "vd\($0)", path: "/img/\($0)")
        }
        let error = refusal { () throws(ControlError) in
            try DomainDefinition(name: "vm1", disks: disks).validate()
        }
        #expect(error?.libvirtCode == 67)
    }

    @Test func uuidsHaveOneForm() {
        let form = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
        #expect(UUIDText.normalized("C7A5FDBDEDAF9455926AD65C16DB1809") == form)
        #expect(UUIDText.normalized("\n \(form) ") == form)
        for bad in ["", "-\(form)", "\(form)-", "\(form)0", "g7a5fdbd-edaf-9455-926a-d65c16db1809"]
        {
            #expect(UUIDText.normalized(bad) == nil)
        }
        let made = UUIDText.random()
        #expect(UUIDText.normalized(made) == made)
        #expect(made.dropFirst(14).first == "4")
        #expect("89ab".contains(made.dropFirst(19).first ?? "-"))
    }

    @Test func targetNamesAreThoseOfTheSchema() throws {
        for name in ["vda", "sdaa", "hda1", "fd0", "xvda", "ubda", "ioemu:hda", "nvme0n1"] {
            #expect(TargetName.isValid(name))
            _ = try BackupRequest.parse(pullXML("<disks><disk name='\(name)'/></disks>"))
        }
        for name in ["", "vd", "xda", "vda ", "vd-a", "vdé", "nvme0", "nvmen1", "ioemu:nvme0n1"] {
            #expect(!TargetName.isValid(name))
            let error = refusal { () throws(ControlError) in
                try BackupRequest.parse(pullXML("<disks><disk name='\(name)'/></disks>"))
            }
            #expect(error?.libvirtCode == 92)
        }
    }
}
