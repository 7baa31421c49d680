import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Scratch whose server has something else by now than what was written to it.
    @Suite struct NetworkScratchContentTests {
        private static let bytes = 4 << 20
        private static let cluster = 16 << 10

        /// What has happened to it.
        enum Mischief: CaseIterable {
            /// A write that a job before had asked for is carried out only now.
            case lateWrite
            /// It is another server, which is empty.
            case emptied
            /// One byte is another, in a cluster of which others are read.
            case oneByte
            /// Two clusters of the job have changed places.
            case exchanged
        }

        private static func doMischief(_ kind: Mischief, _ server: UpstreamServer, _ file: String)
            throws
        {
            let late = try NBDClient(server.uri)
            switch kind {
            case .lateWrite: try late.write([UInt8](repeating: 7, count: cluster), at: 0)
            case .emptied:
                let handle = try #require(FileHandle(forWritingAtPath: file))
                try handle.truncate(atOffset: 0)
                try handle.truncate(atOffset: UInt64(bytes))
                try handle.close()
            case .oneByte:
                let last = cluster - 1
                try late.write([try late.read(last, 1)[0] ^ 1], at: last)
            case .exchanged:
                let both = try late.read(0, 2 * cluster)
                try late.write(Array(both[cluster...] + both[..<cluster]), at: 0)
            }
        }

        @Test(
            "P1: what is not what was written to scratch breaks the job, and no byte is handed out",
            arguments: Mischief.allCases)
        func foreign(kind: Mischief) throws {
            let directory = try TemporaryDirectory()
            let (path, file) = (directory.file("disk"), directory.file("scratch"))
            let content = try Images.random(path, bytes: Self.bytes, seed: 3)
            try Images.sparse(file, bytes: Self.bytes)
            let scratch = try UpstreamServer(.nbdkit([]), over: file)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])], in: directory)
            var backup = server.standardBackup(disks: ["vda"], tag: "one")
            backup.disks[0].scratchUpstream = scratch.socket
            let job = try server.begin("vm1", backup)
            // The first two slots are those of these clusters.
            let place = 1 << 20
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 9, count: 2 * Self.cluster), at: place)
            let client = try NBDClient(try job.uri("vda"))
            #expect(
                try client.read(place + 1, 2 * Self.cluster - 2)
                    == Array(content[place + 1..<place + 2 * Self.cluster - 1]))
            try Self.doMischief(kind, scratch, file)
            #expect(throws: NBDFailure.self) { try client.read(place + 100, 510) }
            let text = try server.cli(["domjobinfo", "vm1", "--job", job.id]).output()
            #expect(
                text.contains("scratch of disk 'vda' does not hold what was written to it"),
                "\(text)")
            #expect(throws: NBDFailure.self) { try client.read(0, Self.bytes) }
            try guest.write([1, 2, 3], at: place)
            #expect(try guest.read(place, 3) == [1, 2, 3])
            _ = try server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            try server.stop()
        }

        @Test("P2: a server that stops answering a client breaks the job, the machine being idle")
        func silent() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            _ = try Images.random(path, bytes: Self.bytes, seed: 3)
            let scratch = try UpstreamServer(
                .plugin(["memory", "\(Self.bytes)"]), over: "")
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--copy-timeout", "2"], in: directory)
            var backup = server.standardBackup(disks: ["vda"], tag: "one")
            backup.disks[0].scratchUpstream = scratch.socket
            let job = try server.begin("vm1", backup)
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 9, count: Self.cluster), at: 0)
            let client = try NBDClient(try job.uri("vda"))
            scratch.hang()
            let begun = Date()
            #expect(throws: NBDFailure.self) { try client.read(0, 512) }
            #expect((1.5..<8).contains(Date().timeIntervalSince(begun)))
            let text = try server.cli(["domjobinfo", "vm1", "--job", job.id]).output()
            #expect(text.contains("its NBD server has not answered for 2000 ms"), "\(text)")
            scratch.goOn()
            try guest.write([1, 2, 3], at: 0)
            _ = try server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            try server.stop()
        }
    }
}
