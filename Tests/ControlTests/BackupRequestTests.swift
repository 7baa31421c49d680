import Control
import ServerInterface
import Testing

@Suite struct BackupRequestTests {
    private static func disks(_ inner: String) -> String { pullXML("<disks>\(inner)</disks>") }

    private static func network(_ scratch: String) -> String {
        disks("<disk name='vda' type='network'>\(scratch)</disk>")
    }

    private static func served(_ server: String) -> String { pullXML("", server: server) }

    @Test(arguments: [
        pullXML(""),
        pullXML("<incremental/>"),
        pullXML("<incremental>any thing /ä</incremental>"),
        "<domainbackup mode='pull'><disks><disk name='vda'/></disks><server transport='unix' "
            + "socket='/s'/><incremental>c</incremental></domainbackup>",
        served("<server name='localhost' port='10809'/>"),
        served("<server name='localhost'/>"),
        served("<server transport='tcp' name='::1' port='0'/>"),
        served("<server transport='tcp' name='192.0.2.1' tls='no' port='1'/>"),
        served("<server transport='unix' socket='/s' tls='yes'/>"),
        disks("<disk name='vda'/>"),
        disks("<disk name='vda' backup='yes' type='file'/>"),
        disks("<disk name='vda'><scratch file='/s'/></disk>"),
        disks("<disk name='vda' type='file'/>"),
        disks("<disk name='vda' exportname='' exportbitmap='b c'/>"),
        disks("<disk name='vda' backup='no' exportname='x' backupmode='incremental'/>"),
        disks("<disk name='vda' backupmode='full'/>"),
        disks("<disk name='vda' backupmode='incremental' incremental='c'/>"),
        disks("<disk name='vda' incremental=''/>"),
        disks("<disk name='vda'/><disk name='vda'/>"),
        disks("<disk name='vda' type='block'><scratch dev='/dev/s'/></disk>"),
        disks("<disk name='vda' backup='yes' type='block'><scratch dev='/dev/s'/></disk>"),
        disks("<disk name='vda'><scratch file='/s'/><driver type='qcow2'/></disk>"),
        disks("<disk name='nvme0n1'/>"),
        disks("<disk name='ioemu:hda_1'/>"),
        disks(
            "<disk name='vda'><scratch file='/s'><seclabel model='dac' relabel='no'/>"
                + "<seclabel model='selinux' relabel='yes'><label>x</label></seclabel>"
                + "</scratch></disk>"),
    ])
    func accepted(xml: String) throws {
        _ = try BackupRequest.parse(xml)
    }

