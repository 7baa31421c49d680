import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Backups that options ask for instead of XML, and images that are written back.
    @Suite struct OptionBackupTests {
        private struct Export: Decodable {
            let disk: String
            let bitmap: String?
            let incremental: String?
        }

        private struct Begun: Decodable {
            let id: String
            let exports: [Export]
        }

        private struct Checkpoints: Decodable {
            struct Checkpoint: Decodable {
                struct Disk: Decodable {
                    let disk: String
                    let checkpoint: String
                }
                let name: String
                let disks: [Disk]
            }
            let checkpoints: [Checkpoint]
        }

        @Test("P3: a chain by auto starts each disk from its last backup, and a new disk in full")
        func chain() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let first = try server.cli(
                ["backup-begin", "vm1", "--incremental", "auto", "--checkpoint", "c1"]
                    + ["--disk", "vda"])
            #expect(try first.output().contains("nbd+unix:///vda?socket="))
            #expect(first.stderr.contains("note: full backup: domain 'vm1' has no checkpoint\n"))
            try server.cli(["backup-end", "vm1"]).output()
            // The disk that was not backed up has no base by that name.
            let made = try server.json(["checkpoint-list", "vm1"], as: Checkpoints.self)
            let disks = try #require(made.checkpoints.first).disks
            #expect(disks.filter { $0.checkpoint == "bitmap" }.map(\.disk) == ["vda"])
            let mixed = try server.json(
                ["backup-begin", "vm1", "--incremental", "auto", "--checkpoint", "auto"],
                as: Begun.self)
            #expect(mixed.exports.map(\.disk) == ["vda", "vdb"])
            #expect(mixed.exports.map(\.incremental) == ["c1", nil])
            #expect(mixed.exports.map(\.bitmap) == ["backup-vda", nil])
            // Not a base before its backup has ended well.
            let early = try server.json(
                ["backup-begin", "vm1", "--incremental", "auto"], as: Begun.self)
            #expect(early.exports.map(\.incremental) == ["c1", nil])
            for job in [mixed, early] {
                try server.cli(["backup-end", "vm1", "--job", job.id]).output()
            }
            let last = try server.json(
                ["backup-begin", "vm1", "--incremental", "auto"], as: Begun.self)
            let base = try #require(last.exports.first?.incremental)
            #expect(base != "c1" && last.exports.map(\.incremental) == [base, base])
            try server.cli(["backup-end", "vm1"]).output()
            try server.stop()
        }

        @Test("--print-xml shows the request and begins nothing; the same XML begins the same")
        func printed() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let scratch = try fixture.directory.directory("scratch")
            let arguments = [
                "backup-begin", "vm1", "--disk", "vda", "--unix", fixture.directory.file("j.sock"),
                "--scratch-dir", scratch,
            ]
            let xml = try server.cli(arguments + ["--print-xml"]).output()
            #expect(xml.contains("<scratch file='\(scratch)/"))
            #expect(try server.cli(["backup-list", "-q"]).output().isEmpty)
            #expect(Files.listing(scratch).isEmpty)
            try server.cli(["backup-begin", "vm1", "-"], input: xml).output()
            let first = try server.cli(["backup-dumpxml", "vm1"]).output()
            #expect(first.contains("socket='\(fixture.directory.file("j.sock"))'"))
            #expect(Files.listing(scratch).count == 1)
            try server.cli(["backup-end", "vm1"]).output()
            #expect(Files.listing(scratch).isEmpty)
            for (wrong, words) in [
                (["-", "--disk", "vda"], "--disk and the request '-' exclude each other"),
                (["--unix", "/a", "--tcp", "127.0.0.1:0"], "--unix and --tcp exclude each other"),
                (["--checkpoint", "a", "--checkpointxml", "b"], "exclude each other"),
                (["--scratch-dir", "/a", "--reuse-external"], "--scratch-dir makes new files"),
            ] {
                let refused = try server.cli(["backup-begin", "vm1"] + wrong)
                #expect(refused.status == 64 && refused.stderr.contains(words), "\(refused)")
            }
            let open = try server.cli(["backup-begin", "vm1", "--tcp", "192.0.2.1:10809"])
            #expect(open.status == 1 && open.stderr.contains("plaintext"), "\(open)")
            try server.stop()
        }

        @Test("domjobinfo --watch follows a job to its end and tells how it ended")
        func watched() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            #expect(try server.cli(["domjobinfo", "vm1", "--watch"]).status == 1)
            for (end, status) in [([String](), Int32(0)), (["--failed"], 1)] {
                let job = try fixture.begin(tag: "watch\(status)")
                let watch = try server.startCLI(["domjobinfo", "vm1", "--watch"])
                try watch.wait(for: "first line") { $0.stdout.contains("no client yet") }
                try Command.run("nbdcopy", [try job.uri("vda"), "null:"]).output()
                try watch.wait(for: "progress") { $0.stdout.contains(" MiB of ") }
                try server.cli(["backup-end", "vm1"] + end).output()
                let result = try watch.result()
                #expect(result.status == status, "\(result)")
                #expect(result.stdout.contains("Backup \(job.id) ended: "), "\(result)")
                // One that is named may be over before anybody looks.
                let late = try server.cli(["domjobinfo", "vm1", "--job", job.id, "--watch"])
                #expect(late.status == status && late.stdout.hasPrefix("Backup "), "\(late)")
                #expect(result.stdout.hasSuffix(late.stdout), "\(late)")
            }
            try server.stop()
        }

        @Test("P3: a restore is a change: running jobs keep their instant, the next one holds it")
        func restored() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let image = fixture.directory.file("backup.img")
            let full = try server.begin("vm1", disks: ["vda"], tag: "full", checkpoint: "c1")
            try Command.run("nbdcopy", [try full.uri("vda"), image]).output()
            try server.end("vm1", full)
            let guest = try NBDClient(fixture.uri("vda"))
            try guest.write(randomBytes(1 << 20, seed: 7), at: 3 << 20)
            let running = try server.begin("vm1", disks: ["vda"], tag: "run", checkpoint: "c2")
            let before = try Bytes.ofFile(fixture.path("vda"))

            let restore = ["disk-restore", "vm1", "vda", image]
            let busy = try server.cli(restore)
            #expect(busy.status == 1 && busy.stderr.contains("in use by a client"), "\(busy)")
            #expect(try Bytes.ofFile(fixture.path("vda")) == before)
            try guest.disconnect()
            // The server may have yet to notice that the machine is gone.
            for _ in 0..<200 {
                guard try server.cli(restore).status != 0 else { break }
                usleep(20_000)
            }
            try Images.expectEqual(image, fixture.path("vda"))

            let pulled = fixture.directory.file("pulled.img")
            try Command.run("nbdcopy", [try running.uri("vda"), pulled]).output()
            #expect(try Bytes.ofFile(pulled) == before)
            try server.end("vm1", running)
            let next = try server.begin("vm1", disks: ["vda"], tag: "next", incremental: "c2")
            try Command.run(
                "qemu-img", ["compare", "-f", "raw", "-F", "raw", image, try next.uri("vda")]
            ).output()
            let map = try Command.run(
                "nbdinfo", ["--map=qemu:dirty-bitmap:backup-vda", try next.uri("vda")]
            ).output()
            #expect(map.contains("dirty"), "\(map)")
            try server.end("vm1", next)
            try server.stop()
        }

        @Test("an image that does not fit its disk, or whose format is in doubt, is refused")
        func refusedImages() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let before = try Bytes.ofFile(fixture.path("vda"))
            let small = fixture.directory.file("small.img")
            let large = fixture.directory.file("large.img")
            try Images.mixed(small, bytes: LiveFixture.defaultBytes - 4096, seed: 3)
            try Images.mixed(large, bytes: LiveFixture.defaultBytes + 4096, seed: 3)
            let layered = fixture.directory.file("layered.qcow2")
            try Command.run(
                "qemu-img",
                ["convert", "-U", "-f", "raw", "-O", "qcow2", fixture.path("vdb"), layered]
            ).output()
            let enlarge = "nbdpull blockresize vm1 vda \(LiveFixture.defaultBytes + 4096)b"
            for (arguments, words) in [
                (["vda", small], "the rest would keep its old content"),
                (["vda", large], enlarge),
                (["vda", layered], "it looks like qcow2: say --format qcow2"),
                (["vda", fixture.directory.file("none")], "cannot be read: No such file"),
                (["vdc", fixture.path("vdb")], "disk 'vdc': it is read-only"),
                (["vdx", small], "domain 'vm1' has only vda, vdb, vdc"),
            ] {
                let refused = try server.cli(["disk-restore", "vm1"] + arguments)
                #expect(refused.status == 1 && refused.stderr.contains(words), "\(refused)")
            }
            #expect(try Bytes.ofFile(fixture.path("vda")) == before)
            try server.cli(["disk-restore", "vm1", "vda", layered, "--format", "qcow2"]).output()
            try Images.expectEqual(fixture.path("vdb"), fixture.path("vda"))
            try server.stop()
        }
    }
}
