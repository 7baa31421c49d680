import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Pushes as users begin, watch and end them, and what goes wrong with their targets.
    @Suite struct PushTests {
        /// A server with one machine of two disks.
        private final class Fixture {
            let directory: TemporaryDirectory
            let server: ServerUnderTest

            init(
                options: [String] = [], environment: [String: String] = [:], mebibytes: Int = 8
            ) throws {
                directory = try TemporaryDirectory()
                var disks: [DiskDescription] = []
                for (index, target) in ["vda", "vdb"].enumerated() {
                    let path = directory.file(target + ".img")
                    _ = try Images.random(path, bytes: mebibytes << 20, seed: UInt64(index + 7))
                    disks.append(DiskDescription(target, path))
                }
                server = try ServerUnderTest(
                    [DomainDescription("vm1", disks)], options: options, environment: environment)
            }

            func file(_ name: String) -> String { directory.file(name) }

            func begin(_ arguments: [String]) throws -> BegunJob {
                try BegunJob(json: try server.cli(arguments + ["--json"]).output())
            }

            func refusal(_ arguments: [String]) throws -> String {
                let result = try server.cli(arguments)
                #expect(result.status == 1, "\(result)")
                return result.stderr
            }

            /// The machine's disk answers, whatever becomes of its backups.
            func expectGuestRuns() throws {
                let guest = try NBDClient(server.liveURI("vm1", "vda"))
                try guest.write([UInt8](repeating: 7, count: 4096), at: 65536)
                #expect(try guest.read(65536, 4096).allSatisfy { $0 == 7 })
                try guest.disconnect()
            }

            /// Until the workers are gone.
            func expectNoWorkers() throws {
                for _ in 0..<200 {
                    // Each look reads hundreds of files.
                    if server.pushWorkers.isEmpty { return }
                    Thread.sleep(forTimeInterval: 0.02)
                }
                #expect(server.pushWorkers.isEmpty)
            }

            func expectFailed(_ job: BegunJob, _ words: String) throws -> PushInfo {
                let ended = try server.awaitPush(job.id)
                #expect(ended.outcome == "failed" && ended.jobType != "Completed", "\(ended)")
                #expect(ended.errorMessage?.contains(words) == true, "\(ended)")
                try expectGuestRuns()
                return ended
            }
        }

        @Test("backup-begin --watch stays until its push has ended, and exits by how it ended")
        func watched() throws {
            let fixture = try Fixture()
            let push = ["backup-begin", "vm1", "--push", "--watch", "--target-dir"]
            let folder = fixture.directory.file("targets")
            try Command.run("mkdir", [folder]).output()
            let good = try fixture.server.cli(push + [folder, "--checkpoint", "sunday"])
            #expect(good.status == 0 && good.stdout.hasSuffix("ended: completed\n"), "\(good)")
            // Its checkpoint is a base as soon as it returns.
            let next = try fixture.server.cli(push + [folder, "--incremental", "sunday"])
            #expect(next.status == 0, "\(next)")
            let slow = try fixture.server.startCLI(push + [folder, "--bandwidth", "1M"])
            try slow.wait(for: "progress") { $0.stdout.contains(" MiB of ") }
            try fixture.server.cli(["domjobabort", "vm1"]).output()
            let failed = try slow.result()
            #expect(failed.status == 1 && failed.stdout.contains("ended: "), "\(failed)")
            try fixture.server.stop()
        }

        @Test("by virsh: libvirt's push begins, is described, shows progress, and ends by itself")
        func virsh() throws {
            let fixture = try LibvirtFixture(options: ["--storage-timeout", "10"])
            let target = fixture.directory.file("full.qcow2")
            let xml = try fixture.file(
                "<domainbackup><disks><disk name='vda' backup='yes' type='file'>"
                    + "<target file='\(target)'/></disk></disks></domainbackup>")
            let begun = try fixture.virsh(
                "backup-begin", "vm1", xml, "--checkpointxml",
                try fixture.file("<domaincheckpoint><name>c1</name></domaincheckpoint>"))
            #expect(begun.line(0) == "Backup started")
            var ended = ["Job type:         None"]
            for _ in 0..<200 where ended.line(0).contains("None") {
                ended = try fixture.virsh("domjobinfo", "vm1", "--completed")
            }
            #expect(ended.line(0) == "Job type:         Completed", "\(ended)")
            #expect(ended.contains { $0.hasPrefix("File processed:") }, "\(ended)")
            #expect(ended.contains("File remaining:   0.000 B"), "\(ended)")
            try Command.run(
                "qemu-img",
                ["compare", "-f", "qcow2", "-F", "raw", target, fixture.directory.file("vda.img")]
            ).output()
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == ["c1"])
            // No XML: libvirt's default, beside the disks, with the time at the end.
            try fixture.virsh("backup-begin", "vm1")
            for _ in 0..<200 {
                if try fixture.virsh("domjobinfo", "vm1").line(0).contains("None") { break }
            }
            let made = Files.listing(fixture.directory.path).filter { $0.contains(".img.") }
            #expect(made.count == 2 && made.allSatisfy { !$0.hasSuffix("l") }, "\(made)")
            try fixture.server.stop()
        }

        @Test("abort: the push has failed, its targets say so, and its checkpoint is taken back")
        func aborted() throws {
            let fixture = try Fixture()
            let server = fixture.server
            let job = try fixture.begin(
                try server.pushArguments(
                    [
                        PushDisk("vda", fixture.file("a.qcow2")),
                        PushDisk("vdb", fixture.file("b.raw"), format: "raw"),
                    ], checkpoint: "c1") + ["--bandwidth", "1M"])
            let xml = try server.cli(["backup-dumpxml", "vm1"]).output()
            #expect(xml.contains("<domainbackup mode='push'>") && !xml.contains("<server"))
            #expect(xml.contains("<driver type='raw'/>\n      <target file='"))
            #expect(try server.cli(["backup-end", "vm1"]).stderr.contains("ends by itself"))
            try server.cli(["domjobabort", "vm1"]).output()
            let ended = try fixture.expectFailed(job, "Operation canceled")
            #expect(ended.jobType == "Cancelled" && ended.checkpointKept == false)
            #expect(try !server.cli(["checkpoint-list", "vm1", "--name"]).output().contains("c1"))
            for name in ["a.qcow2", "b.raw"] {
                #expect(!Files.exists(fixture.file(name)))
                #expect(Files.exists(fixture.file(name + ".failed")))
                #expect(!Files.exists(fixture.file(name + ".partial")))
            }
            try fixture.expectNoWorkers()
            #expect(Files.listing(server.runDirectory).allSatisfy { !$0.hasPrefix("push-") })
            try server.stop()
        }

        @Test("a limit is held, for all disks together")
        func limited() throws {
            let fixture = try Fixture()
            let job = try fixture.begin([
                "backup-begin", "vm1", "--push", "--target-dir", fixture.directory.path,
                "--target-format", "raw", "--bandwidth", "16M", "--verify",
            ])
            let ended = try fixture.server.awaitPush(job.id)
            // 16 MiB; what is read back counts as well.
            #expect(ended.jobType == "Completed" && (ended.timeElapsed ?? 0) > 900, "\(ended)")
            #expect(ended.bytesToRead == 16 << 20)
            try fixture.server.stop()
        }

        @Test("what cannot be is refused before the backup begins, and nothing is left")
        func refused() throws {
            let fixture = try Fixture(mebibytes: 1)
            let server = fixture.server
            try Files.write("somebody's", to: fixture.file("taken"))
            try Files.write("short", to: fixture.file("short"))
            try FileManager.default.createSymbolicLink(
                atPath: fixture.file("link"), withDestinationPath: fixture.file("vdb.img"))
            try server.cli(["checkpoint-create-as", "vm1", "c0"]).output()
            let before = Set(Files.listing(fixture.directory.path))
            func begin(
                _ disk: PushDisk, incremental: String? = nil, _ more: String...
            ) throws -> String {
                try fixture.refusal(
                    try server.pushArguments([disk], incremental: incremental, checkpoint: "c1")
                        + more)
            }
            let raw = "raw"
            let cases: [(String, String)] = [
                (
                    try begin(PushDisk("vda", fixture.file("taken"))),
                    "store '\(fixture.file("taken"))' for backup of 'vda' exists"
                ),
                (try begin(PushDisk("vda", fixture.file("no/x"))), "failed to create image file"),
                (
                    try begin(PushDisk("vda", fixture.file("x"), format: raw), incremental: "c0"),
                    "incremental push backup of disk 'vda' is not supported for target format 'raw'"
                ),
                (try begin(PushDisk("vda", fixture.file("x"), format: "vmdk")), "'vmdk'"),
                (
                    try begin(PushDisk("vda", fixture.file("vdb.img")), "--reuse-external"),
                    "is the source of disk 'vdb'"
                ),
                (
                    try begin(PushDisk("vda", fixture.file("link")), "--reuse-external"),
                    "is in use by this server: it is disk 'vdb'"
                ),
                (
                    try begin(PushDisk("vda", server.stateDirectory + "/domains/x")),
                    "the server's own directory"
                ),
                (
                    try begin(
                        PushDisk("vda", fixture.file("short"), format: raw), "--reuse-external"),
                    "has 5 bytes, and the disk 1048576"
                ),
                (
                    try begin(PushDisk("vda", fixture.file("none")), "--reuse-external"),
                    "it is not there"
                ),
                (
                    try begin(PushDisk("vda", fixture.file("x"), format: raw), "--compress"),
                    "cannot be compressed"
                ),
            ]
            for (said, words) in cases { #expect(said.contains(words), "\(said) lacks \(words)") }
            #expect(Files.read(fixture.file("taken")) == "somebody's")
            #expect(Set(Files.listing(fixture.directory.path)) == before)
            #expect(try !server.cli(["checkpoint-list", "vm1", "--name"]).output().contains("c1"))
            try fixture.expectNoWorkers()
            try server.stop()
        }

        @Test("targets that are there already are written over: raw, an image, a device")
        func reused() throws {
            let fixture = try Fixture()
            let server = fixture.server
            let (raw, image) = (fixture.file("a.raw"), fixture.file("b.qcow2"))
            _ = try Images.random(raw, bytes: 8 << 20, seed: 99)
            try Command.run(
                "qemu-img",
                ["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image, "8M"]
            ).output()
            try Command.run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 0 8M", image]).output()
            try Command.run("truncate", ["-s", "8M", fixture.file("vda.img")]).output()
            let job = try fixture.begin(
                try server.pushArguments([
                    PushDisk("vda", raw, format: "raw"), PushDisk("vdb", image),
                ]) + ["--reuse-external", "--verify"])
            #expect(try server.awaitPush(job.id).jobType == "Completed")
            let backing = fixture.file("device")
            try Images.sparse(backing, bytes: 16 << 20)
            let device = try LoopDevice(over: backing)
            var disk = PushDisk("vda", device.path)
            disk.isBlock = true
            let onDevice = try fixture.begin(
                try server.pushArguments([disk]) + ["--compress", "--verify"])
            #expect(try server.awaitPush(onDevice.id).jobType == "Completed")
            for (path, format, source) in [
                (raw, "raw", "vda"), (image, "qcow2", "vdb"), (device.path, "qcow2", "vda"),
            ] {
                try Command.run(
                    "qemu-img",
                    [
                        "compare", "-f", format, "-F", "raw", path,
                        fixture.file(source + ".img"),
                    ]
                ).output()
            }
            try server.stop()
        }

        @Test("a refused begin leaves a device as it was, and no mark goes over what others have")
        func device() throws {
            let fixture = try Fixture()
            let server = fixture.server
            let backing = fixture.file("device")
            let before = try Images.random(backing, bytes: 16 << 20, seed: 3)
            let device = try LoopDevice(over: backing)
            var disk = PushDisk("vda", device.path)
            disk.isBlock = true
            // Workers have their targets by the time the scratch is found to be there.
            let scratch = fixture.file("vda.img.c1.scratch")
            try Files.write("somebody's", to: scratch)
            let arguments = try server.pushArguments([disk], checkpoint: "c1")
            #expect(try fixture.refusal(arguments).contains("c1.scratch"))
            try fixture.expectNoWorkers()
            let isAsBefore = try Bytes.ofDisk(device.path) == before
            #expect(isAsBefore)
            Files.remove(scratch)
            let job = try fixture.begin(arguments + ["--bandwidth", "1M"])
            server.kill()
            let mounted = try fixture.directory.directory("mount")
            // Until the workers are gone.
            for _ in 0..<100 {
                if try Command.run("mkfs.ext4", ["-q", "-F", device.path]).succeeded { break }
                Thread.sleep(forTimeInterval: 0.05)
            }
            try Command.run("mount", [device.path, mounted]).output()
            defer { _ = try? Command.run("umount", [mounted]) }
            try server.start()
            _ = try fixture.expectFailed(job, "Device or resource busy")
            #expect(
                try Command.run("head", ["-c", "1024", device.path]).stdout.allSatisfy {
                    $0 == "\0"
                })
            #expect(
                server.stderr.contains("'\(device.path)' is not marked as failed: it is in use"))
            try server.stop()
        }

        @Test(
            "P2: a target that fills breaks the push, not the guest", arguments: ["raw", "qcow2"])
        func full(format: String) throws {
            let fixture = try Fixture()
            let small = try TinyFileSystem(mebibytes: 4)
            let job = try fixture.begin(
                try fixture.server.pushArguments([
                    PushDisk("vda", small.path + "/a", format: format)
                ]))
            _ = try fixture.expectFailed(job, "No space left on device")
            #expect(!Files.exists(small.path + "/a"))
            #expect(Files.exists(small.path + "/a.failed"))
            try fixture.expectNoWorkers()
            try fixture.server.stop()
        }

        @Test(
            "P2: a push beside a machine's thin disk gives way: the machine finds all the room there is",
            arguments: ["raw", "qcow2"], ["16M", "0"])
        func besideDisk(format: String, reserve: String) throws {
            let small = try TinyFileSystem(mebibytes: 64)
            let directory = try TemporaryDirectory()
            let (thin, pushed) = (small.path + "/thin", directory.file("vda.img"))
            try Images.sparse(thin, bytes: 64 << 20)
            _ = try Images.random(pushed, bytes: 40 << 20, seed: 5)
            let server = try ServerUnderTest(
                [
                    DomainDescription(
                        "vm1", [DiskDescription("vda", pushed), DiskDescription("vdb", thin)])
                ], options: ["--scratch-reserve", reserve])
            let target = small.path + "/t"
            let job = try BegunJob(
                json: try server.cli(
                    try server.pushArguments([PushDisk("vda", target, format: format)])
                        + ["--bandwidth", "48M", "--json"]
                ).output())
            let guest = try NBDClient(server.liveURI("vm1", "vdb"))
            let new = [UInt8](repeating: 0x22, count: 1 << 20)
            // All that fits: the file system's own tables take some.
            for place in 0..<52 { try guest.write(new, at: place << 20) }
            try guest.flush()
            let ended = try server.awaitPush(job.id)
            #expect(ended.outcome == "failed", "\(ended)")
            let reason = ended.errorMessage ?? ""
            #expect(
                reason.contains("--scratch-reserve") || reason.contains("gave way")
                    || reason.contains("No space left"), "\(reason)")
            for place in 0..<52 { #expect(try guest.read(place << 20, 1 << 20) == new) }
            #expect(!Files.exists(target) && !Files.exists(target + ".partial"))
            #expect(try Images.allocatedBytes(target + ".failed") <= 4096)
            // With what is left now none begins.
            if reserve != "0" {
                let refused = try server.cli(
                    try server.pushArguments([PushDisk("vda", target, format: format)]))
                #expect(refused.stderr.contains("are kept for machines"), "\(refused)")
                #expect(!Files.exists(target + ".partial"))
            }
            try server.stop()
        }

        @Test("P2: a target that hangs breaks the push, not the guest, and holds up no end of it")
        func hung() throws {
            let fixture = try Fixture(options: ["--storage-timeout", "2"])
            let frozen = try TinyFileSystem(mebibytes: 32)
            let job = try fixture.begin(
                try fixture.server.pushArguments([
                    PushDisk("vda", frozen.path + "/a", format: "raw")
                ]) + ["--bandwidth", "2M"])
            try frozen.freeze()
            _ = try fixture.expectFailed(job, "does not answer")
            // Its process can end only now.
            try frozen.thaw()
            try fixture.expectNoWorkers()
            #expect(!Files.exists(frozen.path + "/a"))
            try fixture.server.stop()
        }

        @Test("P1: a full disk's image is written without a program, each byte at its place")
        func places() throws {
            let directory = try TemporaryDirectory()
            let disk = directory.file("vda.img")
            // The image has a table between the disk's first 512 MiB and the rest.
            try Command.run("fallocate", ["-l", "520M", disk]).output()
            let file = try FileHandle(forWritingTo: URL(fileURLWithPath: disk))
            var generator = SeededGenerator(seed: 11)
            for offset in [0, (512 << 20) - 70_000, (520 << 20) - 3_000] {
                try file.seek(toOffset: UInt64(offset))
                try file.write(contentsOf: Data(generator.bytes(offset == 0 ? 1 << 20 : 3_000)))
            }
            try file.seek(toOffset: (512 << 20) - 5_000)
            try file.write(contentsOf: Data(generator.bytes(200_000)))
            try file.close()
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", disk)])])
            let target = directory.file("t.qcow2")
            let job = try BegunJob(
                json: try server.cli(
                    try server.pushArguments([PushDisk("vda", target)])
                        + ["--bandwidth", "1M", "--json"]
                ).output())
            let workers = server.pushWorkers
            #expect(workers.map(\.name) == ["nbdpull"])
            // Whatever is there of it is an image, once its worker has heard of it.
            server.kill()
            let place = "/proc/\(workers.first?.process ?? 0)/cmdline"
            for _ in 0..<500 where !Files.read(place).isEmpty { usleep(10_000) }
            try Command.run("qemu-img", ["check", "-f", "qcow2", target + ".partial"]).output()
            try server.start()
            let ended = try server.awaitPush(job.id)
            #expect(ended.jobType == "Completed", "\(ended)")
            try Command.run("qemu-img", ["check", target]).output()
            try Command.run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", target, disk])
                .output()
            #expect(try Images.allocatedBytes(target) < 4 << 20)
            // Read back by a program that knows the format.
            Files.remove(target)
            let verified = try BegunJob(
                json: try server.cli(
                    try server.pushArguments([PushDisk("vda", target)]) + ["--verify", "--json"]
                ).output())
            #expect(try server.awaitPush(verified.id).jobType == "Completed")
            try server.stop()
        }

        @Test("a worker, or the program that writes the image, that is killed breaks the push")
        func killed() throws {
            let fixture = try Fixture()
            let server = fixture.server
            for (number, name) in ["nbdpull", "qemu-nbd"].enumerated() {
                // A full disk's image is written without a program, unless it is compressed.
                let job = try fixture.begin(
                    try server.pushArguments([PushDisk("vda", fixture.file("k\(number)"))])
                        + ["--bandwidth", "1M"] + (number == 1 ? ["--compress"] : []))
                let worker = try #require(server.pushWorkers.first { $0.name == name })
                kill(worker.process, SIGKILL)
                _ = try fixture.expectFailed(job, number == 0 ? "killed by signal 9" : "qemu-nbd")
                try fixture.expectNoWorkers()
                #expect(Files.exists(fixture.file("k\(number).failed")))
            }
            try server.stop()
        }

        @Test(
            "P5: a target that does not hold what was read fails its push when it is read back",
            arguments: ["raw", "qcow2"])
        func wrongBytes(format: String) throws {
            let fixture = try Fixture()
            let server = fixture.server
            let path = fixture.file("a")
            let disk = try Data(contentsOf: URL(fileURLWithPath: fixture.file("vda.img")))
            let job = try fixture.begin(
                try server.pushArguments(
                    [PushDisk("vda", path, format: format)], checkpoint: "c1")
                    + ["--verify", "--bandwidth", "8M"])
            #expect(try Self.spoil(disk.suffix(4096), in: path + ".partial"))
            let ended = try fixture.expectFailed(job, "differs from the disk between bytes")
            #expect(ended.checkpointKept == false)
            #expect(!Files.exists(path) && Files.exists(path + ".failed"))
            #expect(try !server.cli(["checkpoint-list", "vm1", "--name"]).output().contains("c1"))
            try fixture.expectNoWorkers()
            try server.stop()
        }

        /// Waits until a page is in a file, and overwrites it there; false when it does not come.
        private static func spoil(_ page: Data, in path: String) throws -> Bool {
            let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
            defer { try? file.close() }
            for _ in 0..<500 {
                var offset = try file.seekToEnd() / 4096 * 4096
                while offset >= 4096 {
                    offset -= 4096
                    try file.seek(toOffset: offset)
                    guard try file.read(upToCount: 4096) == page else { continue }
                    try file.seek(toOffset: offset)
                    try file.write(contentsOf: Data(repeating: 0x5A, count: 4096))
                    return true
                }
                Thread.sleep(forTimeInterval: 0.01)
            }
            return false
        }

        @Test("without qemu's programs, raw targets are written and qcow2 refused with the package")
        func withoutPrograms() throws {
            let fixture = try Fixture(environment: ["PATH": "/nonexistent"])
            let said = try fixture.refusal(
                try fixture.server.pushArguments([PushDisk("vda", fixture.file("q"))]))
            #expect(said.contains("install the package 'qemu-utils'"), "\(said)")
            #expect(!Files.exists(fixture.file("q.partial")))
            let job = try fixture.begin(
                try fixture.server.pushArguments([
                    PushDisk("vda", fixture.file("r"), format: "raw")
                ]))
            #expect(try fixture.server.awaitPush(job.id).jobType == "Completed")
            try fixture.server.stop()
        }
    }
}
