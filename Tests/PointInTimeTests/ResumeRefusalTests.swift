import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Jobs whose server was killed, and that must not go on.
    @Suite struct ResumeRefusalTests {
        /// A server with one disk, a running job with checkpoint `c1`, and old content in its
        /// scratch.
        private final class Rig {
            let server: ServerUnderTest
            let job: BegunJob
            let disk: String
            var scratch: String { server.directory.file("scratch-r-vda") }

            init() throws {
                let directory = try TemporaryDirectory()
                disk = directory.file("disk")
                _ = try Images.random(disk, bytes: 8 << 20, seed: 9)
                server = try ServerUnderTest(
                    [DomainDescription("vm1", [DiskDescription("vda", disk)])], in: directory)
                job = try server.begin("vm1", disks: ["vda"], tag: "r", checkpoint: "c1")
                try NBDClient(server.liveURI("vm1", "vda")).write(
                    [UInt8](repeating: 7, count: 1 << 20), at: 1 << 20)
            }

            /// Kills the server, lets something happen, and starts it again: the job has failed
            /// with this reason, and nothing of it is left.
            func expectFailed(_ reason: String, after: () throws -> Void) throws {
                server.kill()
                try after()
                try server.start()
                try expectGone(reason)
            }

            func expectGone(_ reason: String) throws {
                let running = try server.cli(["domjobinfo", "vm1"]).output()
                #expect(running.contains("None"), "\(running)")
                let ended = try server.cli(
                    ["domjobinfo", "vm1", "--completed", "--job", job.id]
                ).output()
                #expect(ended.contains("Failed") && ended.contains(reason), "\(ended)")
                let checkpoints = try server.cli(["checkpoint-list", "vm1", "--name"]).output()
                #expect(!checkpoints.contains("c1"), "its checkpoint is there")
                #expect(throws: NBDFailure.self) { try NBDClient(try job.uri("vda")) }
                // The machine goes on, and so do new jobs.
                try NBDClient(server.liveURI("vm1", "vda")).write([1], at: 0)
                let next = try server.begin("vm1", disks: ["vda"], tag: "next", checkpoint: "c1")
                try server.end("vm1", next)
                try server.stop()
            }
        }

        @Test("P5: scratch that is gone, replaced, cut short or changed ends the job")
        func scratch() throws {
            let gone = try Rig()
            try gone.expectFailed("is gone") { Files.remove(gone.scratch) }
            let other = try Rig()
            try other.expectFailed("is not the one that the job had") {
                try Command.run("cp", [other.scratch, other.scratch + ".copy"]).output()
                try Command.run("mv", [other.scratch + ".copy", other.scratch]).output()
            }
            let cut = try Rig()
            try cut.expectFailed("was cut to") {
                try Command.run("truncate", ["-s", "16384", cut.scratch]).output()
            }
            #expect(!Files.exists(cut.scratch))
            let changed = try Rig()
            try changed.expectFailed("was changed while no server had it") {
                Thread.sleep(forTimeInterval: 3)
                try Command.run(
                    "dd",
                    [
                        "if=/dev/zero", "of=" + changed.scratch, "bs=4096", "count=1",
                        "conv=notrunc", "status=none",
                    ]
                ).output()
            }
        }

        @Test("P1: a source that was replaced, cut short or changed ends the job")
        func source() throws {
            let other = try Rig()
            try other.expectFailed("is another file or device now") {
                try Command.run("cp", [other.disk, other.disk + ".copy"]).output()
                try Command.run("mv", [other.disk + ".copy", other.disk]).output()
            }
            let cut = try Rig()
            try cut.expectFailed("was cut from") {
                try Command.run("truncate", ["-s", "4M", cut.disk]).output()
            }
            let changed = try Rig()
            try changed.expectFailed("was changed while no server had it") {
                Thread.sleep(forTimeInterval: 3)
                try Command.run(
                    "dd",
                    [
                        "if=/dev/zero", "of=" + changed.disk, "bs=4096", "count=1",
                        "conv=notrunc", "status=none",
                    ]
                ).output()
            }
        }

        @Test("P1, P3: a sync that hung at the kill ends the job, and every block is dirty")
        func hungSync() throws {
            let system = try OneFileSystem(bytes: 4 << 20)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", system.path)])
            ])
            try server.cli(["checkpoint-create-as", "vm1", "c0"]).output()
            let job = try server.begin("vm1", disks: ["vda"], tag: "r")
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 7, count: 65536), at: 0)
            try system.failSyncs([EIO])
            system.hang()
            _ = try guest.startFlush()
            NBDClient.waitForActivity([guest], milliseconds: 500)
            Thread.sleep(forTimeInterval: 6)
            // The process goes when what it waits for has an answer.
            server.signal(SIGKILL)
            system.answer()
            server.kill()
            try server.start()
            let ended = try server.cli(
                ["domjobinfo", "vm1", "--completed", "--job", job.id]
            ).output()
            #expect(ended.contains("Failed") && ended.contains("had not ended"), "\(ended)")
            // The checkpoint stays, and nothing since is left out.
            let sizes = try server.cli(["checkpoint-dumpxml", "vm1", "c0", "--size"]).output()
            #expect(sizes.contains("4194304"), "\(sizes)")
            try server.stop()
        }

        @Test("P3: after a restart of the machine the job has failed and its checkpoint is gone")
        func reboot() throws {
            let rig = try Rig()
            let file = rig.server.directory.file("boot-id")
            try Files.write("11111111-2222-3333-4444-555555555555\n", to: file)
            rig.server.kill()
            rig.server.launcher = [
                "unshare", "-m", "sh", "-c",
                "mount --bind '\(file)' /proc/sys/kernel/random/boot_id && exec \"$@\"", "sh",
            ]
            try rig.server.start()
            #expect(!Files.exists(rig.scratch))
            try rig.expectGone("the machine was restarted")
        }

        @Test("P5: a job that was broken when its server was killed does not go on")
        func broken() throws {
            let rig = try Rig()
            // The page that is lost is told to the server by the end of its file.
            try Command.run("truncate", ["-s", "0", rig.disk]).output()
            var failure: NBDFailure?
            do { _ = try NBDClient(try rig.job.uri("vda")).read(4 << 20, 4096) } catch {
                failure = error as? NBDFailure
            }
            #expect(failure != nil)
            try NBDClient(rig.server.liveURI("vm1", "vda")).write([1], at: 6 << 20)
            let broken = try rig.server.cli(["domjobinfo", "vm1"]).output()
            #expect(broken.contains("Failed"), "\(broken)")
            rig.server.kill()
            try rig.server.start()
            let ended = try rig.server.cli(
                ["domjobinfo", "vm1", "--completed", "--job", rig.job.id]
            ).output()
            #expect(ended.contains("Failed") && ended.contains("could not be read"), "\(ended)")
            try rig.server.stop()
        }

        @Test("a ledger that is gone or damaged ends the job")
        func ledger() throws {
            let missing = try Rig()
            let ledgers = try Self.memoryFiles(missing.job)
            #expect(ledgers.count == 1)
            try missing.expectFailed("is gone from memory") { ledgers.forEach(Files.remove) }
            let damaged = try Rig()
            let file = try #require(try Self.memoryFiles(damaged.job).first)
            try damaged.expectFailed("is damaged") {
                try Command.run(
                    "dd",
                    [
                        "if=/dev/zero", "of=" + file, "bs=1", "seek=40", "count=8",
                        "conv=notrunc", "status=none",
                    ]
                ).output()
            }
            let newer = try Rig()
            let header = try #require(try Self.memoryFiles(newer.job).first)
            try newer.expectFailed("has version 9") {
                try Command.run(
                    "sh",
                    ["-c", "printf 9 | dd of='\(header)' bs=1 seek=15 conv=notrunc status=none"]
                ).output()
            }
        }

        private static func memoryFiles(_ job: BegunJob) throws -> [String] {
            try Command.run(
                "sh", ["-c", "ls /dev/shm/nbdpull-*/jobs-*/\(job.id).*"]
            ).output().split(separator: "\n").map(String.init)
        }

        @Test("a job ended well leaves nothing in memory, and neither does one that failed")
        func leftovers() throws {
            let rig = try Rig()
            #expect(try Self.memoryFiles(rig.job).count == 1)
            try rig.server.end("vm1", rig.job)
            #expect(throws: (any Error).self) { try Self.memoryFiles(rig.job) }
            let failed = try Rig()
            try failed.expectFailed("is gone") { Files.remove(failed.scratch) }
            #expect(throws: (any Error).self) { try Self.memoryFiles(failed.job) }
        }
    }
}
