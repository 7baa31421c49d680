import Foundation
import ServerInterface
import Testing

@testable import Control

@Suite("Stand-ins: what backup tools are shown in place of a disk")
struct StandInTests {
    private func field(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
        bytes[offset..<offset + count].reduce(0) { $0 << 8 | UInt64($1) }
    }

    @Test("a stand-in has the disk's size, may not be written, and names the live export")
    func header() throws {
        let uri = "nbd+unix:///vm1/vda?socket=/run/nbdpull/live.sock"
        let image = try #require(StandInImage(sizeBytes: 1 << 30, backing: uri))
        let pieces = image.pieces
        let header = try #require(pieces.first?.bytes)
        #expect(Array(header[..<4]) == [0x51, 0x46, 0x49, 0xFB])
        #expect(field(header, 4, 4) == 3)
        #expect(field(header, 24, 8) == 1 << 30)
        #expect(field(header, 32, 4) == 0)
        #expect(field(header, 36, 4) == 2)
        #expect(field(header, 72, 8) == 2)
        let name = Int(field(header, 8, 8))
        #expect(String(decoding: header[name...], as: UTF8.self) == uri)
        #expect(field(header, 16, 4) == UInt64(uri.utf8.count))
        #expect(image.fileBytes == 4 * 65536)
        #expect(pieces.map(\.offset) == [0, 65536, 131_072])
    }

    @Test(
        "every size that a disk can have is stood in for, or is left out",
        arguments: [
            (UInt64(0), 16), (1, 16), (513, 16), (1 << 40, 16), (1 << 51, 16), ((1 << 51) + 1, 17),
            (1 << 61, 21), ((1 << 61) + 1, nil),
        ] as [(UInt64, UInt64?)])
    func sizes(bytes: UInt64, bits: UInt64?) {
        let image = StandInImage(sizeBytes: bytes, backing: "nbd+unix:///a?socket=/s")
        #expect(image?.clusterBits == bits)
        #expect(image.map { $0.sizeBytes >= bytes && $0.sizeBytes < bytes + 512 } ?? true)
        #expect(image.map { $0.fileBytes <= 64 << 20 } ?? true)
    }

    @Test("a name that is too long for qcow2 gets no stand-in, rather than one that reads as zeros")
    func longName() {
        let long = String(repeating: "a", count: StandInImage.backingBytesMax + 1)
        #expect(StandInImage(sizeBytes: 512, backing: long) == nil)
    }

    private static let machine = """
        <domain type='kvm' id='3' xmlns:q='http://example.org/q'>
          <name>vm1</name>
          <uuid>11111111-2222-4333-8444-555555555555</uuid>
          <devices>
            <emulator>/usr/bin/qemu</emulator>
            <disk type='block' device='lun' rawio='yes' snapshot='no'>
              <!-- <source dev='/dev/none'/> -->
              <driver name='qemu' type='raw' cache='none' io='native'/>
              <source dev='/dev/vg/a' index='1'>
                <reconnect delay='10'/>
              </source>
              <backingStore/>
              <target dev='vda' bus='virtio'/>
              <serial>S1</serial>
            </disk>
            <disk type='file' device='disk'><source file='/b.raw'/><target dev='vdb'/></disk>
            <disk type='file' device='cdrom'>
              <target dev='sda' bus='sata'/>
              <readonly/>
            </disk>
            <disk type='network' device='disk'>
              <driver name='qemu' type='raw'/>
              <source protocol='nbd' name='vm1/vdc'>
                <host transport='unix' socket='/run/live.sock'/>
              </source>
              <target dev='vdc'/>
            </disk>
            <graphics type='vnc' passwd='secret &amp; more'><listen type='none'/></graphics>
          </devices>
          <metadata><q:disk><source/></q:disk></metadata>
        </domain>
        """

    private func disks(_ xml: String) throws -> [String: XMLElement] {
        let root = try XMLDocument.parse(xml, schema: .domain)
        let all = root.child("devices")?.all("disk") ?? []
        return Dictionary(
            all.map { ($0.child("target")?.attribute("dev") ?? "", $0) },
            uniquingKeysWith: { first, _ in first })
    }

    @Test("files and devices become qcow2 files with their bus, serial and caching; others stay")
    func described() throws {
        let text = try BackupToolXML.text(
            of: Self.machine,
            BackupToolXML.Options(standIns: ["vda": "/run/i'm/vda.qcow2", "vdb": "/run/vdb.qcow2"]))
        let found = try disks(text)
        let vda = try #require(found["vda"])
        #expect(vda.attribute("type") == "file")
        #expect(vda.attribute("device") == "disk")
        #expect(vda.attribute("rawio") == nil)
        #expect(vda.attribute("snapshot") == "no")
        #expect(vda.child("driver")?.attribute("type") == "qcow2")
        #expect(vda.child("driver")?.attribute("io") == "native")
        #expect(vda.all("source").map { $0.attribute("file") } == ["/run/i'm/vda.qcow2"])
        #expect(vda.child("source")?.children.isEmpty == true)
        #expect(vda.child("backingStore") == nil)
        #expect(vda.child("serial")?.text == "S1")
        #expect(found["vdb"]?.child("driver")?.attribute("type") == "qcow2")
        #expect(found["vdb"]?.child("source")?.attribute("file") == "/run/vdb.qcow2")
        #expect(found["vdc"]?.attribute("type") == "network")
        #expect(text.contains("<metadata><q:disk><source/></q:disk></metadata>"))
    }

    @Test("what tools look for without asking is there: a driver's format, a drive's source")
    func completed() throws {
        let text = try BackupToolXML.text(
            of: Self.machine, BackupToolXML.Options(standIns: [:]))
        for (target, disk) in try disks(text) {
            #expect(disk.child("driver")?.attribute("type") == "raw", "\(target)")
            #expect(disk.child("source") != nil, "\(target)")
        }
    }

