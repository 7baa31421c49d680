import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// What libvirt's clients are told when something cannot be done: they branch on these.
    @Suite struct LibvirtErrorTests {
        /// A request for a backup, and what virsh says to it.
        private struct Case {
            let xml: String
            let error: String

            init(_ xml: String, _ error: String) {
                self.xml = xml
                self.error = error
            }
        }

        private static func request(_ server: String, _ disks: String, _ extra: String = "")
            -> String
        {
            "<domainbackup mode='pull'>\(extra)\(server)\(disks)</domainbackup>"
        }

        private static func cases(_ fixture: LibvirtFixture) -> [Case] {
            let socket = fixture.directory.file("refused.sock")
            let taken = fixture.directory.file("taken")
            let server = "<server transport='unix' socket='\(socket)'/>"
            let disk = "<disks><disk name='vda'/></disks>"
            func disks(_ inner: String) -> String { "<disks>\(inner)</disks>" }
            return [
                Case(
                    request(server, disk, "<incremental>nope</incremental>"),
                    "Domain checkpoint not found: Checkpoint 'nope' for incremental backup of disk"
                        + " 'vda' not found"),
                Case(
                    request(server, disks("<disk name='vdz'/>")),
                    "unsupported configuration: no disk named 'vdz'"),
                Case(
                    request(server, disks("<disk name='vda'/><disk name='vda'/>")),
                    "unsupported configuration: disk 'vda' specified twice"),
                Case(
                    request(server, disks("<disk name='vda' backup='no'/>")),
                    "unsupported configuration: no disks selected for backup"),
                Case(
                    request(
                        server,
                        disks("<disk name='vda' type='file'><scratch file='\(taken)'/></disk>")),
                    "invalid argument: store '\(taken)' for backup of 'vda' exists"),
                Case(
                    request(
                        server,
                        disks("<disk name='vda' type='file' backupmode='incremental'/>")),
                    "unsupported configuration: 'incremental' backup mode of disk 'vda' requires"
                        + " setting 'incremental' field for disk or backup"),
            ]
        }

        @Test(
            "refused backups say in libvirt's words why, and leave nothing",
            arguments: LibvirtClient.allCases)
        func backups(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            try Files.write("somebody's", to: fixture.directory.file("taken"))
            for item in Self.cases(fixture) {
                let refusal = try fixture.refusal("backup-begin", "vm1", try fixture.file(item.xml))
                #expect(refusal == ["error: " + item.error], "\(item.xml)")
            }
            for xml in ["<domainbackup", "<domainbackup mode='pull' wrong='x'/>", ""] {
                let refusal = try fixture.refusal("backup-begin", "vm1", try fixture.file(xml))
                #expect(refusal.first?.hasPrefix("error: ") ?? false, "\(refusal)")
            }
            let broken = try fixture.refusal(
                "backup-begin", "vm1", try fixture.file("<domainbackup"))
            #expect(broken.line(0).hasPrefix("error: (domain_backup):"), "\(broken)")
            let invalid = try fixture.refusal(
                "backup-begin", "vm1", try fixture.file("<domainbackup mode='pull'/>"))
            #expect(
                invalid.line(0).hasPrefix(
                    "error: XML document failed to validate against schema: "), "\(invalid)")
            #expect(!Files.exists(fixture.directory.file("refused.sock")))
            #expect(Files.read(fixture.directory.file("taken")) == "somebody's")
            #expect(try fixture.virsh("domjobinfo", "vm1") == ["Job type:         None"])
            // A refused backup leaves no checkpoint either.
            let begin = try fixture.file(Self.cases(fixture)[1].xml)
            _ = try fixture.refusal(
                "backup-begin", "vm1", begin, "--checkpointxml",
                try fixture.file(checkpointXML("c1")))
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == [])
            try fixture.server.stop()
        }

        @Test(
            "a checkpoint that is there already refuses the backup",
            arguments: LibvirtClient.allCases)
        func duplicate(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            try fixture.virsh("checkpoint-create-as", "vm1", "c1")
            #expect(
                try fixture.refusal(
                    "backup-begin", "vm1", try fixture.backupFile(tag: "job"), "--checkpointxml",
                    try fixture.file(checkpointXML("c1")))
                    == ["error: operation failed: domain moment c1 already exists"])
            try fixture.server.stop()
        }

        @Test("without a job, the calls of jobs say so", arguments: LibvirtClient.allCases)
        func noJob(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            #expect(
                try fixture.refusal("backup-dumpxml", "vm1") == [
                    "error: Domain backup job id not found: no domain backup job present"
                ])
            #expect(
                try fixture.refusal("domjobabort", "vm1") == [
                    "error: Requested operation is not valid: no job is active on the domain"
                ])
            try fixture.server.stop()
        }

        @Test(
            "filesystems cannot be frozen without an agent, which is said at once",
            arguments: LibvirtClient.allCases)
        func freeze(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let text = "error: argument unsupported: QEMU guest agent is not configured"
            #expect(
                try fixture.refusal("domfsfreeze", "vm1")
                    == ["error: Unable to freeze filesystems", text])
            #expect(
                try fixture.refusal("domfsthaw", "vm1")
                    == ["error: Unable to thaw filesystems", text])
            try fixture.server.stop()
        }

        @Test("P6: a read-only connection changes nothing, whatever its client asks for")
        func readOnly() throws {
            let fixture = try LibvirtFixture()
            try fixture.virsh("checkpoint-create-as", "vm1", "c1")
            try fixture.virsh("backup-begin", "vm1", try fixture.backupFile(tag: "job"))
            // virsh itself refuses to send these: the client library is told that it may not.
            let refused = try fixture.server.virsh(
                ["checkpoint-create-as", "vm1", "c2"], readOnly: true)
            #expect(refused.stderr.contains("read only access"), "\(refused)")
            // A client that does send them is refused by the server.
            let script = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().appending(path: "clients/libvirt-read-only").path
            let output = try Command.run(
                "/usr/bin/python3", [script, fixture.server.libvirtSocket, LibvirtFixture.uuid]
            ).output()
            let answers = output.split(separator: "\n")
            #expect(answers.count == 9, "\(output)")
            for answer in answers where !answer.hasPrefix("read ") {
                #expect(answer.hasSuffix(" 29"), "\(answer): not refused as forbidden")
            }
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == ["c1"])
            #expect(try fixture.virsh("domjobinfo", "vm1").line(0).hasSuffix("Unbounded"))
            let looked = try fixture.server.virsh(
                ["checkpoint-list", "vm1", "--name"], readOnly: true)
            #expect(looked.lines == ["c1"])
            try fixture.server.stop()
        }
    }
}
