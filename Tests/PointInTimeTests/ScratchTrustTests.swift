import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Scratch that fails late, hangs, or lies where the machine needs the room.
    @Suite struct ScratchTrustTests {
        private static let mebibyte = 1 << 20

        private struct JobList: Decodable {
            struct Job: Decodable {
                let id: String
                let state: String
                let errorMessage: String?
            }
            let jobs: [Job]
        }

        private func job(_ id: String, of server: ServerUnderTest) throws -> JobList.Job {
            let list = try server.json(["backup-list"], as: JobList.self)
            return try #require(list.jobs.first { $0.id == id })
        }

        private func waitUntilBroken(_ id: String, of server: ServerUnderTest) throws -> String {
            for _ in 0..<100 {
                let job = try job(id, of: server)
                if job.state == "broken" { return job.errorMessage ?? "" }
                Thread.sleep(forTimeInterval: 0.05)
            }
            throw TestFailure("job \(id) is not broken: \(try job(id, of: server))")
        }

        /// Waits for guests' commands; returns how many ended well.
        private func succeeded(
            _ tickets: [(NBDClient, NBDTicket)], within seconds: Double
        ) -> Int {
            var left = tickets
            var count = 0
            let deadline = Date().addingTimeInterval(seconds)
            while !left.isEmpty, Date() < deadline {
                NBDClient.waitForActivity(left.map(\.0), milliseconds: 50)
                left.removeAll { client, ticket in
                    switch client.outcome(of: ticket) {
                    case nil: return false
                    case .done: count += 1
                    case .failed: break
                    }
                    return true
                }
            }
            return count
        }

        /// Overwrites 8 MiB, of which scratch on the device has to keep more than it can; returns
        /// the guest and what it wrote to each MiB.
        private func overwriteMore(
            than thin: ThinDevice, _ server: ServerUnderTest
        ) throws -> (guest: NBDClient, new: [UInt8]) {
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 0xEE, count: Self.mebibyte)
            for place in 0..<8 { try guest.write(new, at: place * Self.mebibyte) }
            try thin.forgetCache()
            return (guest, new)
        }

        private func disk(_ path: String, mebibytes: Int) throws -> DiskDescription {
            _ = try Images.mixed(path, bytes: mebibytes << 20, seed: RunSettings.seed)
            return DiskDescription("vda", path)
        }

        @Test(
            "P5: what scratch loses after it took it is an error, never other bytes",
            arguments: [false, true])
        func lostLater(asFile: Bool) throws {
            let thin = try ThinDevice(promises: 64, has: asFile ? 3 : 1)
            let directory = try TemporaryDirectory()
            let server = try ServerUnderTest([
                DomainDescription("vm1", [try disk(directory.file("vda"), mebibytes: 16)])
            ])
            let before = try Bytes.ofFile(directory.file("vda"))
            var backup = server.standardBackup(disks: ["vda"], tag: "thin")
            var mounted: String?
            defer { if let mounted { _ = try? Command.run("umount", ["-l", mounted]) } }
            if asFile {
                try Command.run(
                    "mkfs.ext4", ["-q", "-F", "-O", "^has_journal", "-m", "0", thin.path]
                ).output()
                let place = try directory.directory("mount")
                try Command.run("mount", [thin.path, place]).output()
                mounted = place
                backup.disks[0].scratch = place + "/scratch"
            } else {
                backup.disks[0].scratch = thin.path
                backup.disks[0].scratchIsBlockDevice = true
            }
            let job = try server.begin("vm1", backup)
            let (guest, new) = try overwriteMore(than: thin, server)
            if asFile { try thin.forgetCache() }

            let client = try NBDClient(try job.uri("vda"))
            var errors = 0
            for place in 0..<128 {
                let offset = place << 16
                do throws(NBDFailure) {
                    let bytes = try client.read(offset, 1 << 16)
                    #expect(
                        Bytes.firstDifference(bytes, at: 0, before, at: offset, count: 1 << 16)
                            == nil, "other bytes at \(offset)")
                } catch {
                    errors += 1
                }
            }
            #expect(errors > 0)
            let reason = try waitUntilBroken(job.id, of: server)
            #expect(reason.contains("lost") || reason.contains("written"), "\(reason)")
            // The guest's disk is as the guest left it.
            for place in 0..<8 {
                #expect(try guest.read(place * Self.mebibyte, Self.mebibyte) == new)
            }
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            try server.stop()
        }

        @Test("P5: scratch that has lost something breaks the job although nobody reads")
        func lostUnread() throws {
            let thin = try ThinDevice(promises: 64, has: 1)
            let directory = try TemporaryDirectory()
            let server = try ServerUnderTest([
                DomainDescription("vm1", [try disk(directory.file("vda"), mebibytes: 16)])
            ])
            var backup = server.standardBackup(disks: ["vda"], tag: "thin")
            backup.disks[0].scratch = thin.path
            backup.disks[0].scratchIsBlockDevice = true
            let job = try server.begin("vm1", backup)
            _ = try overwriteMore(than: thin, server)
            _ = try waitUntilBroken(job.id, of: server)
            // A device that had an error in an earlier job serves the next one as if nothing were.
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            let next = try server.begin("vm1", backup)
            Thread.sleep(forTimeInterval: 0.5)
            #expect(try self.job(next.id, of: server).state == "running")
            try server.end("vm1", next)
            try server.stop()
        }

        @Test("P2: scratch beside a thin disk gives way when the guest needs the room")
        func scratchBesideDisk() throws {
            let small = try TinyFileSystem(mebibytes: 40)
            let path = small.path + "/vda"
            try Images.sparse(path, bytes: 64 << 20)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            let old = [UInt8](repeating: 0x11, count: Self.mebibyte)
            let new = [UInt8](repeating: 0x22, count: Self.mebibyte)
            for place in 0..<16 { try guest.write(old, at: place * Self.mebibyte) }
            try guest.flush()
            let begun = try server.json(["backup-begin", "vm1"], as: BegunJob.self)
            for place in 0..<16 { try guest.write(new, at: place * Self.mebibyte) }
            for place in 16..<34 { try guest.write(new, at: place * Self.mebibyte) }
            try guest.flush()
            let reason = try waitUntilBroken(begun.id, of: server)
            #expect(reason.contains("gave way"), "\(reason)")
            for place in 0..<34 {
                #expect(try guest.read(place * Self.mebibyte, Self.mebibyte) == new)
            }
            let events = try server.cli(["event"]).output()
            #expect(events.contains("watermark"), "\(events)")
            // What the file system does not hold is refused as ever.
            var failure: NBDFailure?
            do throws(NBDFailure) {
                for place in 34..<44 { try guest.write(new, at: place * Self.mebibyte) }
            } catch { failure = error }
            #expect(failure?.code == ENOSPC)
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            try server.stop()
        }

        @Test("P2: a disk that comes beside scratch while its job runs has its room kept")
        func diskBesideScratch() throws {
            let small = try TinyFileSystem(mebibytes: 48)
            let directory = try TemporaryDirectory()
            let server = try ServerUnderTest(
                [
                    DomainDescription(
                        "vm1", [try disk(directory.file("vda"), mebibytes: 64)])
                ], options: ["--scratch-reserve", "16M"])
            var backup = server.standardBackup(disks: ["vda"], tag: "job")
            backup.disks[0].scratch = small.path + "/scratch"
            let job = try server.begin("vm1", backup)
            try Images.sparse(small.path + "/vdb", bytes: 64 << 20)
            try server.cli(["attach-disk", "vm1", small.path + "/vdb", "vdb"]).output()
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 0x22, count: Self.mebibyte)
            for place in 0..<64 { try guest.write(new, at: place * Self.mebibyte) }
            let reason = try waitUntilBroken(job.id, of: server)
            #expect(reason.contains("gave way"), "\(reason)")
            let other = try NBDClient(server.liveURI("vm1", "vdb"))
            for place in 0..<30 { try other.write(new, at: place * Self.mebibyte) }
            try other.flush()
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            try server.stop()
        }

        private static let hasBtrfs = Files.read("/proc/filesystems").contains("\tbtrfs\n")

        @Test(
            "P2: subvolumes of one btrfs share their room",
            .enabled(if: hasBtrfs, "this kernel has no btrfs"))
        func subvolumes() throws {
            let directory = try TemporaryDirectory()
            let image = directory.file("image")
            try Command.run(
                "sh",
                ["-c", "xz -dc Tests/faults/btrfs-subvolumes.img.xz > \(image)"]
            ).output()
            let device = try LoopDevice(over: image)
            let place = try directory.directory("mount")
            try Command.run("mount", [device.path, place]).output()
            defer { _ = try? Command.run("umount", ["-l", place]) }
            let path = place + "/a/vda"
            _ = try Images.mixed(path, bytes: 8 << 20, seed: RunSettings.seed)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--scratch-reserve", "100G"])
            var backup = server.standardBackup(disks: ["vda"], tag: "a")
            backup.disks[0].scratch = place + "/b/scratch"
            let refused = try server.cli(try server.beginArguments("vm1", backup))
            #expect(
                !refused.succeeded && refused.stderr.contains("also holds disk 'vm1/vda'"),
                "\(refused)")
            #expect(Files.listing(place + "/b").isEmpty)
            try server.stop()
        }

        @Test("P2: a job with healthy scratch is whole while another's scratch hangs")
        func laterJobBehindHungScratch() throws {
            let frozen = try TinyFileSystem(mebibytes: 64)
            let directory = try TemporaryDirectory()
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [try disk(directory.file("vda"), mebibytes: 16)])],
                options: ["--copy-timeout", "1"])
            var hung = server.standardBackup(disks: ["vda"], tag: "hung")
            hung.disks[0].scratch = frozen.path + "/scratch"
            let first = try server.begin("vm1", hung)
            try frozen.freeze()
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 0xEE, count: 1 << 16)
            try guest.write(new, at: 0)
            _ = try waitUntilBroken(first.id, of: server)
            let second = try server.begin("vm1", disks: ["vda"], tag: "healthy")
            let before = Date()
            for place in 0..<16 { try guest.write(new, at: place << 16) }
            #expect(Date().timeIntervalSince(before) < 0.9)
            #expect(try job(second.id, of: server).state == "running")
            let copy = try NBDClient(try second.uri("vda"))
            #expect(try copy.read(0, 1 << 16) == new)
            try frozen.thaw()
            _ = try server.cli(["backup-end", "vm1", "--job", first.id, "--failed"])
            try server.end("vm1", second)
            try server.stop()
        }

        @Test("P2: many hung scratch files hold up no disk without a job", arguments: [10])
        func hungScratchOfManyDisks(count: Int) throws {
            let frozen = try TinyFileSystem(mebibytes: 64)
            let directory = try TemporaryDirectory()
            let disks = try (0..<count).map { number in
                let name = "vd" + "abcdefghij".map(String.init)[number]
                var disk = try disk(directory.file(name), mebibytes: 4)
                disk.target = name
                return disk
            }
            let server = try ServerUnderTest(
                [
                    DomainDescription("vm1", disks),
                    DomainDescription("vm2", [try disk(directory.file("other"), mebibytes: 4)]),
                ], options: ["--rings", "1", "--copy-timeout", "1"])
            var backup = server.standardBackup(disks: disks.map(\.target), tag: "hung")
            for index in backup.disks.indices {
                backup.disks[index].scratch = frozen.path + "/scratch\(index)"
            }
            let job = try server.begin("vm1", backup)
            try frozen.freeze()
            let guests = try disks.map { try NBDClient(server.liveURI("vm1", $0.target)) }
            let other = try NBDClient(server.liveURI("vm2", "vda"))
            let new = [UInt8](repeating: 0xEE, count: 1 << 16)
            var tickets: [(NBDClient, NBDTicket)] = []
            for guest in guests {
                for place in 0..<8 {
                    tickets.append((guest, try guest.startWrite(new, at: place << 17)))
                }
            }
            for _ in 0..<5 {
                let before = Date()
                try other.write(new, at: 0, .forceUnitAccess)
                try other.flush()
                #expect(Date().timeIntervalSince(before) < 1)
                NBDClient.waitForActivity(guests, milliseconds: 100)
            }
            _ = try waitUntilBroken(job.id, of: server)
            #expect(succeeded(tickets, within: 10) == tickets.count)
            for guest in guests {
                try guest.write(new, at: 0)
                try guest.flush()
            }
            let before = Date()
            _ = try server.cli(["backup-end", "vm1", "--failed"])
            #expect(Date().timeIntervalSince(before) < 9)
            try frozen.thaw()
            try server.stop()
        }

        @Test("P6: more disks in jobs at once than their buffers would fit, on one ring")
        func manyDisksInJobs() throws {
            let directory = try TemporaryDirectory()
            let letters = "abcdefghij".map(String.init)
            let targets = (0..<150).map { number in
                "vd\(letters[number / 100])\(letters[number / 10 % 10])\(letters[number % 10])"
            }
            let disks = try targets.map { name in
                let path = directory.file(name)
                try Files.write(String(repeating: name, count: 39322), to: path)
                return DiskDescription(name, path)
            }
            let server = try ServerUnderTest(
                [DomainDescription("vm1", disks)],
                options: ["--rings", "1", "--copy-memory", "1M", "--max-connections", "400"])
            let job = try server.begin("vm1", disks: targets, tag: "many")
            let guests = try targets.map { try NBDClient(server.liveURI("vm1", $0)) }
            let new = [UInt8](repeating: 0xEE, count: 1 << 16)
            var tickets: [(NBDClient, NBDTicket)] = []
            for guest in guests {
                for place in 0..<3 {
                    tickets.append((guest, try guest.startWrite(new, at: place << 16)))
                }
            }
            #expect(succeeded(tickets, within: 30) == tickets.count)
            #expect(try self.job(job.id, of: server).state == "running")
            for target in targets {
                let copy = try NBDClient(try job.uri(target))
                #expect(
                    try copy.read(0, 196608)
                        == [UInt8](String(repeating: target, count: 39322).utf8.prefix(196608)))
            }
            try server.end("vm1", job)
            try server.stop()
        }
    }
}
