import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Old content that is kept on other NBD servers.
    @Suite struct NetworkScratchTests {
        /// A server for each disk's scratch.
        private static func servers(
            _ program: UpstreamServer.Program, _ directory: TemporaryDirectory, mebibytes: Int = 32
        ) throws -> [UpstreamServer] {
            try StressRig.targets.map { target throws in
                let file = directory.file("remote-" + target)
                if !Files.exists(file) { try Images.sparse(file, bytes: mebibytes << 20) }
                return try UpstreamServer(program, over: file)
            }
        }

        private static func backup(
            _ rig: StressRig, _ scratch: [UpstreamServer], tag: String
        ) -> BackupDescription {
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: tag)
            for index in backup.disks.indices {
                backup.disks[index].scratchUpstream = scratch[index].socket
            }
            return backup
        }

        @Test(
            "P1: pulls with scratch on another NBD server are the disks at one instant",
            arguments: [
                (UpstreamServer.Program.plugin(["memory", "32M"]), GuestKind.nbd),
                (.plugin(["memory", "32M"]), .vhost),
                (
                    .nbdkit([
                        "--filter=blocksize-policy", "blocksize-minimum=4096",
                        "blocksize-maximum=65536", "blocksize-error-policy=error",
                    ]), .nbd
                ),
                (.nbdkit(["--filter=delay", "wdelay=5ms", "rdelay=5ms"]), .nbd),
                (.qemu([]), .nbd),
            ])
        func pulls(program: UpstreamServer.Program, guest: GuestKind) throws {
            let rig = try StressRig(guest: guest)
            let scratch = try Self.servers(program, rig.directory)
            try rig.writer.run(seconds: 0.3)
            // The second job finds what the first one has left.
            for tag in ["one", "two"] {
                let (job, window) = try rig.begin(Self.backup(rig, scratch, tag: tag))
                try rig.writer.run(seconds: RunSettings.stressSeconds(default: 0.5))
                let images = try rig.verify(job, window, name: tag)
                // Scratch may have larger blocks than what a client reads.
                let client = try NBDClient(try job.uri("vda"))
                for (place, count) in [(1, 510), (4095, 2), (70_001, 300_003), (16_383, 16_386)] {
                    #expect(
                        try client.read(place, count) == Array(images[0][place..<place + count]))
                }
                let xml = try rig.server.cli(["backup-dumpxml", "vm1", "--job", job.id]).output()
                #expect(xml.contains("<scratch protocol='nbd'"), "\(xml)")
                #expect(xml.contains("socket='\(scratch[0].socket)'"), "\(xml)")
                try rig.end(job)
            }
            try rig.finish()
        }

        @Test("P1, P3: disk and scratch on other servers, full and incremental")
        func both() throws {
            let rig = try StressRig(.upstream, mebibytes: 16)
            let scratch = try Self.servers(.nbdkit([]), rig.directory, mebibytes: 16)
            try rig.writer.run(seconds: 0.3)
            let (full, window) = try rig.begin(
                Self.backup(rig, scratch, tag: "c0"), checkpoint: "c0")
            try rig.writer.run(seconds: 0.3)
            var images = try rig.verify(full, window, name: "full")
            try rig.end(full)
            try rig.writer.run(seconds: 0.2)
            var backup = Self.backup(rig, scratch, tag: "c1")
            backup.incremental = "c0"
            let (job, next) = try rig.begin(backup, checkpoint: "c1")
            try rig.writer.run(seconds: 0.2)
            for (index, target) in StressRig.targets.enumerated() {
                images[index] = try rig.apply(job, target, to: images[index]).image
                try next.verify(disk: index, image: images[index], name: "c1 \(target)")
            }
            try next.verifyOneInstant()
            try rig.end(job)
            try rig.finish()
        }

        // MARK: The guest first

        /// Fails unless the job is broken for this reason, and the machine and a next job go on.
        private func expectBroken(_ rig: StressRig, _ job: BegunJob, _ reason: String) throws {
            try rig.writer.run(seconds: 0.3)
            let end = Date().addingTimeInterval(10)
            var text = ""
            while Date() < end {
                text = try rig.server.cli(["domjobinfo", "vm1", "--job", job.id]).output()
                if text.contains(reason) { break }
                Thread.sleep(forTimeInterval: 0.05)
            }
            #expect(text.contains(reason), "\(text)")
            let client = try NBDClient(try job.uri("vda"))
            #expect(throws: NBDFailure.self) { try client.read(0, 4096) }
            _ = try rig.server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            let (next, window) = try rig.begin(tag: "next")
            _ = try rig.verify(next, window, name: "next")
            try rig.end(next)
            try rig.finish()
        }

        @Test(
            "P2: scratch whose server is killed breaks the job, never the guest",
            arguments: [false, true], GuestKind.allCases)
        func killed(isIdle: Bool, guest: GuestKind) throws {
            let rig = try StressRig(guest: guest, mebibytes: 16)
            let scratch = try Self.servers(.plugin(["memory", "16M"]), rig.directory)
            let (job, _) = try rig.begin(Self.backup(rig, scratch, tag: "one"))
            try rig.writer.run(seconds: 0.2)
            if isIdle { try rig.writer.drain() }
            rig.writer.resetSlowest()
            scratch[0].kill()
            if isIdle {
                Thread.sleep(forTimeInterval: 1)
                let text = try rig.server.cli(["domjobinfo", "vm1", "--job", job.id]).output()
                #expect(text.contains("connection to its NBD server broke"), "\(text)")
            }
            // It comes back empty, and is not believed.
            try scratch[0].start()
            try rig.writer.run(seconds: 0.5)
            #expect(rig.writer.slowest < .seconds(5), "\(rig.writer.slowest)")
            try expectBroken(rig, job, "connection to its NBD server broke")
        }

        @Test(
            "P2: scratch that hangs holds a guest write for the limit only",
            arguments: GuestKind.allCases)
        func hung(guest: GuestKind) throws {
            let rig = try StressRig(guest: guest, mebibytes: 16, options: ["--copy-timeout", "2"])
            let scratch = try Self.servers(.plugin(["memory", "16M"]), rig.directory)
            let (job, _) = try rig.begin(Self.backup(rig, scratch, tag: "one"))
            try rig.writer.run(seconds: 0.2)
            // A client whose read hangs is told, too.
            let client = try NBDClient(try job.uri("vdb"))
            for server in scratch { server.hang() }
            let read = try client.startRead(0, 1 << 20)
            rig.writer.resetSlowest()
            try rig.writer.run(seconds: 4)
            try rig.writer.drain(timeout: 20)
            #expect(rig.writer.slowest < .seconds(6), "\(rig.writer.slowest)")
            let end = Date().addingTimeInterval(10)
            var isAnswered = false
            while !isAnswered, Date() < end {
                NBDClient.waitForActivity([client], milliseconds: 100)
                isAnswered = client.outcome(of: read) != nil
            }
            #expect(isAnswered, "a read hangs")
            for server in scratch { server.goOn() }
            try expectBroken(rig, job, "2000 ms")
        }

        @Test(
            "P2: an error of scratch's server breaks the job, never the guest",
            arguments: ["EIO", "ENOSPC"])
        func errors(error: String) throws {
            let rig = try StressRig(mebibytes: 16)
            let trigger = rig.directory.file("fail")
            let scratch = try Self.servers(
                .nbdkit([
                    "--filter=error", "error-pwrite=\(error)", "error-pwrite-rate=1",
                    "error-pwrite-file=\(trigger)",
                ]), rig.directory, mebibytes: 16)
            let (job, _) = try rig.begin(Self.backup(rig, scratch, tag: "one"))
            try rig.writer.run(seconds: 0.2)
            try Files.write("", to: trigger)
            try rig.writer.run(seconds: 0.3)
            try expectBroken(
                rig, job, error == "EIO" ? "Input/output error" : "No space left on device")
        }

        @Test("P5: what cannot be read back from scratch breaks the job")
        func readErrors() throws {
            let rig = try StressRig(mebibytes: 16)
            let trigger = rig.directory.file("fail")
            let scratch = try Self.servers(
                .nbdkit([
                    "--filter=error", "error-pread=EIO", "error-pread-rate=1",
                    "error-pread-file=\(trigger)",
                ]), rig.directory, mebibytes: 16)
            let (job, _) = try rig.begin(Self.backup(rig, scratch, tag: "one"))
            try rig.writer.run(seconds: 0.5)
            try Files.write("", to: trigger)
            let copy = rig.directory.file("copy")
            let command = try Command("nbdcopy", [try job.uri("vda"), copy])
            let result = try rig.writer.run(beside: command)
            #expect(!result.succeeded)
            try expectBroken(rig, job, "could not be read")
        }

        // MARK: The end of the server

        @Test("P5: a job with such scratch ends with its server, which says so before")
        func serverKilled() throws {
            let rig = try StressRig(mebibytes: 8)
            let scratch = try Self.servers(.plugin(["memory", "8M"]), rig.directory)
            let (job, _) = try rig.begin(
                Self.backup(rig, scratch, tag: "one"), checkpoint: "c1")
            try rig.writer.run(seconds: 0.2)
            let events = try rig.server.cli(["event"]).output()
            #expect(events.contains("is on an NBD server"), "\(events)")
            try rig.writer.drain()
            let newcomer = try rig.server.startNewcomer().result(timeout: 60)
            #expect(!newcomer.succeeded)
            #expect(newcomer.stderr.contains("is on an NBD server"), "\(newcomer.stderr)")
            rig.server.kill()
            try rig.restart()
            let ended = try rig.server.cli(
                ["domjobinfo", "vm1", "--completed", "--job", job.id]
            ).output()
            #expect(
                ended.contains("Failed") && ended.contains("is on an NBD server"), "\(ended)")
            let checkpoints = try rig.server.cli(["checkpoint-list", "vm1", "--name"]).output()
            #expect(!checkpoints.contains("c1"), "its checkpoint is there")
            let (next, window) = try rig.begin(Self.backup(rig, scratch, tag: "two"))
            try rig.writer.run(seconds: 0.2)
            _ = try rig.verify(next, window, name: "after the kill")
            try rig.end(next)
            try rig.finish()
        }

        // MARK: Ceph

        @Test("P1, P2: disk and scratch are images of a Ceph cluster")
        func ceph() throws {
            let rig = try StressRig(.rbd, mebibytes: 8, largestBytes: 1 << 18)
            try rig.makeScratchImages(mebibytes: 8)
            func backup(_ tag: String) throws -> BackupDescription {
                var backup = rig.server.standardBackup(disks: StressRig.targets, tag: tag)
                for index in backup.disks.indices {
                    backup.disks[index].scratchImage = try rig.scratchImage(index)
                }
                return backup
            }
            try rig.writer.run(seconds: 0.3)
            for tag in ["one", "two"] {
                let (job, window) = try rig.begin(try backup(tag))
                try rig.writer.run(seconds: 0.3)
                _ = try rig.verify(job, window, name: tag)
                try rig.end(job)
            }
            let (job, _) = try rig.begin(try backup("three"))
            try rig.writer.run(seconds: 0.2)
            try Command.run(
                "pkill", ["-9", "-f", "qemu-storage-daemon.*\"image\":\"scratch-vda\""]
            ).output()
            try expectBroken(rig, job, "connection to its NBD server broke")
        }
    }
}
