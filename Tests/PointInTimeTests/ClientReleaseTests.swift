import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Jobs whose clients let go of what they have (`--client-release`).
    @Suite struct ClientReleaseTests {
        private static let bytes = 16 << 20
        private static let mebibyte = 1 << 20

        /// A server with one disk of random bytes and a job over it.
        private final class Rig {
            let directory: TemporaryDirectory
            let content: [UInt8]
            let server: ServerUnderTest
            let job: BegunJob
            let guest: NBDClient
            let client: NBDClient
            var scratch: String { server.directory.file("scratch-r-vda") }

            init(options: [String]) throws {
                directory = try TemporaryDirectory()
                let path = directory.file("disk")
                content = try Images.random(path, bytes: ClientReleaseTests.bytes, seed: 9)
                server = try ServerUnderTest([
                    DomainDescription("vm1", [DiskDescription("vda", path)])
                ])
                let backup = server.standardBackup(disks: ["vda"], tag: "r")
                let begun = try server.cli(
                    try server.beginArguments("vm1", backup) + options + ["--json"]
                ).output()
                job = try BegunJob(json: begun)
                guest = try NBDClient(server.liveURI("vm1", "vda"))
                client = try NBDClient(try job.uri("vda"), .unchecked)
            }

            /// The guest overwrites a range with bytes that were never there.
            func overwrite(_ range: Range<Int>) throws {
                try guest.write([UInt8](repeating: 0x5A, count: range.count), at: range.lowerBound)
            }

            func scratchBytes() throws -> Int {
                let facts = try FileManager.default.attributesOfItem(atPath: scratch)
                return (facts[.size] as? Int) ?? -1
            }

            func expectKept(_ range: Range<Int>) throws {
                let read = try client.read(range.lowerBound, range.count)
                #expect(read == Array(content[range]))
            }

            func expectDenied(_ offset: Int, _ count: Int) {
                var failure: NBDFailure?
                do { _ = try client.read(offset, count) } catch { failure = error }
                #expect(failure?.code == EIO, "\(offset) is still served")
            }
        }

        @Test("an export takes no TRIM unless its job was begun so, and never a WRITE")
        func offByDefault() throws {
            let plain = try Rig(options: [])
            #expect(plain.client.isReadOnly && !plain.client.canTrim)
            #expect(throws: NBDFailure.self) { try plain.client.trim(0, 65536) }
            try plain.expectKept(0..<65536)
            try plain.server.stop()

            let rig = try Rig(options: ["--client-release"])
            #expect(!rig.client.isReadOnly && rig.client.canTrim && !rig.client.canZero)
            for attempt in 0..<2 {
                var failure: NBDFailure?
                do {
                    if attempt == 0 { try rig.client.write([1], at: 0) }
                    if attempt == 1 { try rig.client.zero(0, 4096) }
                } catch { failure = error }
                #expect(failure?.code == (attempt == 0 ? EPERM : EINVAL))
            }
            try rig.expectKept(0..<65536)
            try rig.server.stop()
        }

        @Test("P5: what was let go of is denied, everything else is the point in time's")
        func denied() throws {
            let rig = try Rig(options: ["--client-release"])
            let cluster = 16384
            try rig.overwrite(0..<(4 * cluster))
            // Whole clusters only: a byte less on either side keeps the cluster.
            try rig.client.trim(cluster + 1, 3 * cluster - 1)
            try rig.expectKept(0..<(2 * cluster))
            rig.expectDenied(2 * cluster, 1)
            rig.expectDenied(0, 8 * cluster)
            try rig.expectKept((4 * cluster)..<(6 * cluster))
            // The disk's end closes the last cluster.
            try rig.client.trim(Self.bytes - cluster, cluster)
            rig.expectDenied(Self.bytes - 1, 1)
            try rig.expectKept((4 * cluster)..<(Self.bytes - cluster))
            try rig.server.stop()
        }

        @Test(
            "P4: a guest write to what was let go of copies nothing, and free scratch is used again"
        )
        func frugal() throws {
            let rig = try Rig(options: ["--client-release"])
            let half = Self.bytes / 2
            try rig.client.trim(0, half)
            try rig.overwrite(0..<half)
            #expect(try rig.scratchBytes() == 0)
            // A mebibyte after the other: overwritten, read back from scratch, let go of.
            for start in stride(from: half, to: Self.bytes, by: Self.mebibyte) {
                let range = start..<(start + Self.mebibyte)
                try rig.overwrite(range)
                try rig.expectKept(range)
                try rig.client.trim(start, Self.mebibyte)
                rig.expectDenied(start, 512)
            }
            #expect(try rig.scratchBytes() == Self.mebibyte)
            #expect(try rig.guest.read(0, Self.bytes).allSatisfy { $0 == 0x5A })
            try rig.server.stop()
        }

        @Test(
            "P1: pulled and let go of under a storm, with a second reader in the way",
            arguments: [false, true])
        func storm(isRemote: Bool) throws {
            let rig = try StressRig(mebibytes: 16)
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "release")
            // Slots are used again while readers may still ask for what they had.
            var servers: [UpstreamServer] = []
            for index in backup.disks.indices where isRemote {
                let file = rig.directory.file("remote-\(index)")
                try Images.sparse(file, bytes: 16 << 20)
                servers.append(
                    try UpstreamServer(
                        .nbdkit(["--filter=delay", "wdelay=1ms", "rdelay=1ms"]), over: file))
                backup.disks[index].scratchUpstream = servers[index].socket
            }
            let arguments = try rig.server.beginArguments("vm1", backup)
            let window = rig.writer.openWindow()
            let begin = try rig.server.startCLI(arguments + ["--client-release", "--json"])
            let begun = try rig.writer.run(beside: begin, timeout: 60)
            try rig.writer.closeWindow(window)
            let job = try BegunJob(json: try begun.output())
            let script = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().appending(path: "clients/pull-and-release").path
            for (index, target) in StressRig.targets.enumerated() {
                let copy = rig.directory.file("released-\(target)")
                let pull = try Command("/usr/bin/python3", [script, try job.uri(target), copy])
                let result = try rig.writer.run(beside: pull, timeout: 60)
                #expect(result.succeeded, "\(result)")
                try window.verify(
                    disk: index, image: try Bytes.ofFile(copy), name: "\(target), seed \(rig.seed)")
            }
            try window.verifyOneInstant()
            try rig.end(job)
            try rig.finish()
        }
    }
}
