import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// `virsh event` of libvirt 9 and 11.
    @Suite struct LibvirtEventTests {
        /// Starts `virsh event` and waits until the server knows of it.
        private func listen(_ fixture: LibvirtFixture, _ options: [String]) throws -> Command {
            let command = try fixture.server.startVirsh(
                ["event", "--timeout", "20"] + options, by: fixture.client)
            // It says nothing when it has registered, which takes a few calls.
            Thread.sleep(forTimeInterval: 0.5)
            guard command.isRunning else { throw TestFailure("\(try command.result())") }
            return command
        }

        @Test("the end of a backup is told, with its figures", arguments: LibvirtClient.allCases)
        func jobCompleted(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let listener = try listen(fixture, ["vm1", "--event", "job-completed"])
            try fixture.virsh("backup-begin", "vm1", try fixture.backupFile(tag: "job"))
            try fixture.virsh("domjobabort", "vm1")
            let lines = VirshText.normal(try listener.result().lines)
            #expect(lines.first == "event 'job-completed' for domain 'vm1':", "\(lines)")
            #expect(lines.last == "events received: 1")
            for line in [
                "\toperation: 9", "\ttime_elapsed: N", "\tdisk_temp_used: 0",
                "\tdisk_temp_total: 16777216", "\tsuccess: 1", "\terrmsg: Operation canceled",
            ] {
                #expect(lines.contains(line), "\(lines)")
            }
            try fixture.server.stop()
        }

        @Test(
            "events of every kind, of a backup's end and of a machine that comes and goes",
            arguments: LibvirtClient.allCases)
        func all(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let source = VirshText.words(try fixture.virsh("domblklist", "vm1").line(2)).line(1)
            let listener = try listen(fixture, ["--all", "--loop"])
            do {
                let machine = try NBDClient(fixture.server.liveURI("vm1", "vda"))
                _ = try machine.read(0, 512)
                try fixture.virsh("backup-begin", "vm1", try fixture.backupFile(tag: "job"))
                try fixture.virsh("domjobabort", "vm1")
            }
            try listener.wait(for: "events") {
                $0.stdout.contains("'job-completed'") && $0.stdout.contains("'block-job-2'")
                    && $0.stdout.contains("'block-job'")
            }
            try fixture.server.cli(["undefine", "vm1"]).output()
            try listener.wait(for: "last event") { $0.stdout.contains("Undefined") }
            listener.signal(SIGINT)
            let result = try listener.result()
            #expect(
                result.lines.contains(
                    "event 'block-job' for domain 'vm1': Backup for \(source) canceled"),
                "\(result)")
            #expect(
                result.lines.contains(
                    "event 'block-job-2' for domain 'vm1': Backup for vda canceled"),
                "\(result)")
            #expect(
                result.lines.contains("event 'lifecycle' for domain 'vm1': Undefined Removed"),
                "\(result)")
            try fixture.server.stop()
        }

        @Test("a listener that is killed leaves nothing behind, and others are told")
        func killedListener() throws {
            let fixture = try LibvirtFixture()
            let doomed = try listen(fixture, ["--all", "--loop"])
            let other = try listen(fixture, ["vm1", "--event", "job-completed"])
            let before = fixture.server.descriptorCount
            doomed.kill()
            try fixture.virsh("backup-begin", "vm1", try fixture.backupFile(tag: "job"))
            try fixture.virsh("domjobabort", "vm1")
            #expect(try other.result().stdout.contains("events received: 1"))
            for _ in 0..<100 where fixture.server.descriptorCount > before - 1 {
                Thread.sleep(forTimeInterval: 0.02)
            }
            #expect(fixture.server.descriptorCount <= before - 1)
            try fixture.server.stop()
        }
    }
}
