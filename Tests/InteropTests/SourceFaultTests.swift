import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Sources that do what files of a healthy file system never do.
    @Suite struct SourceFaultTests {
        private static let mebibyte = 1 << 20

        @Test(
            "P5: the read of a block's rest, cut off by a signal, is made again",
            arguments: [[EINTR], [EAGAIN], [EINTR, EINTR, EAGAIN, EINTR]])
        func edgeReads(errnos: [Int32]) throws {
            let system = try OneFileSystem(bytes: Self.mebibyte)
            var disk = DiskDescription("vda", system.path)
            disk.cache = .direct
            let server = try ServerUnderTest([DomainDescription("vm1", [disk])])
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            let old = [UInt8](repeating: 0x11, count: 64 << 10)
            try client.write(old, at: 0)
            // The first block is read, and the last.
            let new = [UInt8](repeating: 0x22, count: 9000)
            try system.failReads(errnos)
            try client.write(new, at: 1000)
            #expect(system.isThroughWithPlan)
            let found = try client.read(0, old.count)
            #expect(found == old[..<1000] + new + old[10_000...])
            // Any other error is the guest's to know, and its block stays as it was.
            try system.failReads([EIO])
            #expect(throws: NBDFailure.self) { try client.write(new, at: 40_001) }
            #expect(try client.read(0, old.count) == found)
            try client.disconnect()
            try server.stop()
        }

        @Test(
            "P2: a flush that a signal has cut off is made again, any other error is the guest's",
            arguments: [[EINTR], [EINTR, EINTR, EINTR]])
        func interruptedSyncs(errnos: [Int32]) throws {
            let system = try OneFileSystem(bytes: Self.mebibyte)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", system.path)])
            ])
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 0x11, count: 64 << 10), at: 0)
            try system.failSyncs(errnos)
            try guest.flush()
            #expect(system.isThroughWithPlan)
            // Storage that does nothing else is not asked for ever.
            try system.failSyncs([Int32](repeating: EINTR, count: 1000))
            #expect(throws: NBDFailure.self) { try guest.flush() }
            try system.failSyncs([])
            try guest.flush()
            try system.failSyncs([EINTR, EIO])
            #expect(throws: NBDFailure.self) { try guest.flush() }
            #expect(system.isThroughWithPlan)
            // P5: what is lost stays lost, however well the next sync goes.
            #expect(throws: NBDFailure.self) { try guest.flush() }
            try guest.disconnect()
            try server.stop()
        }

        /// Waits until the server tells a kind of event with this text.
        private func wait(for text: String, in server: ServerUnderTest) throws -> Bool {
            let end = Date().addingTimeInterval(30)
            while Date() < end {
                if try server.cli(["event"]).output().contains(text) { return true }
                Thread.sleep(forTimeInterval: 0.2)
            }
            return false
        }

        /// Whether a backup since `c1` is refused, for that reason.
        private func isGivenUp(_ server: ServerUnderTest, _ tag: String) throws -> Bool {
            var backup = server.standardBackup(disks: ["vda"], tag: tag)
            backup.incremental = "c1"
            let begun = try server.cli(try server.beginArguments("vm1", backup))
            return !begun.succeeded && begun.stderr.contains("c1")
        }

        @Test(
            "P3, P5: a sync of the server's own that fails costs the checkpoints and every later flush"
        )
        func ownSync() throws {
            let system = try OneFileSystem(bytes: Self.mebibyte)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", system.path)])
            ])
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.flush()
            // Nobody else syncs: the server does, before it takes marks out of the log.
            try system.failSyncs([EIO])
            #expect(try wait(for: "the disk has lost writes", in: server))
            #expect(system.isThroughWithPlan)
            for _ in 0..<2 { #expect(throws: NBDFailure.self) { try guest.flush() } }
            #expect(try wait(for: "disk-problem", in: server))
            #expect(try isGivenUp(server, "lost"))
            try? guest.disconnect()
            server.kill()
            try server.start()
            #expect(try isGivenUp(server, "later"))
            // Attached anew, the disk is as it is.
            let again = try NBDClient(server.liveURI("vm1", "vda"))
            try again.flush()
            try again.disconnect()
            try server.end("vm1", try server.begin("vm1", disks: ["vda"], tag: "full"))
            try server.stop()
        }

        @Test(
            "P3, P5: a device that loses what it took, served or not, costs the checkpoints and flushes",
            arguments: [true, false])
        func thinDevice(isServed: Bool) throws {
            let thin = try ThinDevice(promises: 32, has: 1)
            var disk = DiskDescription("vda", thin.path)
            disk.isBlockDevice = true
            let server = try ServerUnderTest([DomainDescription("vm1", [disk])])
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            let full = try server.begin("vm1", disks: ["vda"], tag: "running")
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 0xEE, count: Self.mebibyte)
            for place in 0..<16 { try guest.write(new, at: place * Self.mebibyte) }
            if isServed {
                try thin.forgetCache()
                #expect(try wait(for: "the disk has lost writes", in: server))
            } else {
                server.kill()
                try thin.forgetCache()
                try server.start()
                #expect(try wait(for: "were lost before it was attached", in: server))
                #expect(try wait(for: "were lost while no server had it", in: server))
            }
            #expect(try isGivenUp(server, "lost"))
            // What was to show the disk's instant cannot: its content has changed by itself.
            #expect(try !server.cli(["backup-end", "vm1", "--job", full.id]).succeeded)
            let other = try NBDClient(server.liveURI("vm1", "vda"))
            for _ in 0..<2 { #expect(throws: NBDFailure.self) { try other.flush() } }
            #expect(try wait(for: "disk-problem", in: server))
            server.kill()
            try server.start()
            #expect(try isGivenUp(server, "later"))
            server.kill()
        }

        @Test("what is no disk is refused as a source and as scratch: the kernel's files, our own")
        func reservedFiles() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.sparse(path, bytes: Self.mebibyte)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let state = server.stateDirectory
            let record = try #require(Files.listing(state + "/domains").first)
            let memory = "/dev/shm/nbdpull-\(geteuid())"
            let session = "\(memory)/\(try #require(Files.listing(memory).first))/session"
            try FileManager.default.createSymbolicLink(
                atPath: directory.file("link"), withDestinationPath: state + "/lock")
            let cases = [
                ("/proc/self/mem", "the kernel's own"), ("/proc/version", "the kernel's own"),
                ("/sys/kernel/notes", "the kernel's own"), (state + "/lock", "its own state"),
                (directory.file("link"), "its own state"),
                ("\(state)/domains/\(record)", "its own state"), (session, "its own state"),
            ]
            for (source, text) in cases {
                let file = directory.file("vm2.xml")
                try Files.write(
                    DomainDescription("vm2", [DiskDescription("vda", source)]).xml, to: file)
                let refused = try server.cli(["define", file])
                // Some of the kernel's files cannot even be opened for writing.
                #expect(
                    !refused.succeeded
                        && (refused.stderr.contains(text) || refused.stderr.contains("open: ")),
                    "\(source): \(refused)")
                var backup = server.standardBackup(disks: ["vda"], tag: "a")
                backup.disks[0].scratch = source
                let begun = try server.cli(
                    try server.beginArguments("vm1", backup) + ["--reuse-external"])
                #expect(!begun.succeeded, "\(source): \(begun)")
            }
            var backup = server.standardBackup(disks: ["vda"], tag: "b")
            backup.disks[0].scratch = state + "/domains/new.state"
            #expect(try !server.cli(try server.beginArguments("vm1", backup)).succeeded)
            #expect(Files.listing(state + "/domains") == [record])
            // Beside them there is room for anything.
            backup.disks[0].scratch = state + "/scratch"
            try server.end("vm1", try server.begin("vm1", backup))
            try server.stop()
            try server.start()
            try server.stop()
        }

        @Test("P5: scratch of a job is not served as a disk meanwhile", arguments: [false, true])
        func scratchAsSource(isReused: Bool) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.sparse(path, bytes: Self.mebibyte)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let backup = server.standardBackup(disks: ["vda"], tag: "a")
            let scratch = backup.disks[0].scratch
            if isReused { try Files.write("", to: scratch) }
            let begun = try server.cli(
                try server.beginArguments("vm1", backup)
                    + (isReused ? ["--reuse-external", "--json"] : ["--json"]))
            let job = try BegunJob(json: begun.output())
            let file = directory.file("vm2.xml")
            let link = directory.file("link")
            try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: scratch)
            for name in [scratch, link] {
                try Files.write(
                    DomainDescription("vm2", [DiskDescription("vda", name)]).xml, to: file)
                let refused = try server.cli(["define", file])
                #expect(
                    !refused.succeeded && refused.stderr.contains("it is scratch of ")
                        && refused.stderr.contains(job.id), "\(refused)")
            }
            try server.end("vm1", job)
            try server.stop()
        }

        @Test(
            "P5: what a source that was cut short has lost is an error in a backup, never zeros",
            arguments: [false, true])
        func cutShort(inMidst: Bool) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.random(path, bytes: 8 * Self.mebibyte, seed: 1)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let cut = { _ = try Command.run("truncate", ["-s", "2M", path]).output() }
            if !inMidst { try cut() }
            let job = try server.begin("vm1", disks: ["vda"], tag: "job")
            if inMidst { try cut() }
            let client = try NBDClient(try job.uri("vda"), .contexts("base:allocation"))
            let lost = try client.map("base:allocation").filter {
                $0.isHole && $0.end > 2 * Self.mebibyte
            }
            #expect(lost.isEmpty, "\(lost)")
            #expect(throws: NBDFailure.self) { try client.read(5 * Self.mebibyte, 4096) }
            try client.disconnect()
            let copy = try Command.run("nbdcopy", [try job.uri("vda"), directory.file("copy")])
            #expect(!copy.succeeded, "\(copy)")
            // Nor does a guest's zeroing pass for old zeros.
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.zero(3 * Self.mebibyte, Self.mebibyte)
            try guest.disconnect()
            #expect(throws: NBDFailure.self) {
                try NBDClient(try job.uri("vda")).read(3 * Self.mebibyte, 4096)
            }
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            try server.stop()
        }

        @Test("a source that this server serves under another name is named by its export")
        func otherNames() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.sparse(path, bytes: Self.mebibyte)
            try FileManager.default.linkItem(atPath: path, toPath: directory.file("hard"))
            try FileManager.default.createSymbolicLink(
                atPath: directory.file("soft"), withDestinationPath: path)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            for name in ["hard", "soft"] {
                let file = directory.file("vm2.xml")
                let other = DomainDescription(
                    "vm2", [DiskDescription("vdb", directory.file(name))])
                try Files.write(other.xml, to: file)
                let refused = try server.cli(["define", file])
                #expect(
                    !refused.succeeded
                        && refused.stderr.contains(
                            "is in use by this server: it is export 'vm1/vda'"),
                    "\(refused)")
            }
            // The same twice in one domain.
            let twice = DomainDescription(
                "vm3",
                [
                    DiskDescription("vda", directory.file("x")),
                    DiskDescription("vdb", directory.file("y")),
                ])
            try Images.sparse(directory.file("x"), bytes: Self.mebibyte)
            try FileManager.default.linkItem(
                atPath: directory.file("x"), toPath: directory.file("y"))
            try Files.write(twice.xml, to: directory.file("vm3.xml"))
            let refused = try server.cli(["define", directory.file("vm3.xml")])
            #expect(!refused.succeeded && refused.stderr.contains("vm3/vda"), "\(refused)")
            try server.stop()
        }
    }
}