    @Test("of another's description only disks that are reached through our exports are ours")
    func reached() throws {
        let text = try BackupToolXML.text(
            of: Self.machine,
            BackupToolXML.Options(
                standIns: ["vdb": "/run/vdb.qcow2", "vdc": "/run/vdc.qcow2"],
                liveExports: ["vdb": "vm1/vdb", "vdc": "vm1/vdc"],
                places: LivePlaces([.unix(path: "/run/live.sock", mode: 0o600)])))
        let found = try disks(text)
        #expect(found["vdb"]?.child("source")?.attribute("file") == "/b.raw")
        #expect(found["vdc"]?.attribute("type") == "file")
        #expect(found["vdc"]?.child("source")?.attribute("file") == "/run/vdc.qcow2")
        #expect(found["vdc"]?.child("source")?.child("host") == nil)
    }

    @Test(
        "P3: an export of the same name is ours only where this server listens",
        arguments: [
            ("<host transport='unix' socket='/run/nbdpull/live.sock'/>", true),
            ("<host transport='unix' socket='/run//nbdpull/./live.sock'/>", true),
            ("<host transport='unix' socket='/var/run/nbdpull/live.sock'/>", true),
            ("<host transport='unix' socket='/run/other/live.sock'/>", false),
            ("<host transport='unix'/>", false),
            ("", false),
            ("<host name='localhost' port='10900'/>", true),
            ("<host name='127.0.0.1' port='10900'/>", true),
            ("<host name='127.0.0.1' port='10809'/>", false),
            ("<host name='127.0.0.1'/>", false),
            ("<host name='localhost' port='x'/>", false),
            ("<host name='192.0.2.7' port='10900'/>", false),
            // Everywhere on port 10901, by any name or address of this machine.
            ("<host name='192.0.2.7' port='10901'/>", true),
            ("<host name='[2001:DB8::7]' port='10901'/>", true),
            ("<host name='HOST' port='10901'/>", true),
            ("<host name='host.example' port='10901'/>", true),
            ("<host name='192.0.2.8' port='10901'/>", false),
            ("<host name='other.example' port='10901'/>", false),
            ("<host name='::1' port='10901'/>", true),
            ("<host transport='rdma' name='localhost' port='10900'/>", false),
            ("<host name='localhost' port='10900'/><host name='x' port='10900'/>", false),
        ])
    func places(host: String, isOurs: Bool) throws {
        let places = LivePlaces(
            [
                .unix(path: "/run/nbdpull/live.sock", mode: 0o600),
                .tcp(host: "127.0.0.1", port: 10900), .tcp(host: "0.0.0.0", port: 10901),
            ], hostName: "host.example", interfaces: { ["192.0.2.7", "2001:db8::7"] })
        let xml = """
            <domain><name>m</name><devices><disk type='network' device='disk'>
            <source protocol='nbd' name='vm1/vda'>\(host)</source><target dev='vda'/></disk>
            </devices></domain>
            """
        let foreign = try BackupToolXML.foreignDisks(
            in: xml, liveExports: ["vda": "vm1/vda"], places: places)
        #expect(foreign == (isOurs ? [] : ["vda"]))
    }

    @Test("passwords are shown to nobody who does not ask for them")
    func secrets() throws {
        let hidden = try BackupToolXML.text(
            of: Self.machine, BackupToolXML.Options(standIns: [:]))
        #expect(!hidden.contains("secret"))
        #expect(hidden.contains("<graphics type='vnc'><listen type='none'/></graphics>"))
        let shown = try BackupToolXML.text(
            of: Self.machine, BackupToolXML.Options(standIns: [:], showsSecrets: true))
        #expect(shown.contains("passwd='secret &amp; more'"))
        #expect(try !BackupToolXML.withoutSecrets(Self.machine).contains("secret"))
    }

    @Test("a manager writes a stand-in for each disk that it shows; it goes with the domain")
    func written() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let text = try await manager.backupToolXML(of: "vm1")
        let found = try disks(text)
        let path = try #require(found["vda"]?.child("source")?.attribute("file"))
        #expect(path.hasPrefix(fixture.runDirectory + "/stand-ins/"))
        let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        #expect(field(Array(bytes.prefix(32)), 24, 8) == 1 << 20)
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions]
        #expect((mode as? NSNumber)?.intValue == 0o444)
        #expect(found["sda"]?.child("source")?.attribute("file") == nil)
        let own = try await manager.domainXML("vm1")
        #expect(!own.contains("qcow2"))
        for name in ["vda", path, "\(fixture.root)/vm1-a.raw"] {
            #expect(try await manager.diskTarget(named: name, of: "vm1") == "vda")
        }
        try await manager.undefine("vm1")
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("a disk that grew gets a stand-in of its new size")
    func grown() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        _ = try await manager.backupToolXML(of: "vm1")
        _ = try await manager.resizeDisk("vda", of: "vm1", sizeBytes: 8 << 20)
        let text = try await manager.backupToolXML(of: "vm1")
        let path = try #require(try disks(text)["vda"]?.child("source")?.attribute("file"))
        let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        #expect(field(Array(bytes.prefix(32)), 24, 8) == 8 << 20)
    }

    @Test("a stand-in that is defined as a disk is refused: no machine is to run on it")
    func refused() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let shown = try await manager.backupToolXML(of: "vm1")
        let error = await #expect(throws: ControlError.self) {
            try await manager.define(xml: shown)
        }
        #expect(error?.code == "stand-in-as-disk")
        #expect(error?.message.contains("only stands in for a disk") == true)
    }
}
