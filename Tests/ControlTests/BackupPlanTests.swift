import Control
import ServerInterface
import Testing

@Suite struct BackupPlanTests {
    @Test func dumpOfRunningIncrementalJob() throws {
        let domain = DomainDefinition(
            name: "vm1",
            disks: [
                DomainDisk(target: "vda", path: "/img/vda.raw"),
                DomainDisk(target: "vdb", path: "/img/vdb.raw"),
                DomainDisk(target: "vdc", path: "/img/vdc.raw"),
                DomainDisk(target: "hda", path: nil, device: "cdrom"),
            ])
        let planned = try plan(
            pullXML(
                """
                <incremental>c1</incremental><disks>
                <disk name='vda'><scratch file='/img/vda.scratch'/></disk>
                <disk name='vdb' backupmode='full' exportname='bee'>
                  <scratch file='/img/vdb.scratch'/></disk></disks>
                """), domain: domain, known: ["c1"])
        #expect(
            planned.xml(startedEndpoint: nil) == """
                <domainbackup mode='pull'>
                  <incremental>c1</incremental>
                  <server transport='unix' socket='/run/b.sock'/>
                  <disks>
                    <disk name='vda' backup='yes' type='file' backupmode='incremental' \
                incremental='c1' exportname='vda' exportbitmap='backup-vda' index='21'>
                      <driver type='qcow2'/>
                      <scratch file='/img/vda.scratch'/>
                    </disk>
                    <disk name='vdb' backup='yes' type='file' backupmode='full' \
                exportname='bee' index='22'>
                      <driver type='qcow2'/>
                      <scratch file='/img/vdb.scratch'/>
                    </disk>
                    <disk name='vdc' backup='no'/>
                    <disk name='hda' backup='no'/>
                  </disks>
                </domainbackup>

                """)
        #expect(planned.disks.map(\.offeredBitmap) == ["backup-vda", nil, nil, nil])
    }

    @Test func dumpWithOneDiskLeftOut() throws {
        let domain = DomainDefinition(
            name: "vm1",
            disks: [
                DomainDisk(target: "vda", path: "/img/vda"),
                DomainDisk(target: "vdb", path: "/img/vdb"),
            ])
        let xml = """
            <domainbackup mode='pull'><server name='127.0.0.1' tls='no'/><disks>
            <disk name='vdb' backup='no'/><disk name='vda' exportbitmap='b&apos;' type='block'>
            <scratch dev='/dev/s'/></disk></disks></domainbackup>
            """
        let planned = try plan(xml, domain: domain)
        #expect(
            planned.xml(startedEndpoint: .tcp(host: "127.0.0.1", port: 10819)) == """
                <domainbackup mode='pull'>
                  <server transport='tcp' tls='no' name='127.0.0.1' port='10819'/>
                  <disks>
                    <disk name='vdb' backup='no'/>
                    <disk name='vda' backup='yes' type='block' backupmode='full' \
                exportname='vda' exportbitmap='b&apos;' index='21'>
                      <driver type='qcow2'/>
                      <scratch dev='/dev/s'/>
                    </disk>
                  </disks>
                </domainbackup>

                """)
        #expect(planned.xml(startedEndpoint: nil).contains("name='127.0.0.1'/>"))
        #expect(planned.disks.allSatisfy { $0.offeredBitmap == nil })
    }

    @Test func withoutListEveryWritableDiskWithMediaTakesPart() throws {
        let domain = DomainDefinition(
            name: "vm1",
            disks: [
                DomainDisk(target: "hda", path: nil, device: "cdrom"),
                DomainDisk(target: "vda", path: "/img/vda.raw"),
                DomainDisk(target: "vdb", path: "/img/vdb.raw", readOnly: true),
            ])
        let planned = try plan(pullXML(""), domain: domain)
        #expect(planned.disks.map(\.target) == ["hda", "vda", "vdb"])
        #expect(planned.disks.map(\.participates) == [false, true, false])
        let scratch = ScratchConfiguration(
            kind: .file, path: "/img/vda.raw.1795223818", reuseExternal: false)
        #expect(planned.disks[1].scratch == scratch)
        #expect(planned.disks[1].exportName == "vda")
        #expect(planned.disks[1].exportBitmap == nil)
        #expect(planned.disks[1].index == 21)
    }

    @Test func listedDisksComeFirstAndUnlistedOnesFollowInDomainOrder() throws {
        let planned = try plan(
            pullXML(
                "<disks><disk name='vdd'/><disk name='hda' backup='no'/><disk name='vdb'/></disks>"
            ), reuseExternal: true)
        #expect(planned.disks.map(\.target) == ["vdd", "hda", "vdb", "vda", "vdc"])
        #expect(planned.disks.map(\.participates) == [true, false, true, false, false])
        #expect(planned.disks.map(\.index) == [21, nil, 22, nil, nil])
        #expect(planned.disks[0].scratch?.reuseExternal == true)
    }

    @Test func modesAndBasesPerDisk() throws {
        let planned = try plan(
            pullXML(
                """
                <incremental>c1</incremental><disks>
                <disk name='vda' backupmode='full'/>
                <disk name='vdb' incremental='c0' exportbitmap='mine'/>
                <disk name='vdd' backupmode='incremental'/></disks>
                """), known: ["c0", "c1"])
        #expect(planned.disks.prefix(3).map(\.backupMode) == [.full, .incremental, .incremental])
        #expect(planned.disks.prefix(3).map(\.incremental) == [nil, "c0", "c1"])
        #expect(planned.disks.prefix(3).map(\.exportBitmap) == [nil, "mine", "backup-vdd"])
        #expect(planned.incremental == "c1")
    }

    @Test(arguments: [
        (
            "<disks><disk name='vdz'/></disks>", 67, 404, "disk-not-found",
            "unsupported configuration: no disk named 'vdz'"
        ),
        (
            "<disks><disk name='vda'/><disk name='vda' backup='no'/></disks>", 67, 400,
            "disk-listed-twice", "unsupported configuration: disk 'vda' specified twice"
        ),
        (
            "<disks><disk name='hda'/></disks>", 67, 422, "disk-without-media",
            "unsupported configuration: disk 'hda' has no media"
        ),
        (
            "<disks><disk name='vda' backup='no'/></disks>", 67, 422, "no-disks-selected",
            "unsupported configuration: no disks selected for backup"
        ),
        (
            "<disks><disk name='vda' backupmode='incremental'/></disks>", 67, 400,
            "incremental-without-base",
            "unsupported configuration: 'incremental' backup mode of disk 'vda' requires setting "
                + "'incremental' field for disk or backup"
        ),
        (
            "<incremental>c1</incremental>", 103, 404, "checkpoint-not-found",
            "Domain checkpoint not found: Checkpoint 'c1' for incremental backup of disk 'vda' "
                + "not found"
        ),
        (
            "<disks><disk name='vda' incremental=''/></disks>", 103, 404, "checkpoint-not-found",
            "Domain checkpoint not found: Checkpoint '' for incremental backup of disk 'vda' "
                + "not found"
        ),
        (
            "<disks><disk name='vdc'/></disks>", 67, 422, "scratch-missing",
            "unsupported configuration: refusing to generate file name for disk 'vdc'"
        ),
        (
            "<disks><disk name='vda' exportname='e'/><disk name='vdb' exportname='e'/></disks>", 1,
            409, "export-name-taken",
            "internal error: NBD server already has export named 'e'"
        ),
        (
            "<disks><disk name='vda' exportname='vdb'/><disk name='vdb'/></disks>", 1, 409,
            "export-name-taken", "internal error: NBD server already has export named 'vdb'"
        ),
        (
            "<disks><disk name='vda'><scratch file='/s/x'/></disk>"
                + "<disk name='vdb'><scratch file='/s//./x'/></disk></disks>", 8, 409,
            "scratch-exists", "invalid argument: store '/s//./x' for backup of 'vdb' exists"
        ),
        (
            "<disks><disk name='vda'><scratch file='/img/vdb.raw'/></disk></disks>", 8, 409,
            "scratch-is-source",
            "invalid argument: store '/img/vdb.raw' for backup of 'vda' is the source of disk 'vdb'"
        ),
    ])
    func refused(inner: String, number: Int, status: Int, code: String, message: String) {
        let error = refusal { () throws(ControlError) in try plan(pullXML(inner)) }
        let expected = ControlError(
            code: code, libvirtCode: number, message: message, httpStatus: status)
        #expect(error == expected)
    }

    @Test func missingPortIsChosenByTheServer() throws {
        let planned = try plan(
            pullXML("<disks><disk name='vda'/></disks>", server: "<server name='a'/>"))
        #expect(planned.endpoint == .tcp(host: "a", port: nil))
    }

    @Test func domainWithoutDisksIsRefused() {
        let empty = DomainDefinition(name: "vm1", disks: [])
        let error = refusal { () throws(ControlError) in try plan(pullXML(""), domain: empty) }
        #expect(
            error?.message
                == "unsupported configuration: domain must have at least one disk to perform backup"
        )
    }

    @Test func allDefaultsOverABlockDeviceNeedAScratch() {
        let error = refusal { () throws(ControlError) in try plan(pullXML("")) }
        #expect(error?.code == "scratch-missing")
    }

    @Test func longNamesAreRefused() {
        let long = String(repeating: "x", count: BackupPlan.exportNameBytesMax + 1)
        for attribute in ["exportname", "exportbitmap"] {
            let error = refusal { () throws(ControlError) in
                try plan(pullXML("<disks><disk name='vda' \(attribute)='\(long)'/></disks>"))
            }
            #expect(error?.code == "export-name-too-long")
        }
    }

    @Test func jobConfigurationNamesTheDisksThatTakePart() throws {
        let planned = try plan(
            pullXML("<disks><disk name='vdb' exportname='bee'/><disk name='vda'/></disks>"))
        let identifiers = [
            "vda": DiskID(number: 1), "vdb": DiskID(number: 2), "vdc": DiskID(number: 3),
        ]
        let job = try planned.jobConfiguration(diskIDs: identifiers, copyTimeoutMilliseconds: 500)
        #expect(job.id == "00000000-0000-4000-8000-000000000001")
        #expect(job.endpoint == .unix(path: "/run/b.sock", mode: 0o600))
        #expect(job.copyTimeoutMilliseconds == 500)
        #expect(job.disks.map(\.target) == ["vdb", "vda"])
        #expect(job.disks.map(\.exportName) == ["bee", "vda"])
        #expect(job.disks.map(\.disk.number) == [2, 1])
        #expect(job.disks[1].scratch.path == "/img/vda.raw.1795223818")
        let error = refusal { () throws(ControlError) in
            try planned.jobConfiguration(diskIDs: [:], copyTimeoutMilliseconds: 500)
        }
        #expect(error?.message == "internal error: disk 'vdb' is not attached to the server")
    }

    @Test func dumpOfEveryPlanFitsTheInputSchemaButForTheIndex() throws {
        let planned = try plan(
            pullXML("<disks><disk name='vda' exportname='a&lt;&amp;&#10;b'/></disks>"))
        let dump = planned.xml(startedEndpoint: nil)
        let again = try BackupRequest.parse(dump.split(separator: " index='21'").joined())
        #expect(again.disks?.first?.exportName == "a<&\nb")
        #expect(again.disks?.map(\.target) == ["vda", "vdb", "vdc", "hda", "vdd"])
    }
}
