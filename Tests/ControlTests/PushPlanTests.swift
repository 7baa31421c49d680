import Control
import ServerInterface
import Testing

/// Push mode as libvirt's documents have it, before anything is touched.
@Suite struct PushPlanTests {
    private static func push(_ disks: String, mode: String = " mode='push'") -> String {
        "<domainbackup\(mode)>\(disks.isEmpty ? "" : "<disks>\(disks)</disks>")</domainbackup>"
    }

    @Test("without a mode it is a push of every writable disk, beside the disks, as qcow2")
    func defaults() throws {
        let domain = DomainDefinition(
            name: "vm1",
            disks: [
                DomainDisk(target: "vda", path: "/img/vda.raw"),
                DomainDisk(target: "vdb", path: "/img/vdb.raw", readOnly: true),
            ])
        let planned = try plan("<domainbackup/>", domain: domain)
        #expect(planned.push == BackupPlan.PushTerms())
        #expect(planned.disks.map(\.participates) == [true, false])
        let target = BackupPlan.PushTarget(
            kind: .file, path: "/img/vda.raw.1795223818", format: .qcow2, reuseExternal: false)
        #expect(planned.disks[0].pushTarget == target)
        #expect(planned.disks[0].scratch?.path == "/img/vda.raw.1795223818.scratch")
        #expect(
            planned.xml(startedEndpoint: nil) == """
                <domainbackup mode='push'>
                  <disks>
                    <disk name='vda' backup='yes' type='file' backupmode='full' index='21'>
                      <driver type='qcow2'/>
                      <target file='/img/vda.raw.1795223818'/>
                    </disk>
                    <disk name='vdb' backup='no'/>
                  </disks>
                </domainbackup>

                """)
        #expect(try planned.security(offersTLS: true) == .plaintext)
    }

    @Test("targets, formats and bases are those of the request")
    func requested() throws {
        let planned = try plan(
            "<domainbackup><incremental>c1</incremental><disks>"
                + "<disk name='vda' type='block'><target dev='/dev/t'/></disk>"
                + "<disk name='vdb' backupmode='full'><driver type='raw'/><target file='/t/b'/>"
                + "</disk><disk name='vdc' type='file'><target file='/t/c'/></disk>"
                + "</disks></domainbackup>", known: ["c1"])
        #expect(planned.disks.prefix(3).map(\.incremental) == ["c1", nil, "c1"])
        #expect(planned.disks.prefix(3).map(\.pushTarget?.format) == [.qcow2, .raw, .qcow2])
        #expect(planned.disks.prefix(3).map(\.pushTarget?.path) == ["/dev/t", "/t/b", "/t/c"])
        #expect(planned.disks[0].pushTarget?.kind == .block)
    }

    @Test("what is reused is the target, never scratch, and for a full backup only")
    func reused() throws {
        let planned = try plan(
            Self.push("<disk name='vda'><target file='/t/a'/></disk>"), reuseExternal: true)
        #expect(planned.disks[0].pushTarget?.reuseExternal == true)
        #expect(planned.disks[0].scratch?.reuseExternal == false)
        let error = refusal { () throws(ControlError) in
            try plan(
                Self.push("<disk name='vda' incremental='c1'><target file='/t/a'/></disk>"),
                reuseExternal: true, known: ["c1"])
        }
        #expect(error?.code == "incremental-kept")
    }

    @Test(
        "what no push can do is refused",
        arguments: [
            (
                "<disk name='vda' incremental='c1'><driver type='raw'/></disk>", "incremental-raw"
            ),
            ("<disk name='vdc'/>", "scratch-missing"),
            ("<disk name='vdc' type='block'><target dev='/dev/x'/></disk>", "scratch-missing"),
            ("<disk name='vda'><target file='/img/vdb.raw'/></disk>", "scratch-is-source"),
            (
                "<disk name='vda'><target file='/t'/></disk><disk name='vdb'><target file='/t'/>"
                    + "</disk>", "scratch-exists"
            ),
        ])
    func refused(disks: String, code: String) {
        let error = refusal { () throws(ControlError) in
            try plan(Self.push(disks), known: ["c1"])
        }
        #expect(error?.code == code, "\(error?.message ?? "")")
    }

    @Test("a device is pushed to a file, whose side its scratch lies at")
    func device() throws {
        let planned = try plan(Self.push("<disk name='vdc'><target file='/t/c'/></disk>"))
        #expect(planned.disks[0].scratch?.path == "/t/c.scratch")
    }

    @Test("an aborted push has failed, and is Cancelled to libvirt's clients")
    func verdicts() {
        let outcome = EndCause.pushAborted.outcome(brokenReason: nil)
        #expect(outcome.label == "failed" && outcome.jobType == "Cancelled" && !outcome.isGood)
        #expect(EndCause.pushed.outcome(brokenReason: nil) == .completed(note: nil))
        #expect(EndCause.pushed.outcome(brokenReason: "b") == .failed(reason: "b"))
        #expect(EndCause.pushFailed(reason: "r").outcome(brokenReason: nil).message == "r")
    }
}
