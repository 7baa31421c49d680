import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Servers that are refused as scratch, before anything has begun.
    @Suite struct NetworkScratchRefusalTests {
        private static let bytes = (4 << 20) + 512

        /// A domain with one disk, and how a job with such scratch is refused.
        private final class Rig {
            let server: ServerUnderTest
            let directory: TemporaryDirectory

            init(
                options: [String] = [], _ prepare: (inout DiskDescription) throws -> Void = { _ in }
            ) throws {
                directory = try TemporaryDirectory()
                let path = directory.file("disk")
                _ = try Images.random(path, bytes: bytes, seed: 3)
                var disk = DiskDescription("vda", path)
                try prepare(&disk)
                let other = directory.file("other")
                _ = try Images.random(other, bytes: bytes, seed: 4)
                server = try ServerUnderTest(
                    [DomainDescription("vm1", [disk, DiskDescription("vdb", other)])],
                    options: options, in: directory)
            }

            func backup(
                _ socket: String, tag: String, disks: [String] = ["vda"], name: String = ""
            ) -> BackupDescription {
                var backup = server.standardBackup(disks: disks, tag: tag)
                for index in backup.disks.indices {
                    backup.disks[index].scratchUpstream = socket
                    backup.disks[index].scratchExport = name
                }
                return backup
            }

            func expectRefused(
                _ reason: String, _ backup: BackupDescription
            ) throws {
                let before = try server.cli(["backup-list", "vm1"]).output()
                let result = try server.cli(try server.beginArguments("vm1", backup))
                #expect(!result.succeeded, "it began")
                #expect(result.stderr.contains(reason), "\(result.stderr)")
                #expect(try server.cli(["backup-list", "vm1"]).output() == before)
                try NBDClient(server.liveURI("vm1", "vda")).write([1, 2, 3], at: 0)
            }
        }

        @Test("P5: scratch that is smaller than the disk is refused with both sizes")
        func tooSmall() throws {
            let rig = try Rig()
            let small = try UpstreamServer(.plugin(["memory", "\(4 << 20)"]), over: "")
            try rig.expectRefused(
                "it has 4194304 bytes, and disk 'vda' needs 4210688",
                rig.backup(small.socket, tag: "one"))
            let enough = try UpstreamServer(.plugin(["memory", "4210688"]), over: "")
            try rig.server.end(
                "vm1", try rig.server.begin("vm1", rig.backup(enough.socket, tag: "two")))
            try rig.server.stop()
        }

        @Test("P5: scratch that nobody may write is refused, and so is one that is not there")
        func readOnly() throws {
            let rig = try Rig()
            let server = try UpstreamServer(.plugin(["-r", "memory", "8M"]), over: "")
            try rig.expectRefused(
                "its server lets nobody write to it", rig.backup(server.socket, tag: "one"))
            try rig.expectRefused(
                "No such file or directory",
                rig.backup(rig.directory.file("nobody.sock"), tag: "two"))
            try rig.server.stop()
        }

        @Test("P5: a disk's source and another job's scratch are refused, by any name")
        func taken() throws {
            let directory = try TemporaryDirectory()
            let file = directory.file("upstream")
            _ = try Images.random(file, bytes: Self.bytes, seed: 5)
            let source = try UpstreamServer(.nbdkit([]), over: file)
            let rig = try Rig { $0.upstreamSocket = source.socket }
            try rig.expectRefused(
                "is the source of disk 'vda'", rig.backup(source.socket, tag: "own"))
            let link = directory.file("link.sock")
            try FileManager.default.createSymbolicLink(
                atPath: link, withDestinationPath: source.socket)
            try rig.expectRefused(
                "it is the source of disk 'vm1/vda'", rig.backup(link, tag: "link"))
            // Started again, its socket is another file; something else has the number of the first.
            source.kill()
            Files.remove(source.socket)
            try Files.write("", to: source.socket + ".other")
            try source.start()
            try rig.expectRefused(
                "it is the source of disk 'vm1/vda'", rig.backup(link, tag: "again"))
            let memory = try UpstreamServer(.plugin(["memory", "8M"]), over: "")
            try rig.expectRefused(
                "exists", rig.backup(memory.socket, tag: "twice", disks: ["vda", "vdb"]))
            let job = try rig.server.begin("vm1", rig.backup(memory.socket, tag: "one"))
            try rig.expectRefused(
                "it is scratch of backup job \(job.id)",
                rig.backup(memory.socket, tag: "two", disks: ["vdb"]))
            let other = directory.file("other.sock")
            try FileManager.default.createSymbolicLink(
                atPath: other, withDestinationPath: memory.socket)
            try rig.expectRefused(
                "it is scratch of backup job \(job.id)",
                rig.backup(other, tag: "three", disks: ["vdb"]))
            // Nor is it served as a disk meanwhile.
            var disk = DiskDescription("vdc", file)
            disk.upstreamSocket = memory.socket
            try Files.write(
                DomainDescription("vm2", [disk]).xml, to: directory.file("vm2.xml"))
            let defined = try rig.server.cli(["define", directory.file("vm2.xml")])
            #expect(!defined.succeeded)
            #expect(defined.stderr.contains("scratch of"), "\(defined.stderr)")
            try rig.server.end("vm1", job)
            let next = try rig.server.begin(
                "vm1", rig.backup(memory.socket, tag: "four", disks: ["vdb"]))
            try rig.server.end("vm1", next)
            try rig.server.stop()
        }

        @Test("P5: a disk that another server has is refused as scratch, and as another disk")
        func away() throws {
            let rig = try Rig()
            let file = rig.directory.file("upstream")
            _ = try Images.random(file, bytes: 8 << 20, seed: 6)
            let before = try Bytes.ofFile(file)
            let source = try UpstreamServer(.nbdkit([]), over: file)
            var disk = DiskDescription("vdc", file)
            disk.upstreamSocket = source.socket
            let (second, third) = (rig.directory.file("vm2.xml"), rig.directory.file("vm3.xml"))
            try Files.write(DomainDescription("vm2", [disk]).xml, to: second)
            try Files.write(DomainDescription("vm3", [disk]).xml, to: third)
            try rig.server.cli(["define", second]).output()
            try rig.server.cli(["disk-export-state", "vm2", rig.directory.file("vm2.moved")])
                .output()
            let link = rig.directory.file("link.sock")
            try FileManager.default.createSymbolicLink(
                atPath: link, withDestinationPath: source.socket)
            for (socket, tag) in [(source.socket, "one"), (link, "two")] {
                try rig.expectRefused(
                    "it is the source of disk 'vm2/vdc'", rig.backup(socket, tag: tag))
            }
            let defined = try rig.server.cli(["define", third])
            #expect(!defined.succeeded)
            #expect(defined.stderr.contains("which another server has"), "\(defined.stderr)")
            #expect(try Bytes.ofFile(file) == before)
            // Given up here, it is whatever the operator takes it for.
            try rig.server.cli(["undefine", "vm2"]).output()
            try rig.server.end(
                "vm1", try rig.server.begin("vm1", rig.backup(source.socket, tag: "three")))
            try rig.server.stop()
        }

        @Test("P5: this server's own exports are refused as scratch")
        func own() throws {
            let port = Ports.free()
            let rig = try Rig(options: ["--live-tcp", "127.0.0.1:\(port)"])
            try rig.expectRefused(
                "this very server listens there",
                rig.backup(rig.server.liveSocket, tag: "one", name: "vm1/vdb"))
            var backup = rig.server.standardBackup(disks: ["vda"], tag: "two")
            backup.disks[0].scratchPort = port
            backup.disks[0].scratchExport = "vm1/vdb"
            try rig.expectRefused("this very server listens there", backup)
            try rig.server.stop()
        }

        @Test(
            "P5: this server's own exports are refused by any of the host's addresses",
            arguments: ["127.0.0.2", "127.0.1.1"])
        func ownByOtherAddresses(host: String) throws {
            let port = Ports.free()
            let rig = try Rig(options: ["--live-tcp", "0.0.0.0:\(port)", "--allow-plaintext"])
            var backup = rig.server.standardBackup(disks: ["vda"], tag: "one")
            backup.disks[0].scratchHost = host
            backup.disks[0].scratchPort = port
            backup.disks[0].scratchExport = "vm1/vdb"
            try rig.expectRefused("this very server listens there", backup)
            try rig.server.stop()
        }

        @Test("P1: scratch by TCP, under one of its host's names at a time")
        func overTCP() throws {
            let rig = try Rig()
            let port = Ports.free()
            let server = try Command("nbdkit", ["-f", "-p", "\(port)", "memory", "8M"])
            defer { server.kill() }
            var backup = rig.server.standardBackup(disks: ["vda"], tag: "one")
            backup.disks[0].scratchPort = port
            let before = try Bytes.ofFile(rig.directory.file("disk"))
            var begun: BegunJob?
            let end = Date().addingTimeInterval(10)
            while begun == nil, Date() < end {
                begun = try? rig.server.begin("vm1", backup)
            }
            let job = try #require(begun)
            try NBDClient(rig.server.liveURI("vm1", "vda")).write(
                [UInt8](repeating: 9, count: 3 << 20), at: 12_345)
            #expect(try NBDClient(try job.uri("vda")).read(0, Self.bytes) == before)
            var other = rig.server.standardBackup(disks: ["vdb"], tag: "two")
            other.disks[0].scratchPort = port
            for host in ["localhost", "127.0.0.2"] {
                other.disks[0].scratchHost = host
                try rig.expectRefused("it is scratch of backup job \(job.id)", other)
            }
            try rig.server.end("vm1", job)
            try rig.server.stop()
        }

        @Test("P5: scratch by TLS with a pre-shared key")
        func secure() throws {
            let rig = try Rig()
            let keys = rig.directory.file("keys.psk")
            try Files.write(
                "alice:" + String(repeating: "0123456789abcdef", count: 4) + "\n", to: keys)
            let server = try UpstreamServer(
                .plugin(["--tls=require", "--tls-psk=\(keys)", "memory", "8M"]), over: "")
            var backup = rig.backup(server.socket, tag: "one")
            try rig.expectRefused("TLS", backup)
            backup.disks[0].scratchKeys = keys
            let job = try rig.server.begin("vm1", backup)
            let before = try Bytes.ofFile(rig.directory.file("disk"))
            try NBDClient(rig.server.liveURI("vm1", "vda")).write(
                [UInt8](repeating: 9, count: 1 << 20), at: 1 << 20)
            let client = try NBDClient(try job.uri("vda"))
            #expect(try client.read(0, Self.bytes) == before)
            let xml = try rig.server.cli(["backup-dumpxml", "vm1", "--job", job.id]).output()
            #expect(xml.contains("tls='yes'") && xml.contains("psk='\(keys)'"), "\(xml)")
            try rig.server.end("vm1", job)
            try rig.server.stop()
        }
    }
}
