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