    @Test(arguments: [
        ("<domain/>", "expected <domainbackup>"),
        ("<domainbackup xmlns='urn:x' mode='pull'/>", "expected <domainbackup>"),
        ("<domainbackup mode='move'/>", "unknown backup mode 'move'"),
        ("<domainbackup mode=' pull '/>", "unknown backup mode"),
        ("<domainbackup mode='pull' id='1'><server name='a'/></domainbackup>", "'id'"),
        ("<domainbackup mode='pull'/>", "exactly one <server>, found 0"),
        ("<domainbackup><server name='a'/></domainbackup>", "requires pull mode"),
        (pullXML("<server name='a'/>"), "exactly one <server>, found 2"),
        (pullXML("<incremental/><incremental/>"), "incremental"),
        (pullXML("<surprise/>"), "<surprise>"),
        (pullXML("<privateData/>"), "<privateData>"),
        (pullXML("<disks/>"), "at least one <disk"),
        (served("<server transport='unix' socket='b.sock'/>"), "'b.sock' must be absolute"),
        (served("<server transport='unix'/>"), "socket="),
        (served("<server/>"), "name='HOST'"),
        (served("<server name='a' port='x'/>"), "'x' that is not a number"),
        (served("<server transport='ipc' name='a'/>"), "unknown transport 'ipc'"),
        (served("<server transport='fd'/>"), "fdgroup"),
        (served("<server transport='unix' socket='/s' tls='maybe'/>"), "domainbackup"),
        (disks("<disk/>"), "missing name"),
        (disks("<disk name='/img/vda.raw'/>"), "must be a target"),
        (disks("<disk name='vda' backup='yes'/>"), "needs type="),
        (disks("<disk name='vda' backup='maybe' type='file'/>"), "domainbackup"),
        (disks("<disk name='vda' type='nvme'/>"), "unsupported disk backup type 'nvme'"),
        (disks("<disk name='vda' type='network'/>"), "<scratch protocol='nbd'>"),
        (network("<scratch name='x'/>"), "needs protocol="),
        (network("<scratch protocol='iscsi'><host name='a'/></scratch>"), "'iscsi' is not allowed"),
        (network("<scratch protocol='nbd' file='/s'/>"), "'file' is not allowed"),
        (network("<scratch protocol='nbd'><reconnect delay='1'/></scratch>"), "<reconnect>"),
        (network("<scratch protocol='rbd' name='p'><snapshot name='s'/></scratch>"), "<snapshot>"),
        (network("<scratch protocol='nbd'><host nane='a'/></scratch>"), "'nane' is not allowed"),
        (network("<scratch protocol='nbd' tls='maybe'/>"), "tls='maybe'"),
        (
            "<domainbackup><disks><disk name='vda' type='network'/></disks></domainbackup>",
            "unsupported disk backup type 'network'"
        ),
        (disks("<disk name='vda' backupmode='full' incremental='c'/>"), "excludes incremental="),
        (disks("<disk name='vda' index='3'/>"), "'index' is not allowed"),
        (disks("<disk name='vda' state='running'/>"), "'state' is not allowed"),
        (disks("<disk name='vda'><driver type='qcow2'/></disk>"), "is missing"),
        (disks("<disk name='vda' type='block'/>"), "<scratch dev='/path'/> is missing"),
        (disks("<disk name='vda' type='block'><scratch file='/s'/></disk>"), "in dev="),
        (disks("<disk name='vda'><scratch file='s'/></disk>"), "absolute path in file="),
        (disks("<disk name='vda'><target file='/t'/></disk>"), "domainbackup"),
        (
            disks("<disk name='vda'><driver type='raw'/><scratch file='/s'/></disk>"),
            "pull mode backup for disk 'vda' requires qcow2 driver"
        ),
        (
            disks(
                "<disk name='vda'><scratch file='/s'><encryption format='aes'/></scratch></disk>"),
            "domainbackup"
        ),
        ("<domainbackup><disks><disk name='vda' exportname='x'/></disks></domainbackup>", "backup"),
    ])
    func refusedBySchema(xml: String, words: String) {
        let error = refusal { () throws(ControlError) in try BackupRequest.parse(xml) }
        #expect(error?.libvirtCode == 92)
        #expect(error?.code == "xml-invalid")
        #expect(error?.httpStatus == 400)
        let start = "XML document failed to validate against schema: domainbackup.rng: "
        #expect(error?.message.hasPrefix(start) == true)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test(arguments: [
        (
            "<domainbackup><disks><disk name='vda'><driver type='vmdk'/></disk></disks>"
                + "</domainbackup>",
            67, "target-format-unsupported", "target format 'vmdk' of disk 'vda'"
        ),
        (
            "<domainbackup><disks><disk name='vda'><target file='/t'><encryption format='luks'>"
                + "<secret type='passphrase' uuid='u'/></encryption></target></disk></disks>"
                + "</domainbackup>",
            67, "target-encryption-unsupported", "encrypted target of disk 'vda'"
        ),
        (
            served("<server transport='rdma' name='a' port='1'/>"), 67, "transport-unsupported",
            "transport rdma is not supported for <server>"
        ),
        (
            served("<server transport='fd' fdgroup='g'/>"), 84, "transport-unsupported",
            "transport='fd' is not supported yet"
        ),
        (
            served("<server name='a' port='70000'/>"), 27, "port-invalid",
            "XML error: port '70000' of <server>"
        ),
        (
            served("<server transport='unix' socket='/\(String(repeating: "s", count: 107))'/>"),
            27, "socket-path-too-long", "longer than 107 bytes"
        ),
        (
            disks(
                "<disk name='vda'><scratch file='/s'><encryption format='luks'>"
                    + "<secret type='passphrase' usage='u'/></encryption></scratch></disk>"),
            67, "scratch-encryption-unsupported", "encrypted scratch of disk 'vda'"
        ),
    ])
    func refusedByMeaning(xml: String, number: Int, code: String, words: String) {
        let error = refusal { () throws(ControlError) in try BackupRequest.parse(xml) }
        #expect(error?.libvirtCode == number)
        #expect(error?.code == code)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test func treeIsTyped() throws {
        let request = try BackupRequest.parse(
            pullXML(
                """
                <incremental>c1</incremental><disks>
                <disk name='vda' backup='yes' type='block' backupmode='incremental'
                  incremental='c0' exportname='e' exportbitmap='b'>
                  <scratch dev='/dev/s'/></disk>
                <disk name='vdb' backup='no' exportname='x'/></disks>
                """, server: "<server name='::1' tls='no' port='0'/>"))
        #expect(request.endpoint == .tcp(host: "::1", port: nil))
        #expect(request.tls == false)
        #expect(request.incremental == "c1")
        #expect(
            request.disks == [
                BackupRequest.Disk(
                    target: "vda", backupMode: .incremental, incremental: "c0", exportName: "e",
                    exportBitmap: "b", scratchKind: .block, scratchPath: "/dev/s"),
                BackupRequest.Disk(target: "vdb", participates: false),
            ])
        let bare = try BackupRequest.parse(pullXML("<incremental/>"))
        #expect(bare.endpoint == .unix(path: "/run/b.sock", mode: 0o600))
        #expect(bare.tls == nil)
        #expect(bare.incremental == nil)
        #expect(bare.disks == nil)
    }

    @Test func documentAsVirtnbdbackupSendsIt() throws {
        let request = try BackupRequest.parse(
            """
            <domainbackup mode="pull"><server transport="unix" socket="/var/tmp/virtnbdbackup.7"/>
            <disks><disk name="vda"><scratch file="/var/tmp/backup.7.vda"/></disk></disks>
            <incremental>virtnbdbackup.0</incremental></domainbackup>
            """)
        #expect(request.incremental == "virtnbdbackup.0")
        #expect(request.disks?.first?.scratchPath == "/var/tmp/backup.7.vda")
    }
}
