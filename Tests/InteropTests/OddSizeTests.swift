import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Disks of no bytes, and of sizes that O_DIRECT has no blocks for.
    @Suite struct OddSizeTests {
        @Test("an empty file is a disk of no bytes", arguments: ["buffered", "none"])
        func empty(cache: String) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            try Files.write("", to: path)
            let export = try ExportUnderTest(path, options: ["--cache", cache])
            let client = try NBDClient(export.uri, .contexts("base:allocation"))
            #expect(client.sizeBytes == 0)
            try client.flush()
            #expect(throws: NBDFailure.self) { try client.write([1], at: 0) }
            let copy = directory.file("copy")
            try Command.run("nbdcopy", [export.uri, copy]).output()
            try Command.run("nbdcopy", [path, export.uri]).output()
            try Command.run("nbdinfo", ["--map", export.uri]).output()
            #expect(try Bytes.ofFile(copy).isEmpty && Bytes.ofFile(path).isEmpty)
            try export.stop()
        }

        @Test("a domain's empty disk is served and backed up, and cannot be tracked")
        func emptyDisk() throws {
            let directory = try TemporaryDirectory()
            let full = directory.file("vda.img")
            let empty = directory.file("vdb.img")
            let content = try Images.mixed(full, bytes: 1 << 20, seed: 1)
            try Files.write("", to: empty)
            let server = try ServerUnderTest([
                DomainDescription(
                    "vm1", [DiskDescription("vda", full), DiskDescription("vdb", empty)])
            ])
            #expect(try NBDClient(server.liveURI("vm1", "vdb")).sizeBytes == 0)
            let job = try server.begin("vm1", disks: ["vda", "vdb"], tag: "job")
            #expect(try NBDClient(try job.uri("vdb")).sizeBytes == 0)
            #expect(try NBDClient(try job.uri("vda")).read(0, 1 << 20) == content)
            try server.end("vm1", job)
            let tracked = try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"])
            #expect(!tracked.succeeded && tracked.stderr.contains("empty"), "\(tracked)")
            try server.stop()
        }

        @Test("what is said in memory of a disk's tracking goes with the disk, untracked or not")
        func sessionsGo() throws {
            let directory = try TemporaryDirectory()
            try Images.sparse(directory.file("vda"), bytes: 1 << 20)
            for name in ["vdb", "vdc"] { try Files.write("", to: directory.file(name)) }
            let server = try ServerUnderTest([
                DomainDescription(
                    "vm1",
                    ["vda", "vdb", "vdc"].map { DiskDescription($0, directory.file($0)) })
            ])
            func sessions() -> [String] {
                let memory = "/dev/shm/nbdpull-\(geteuid())"
                return Files.listing(memory).map { "\(memory)/\($0)/session" }.filter {
                    guard let bytes = FileManager.default.contents(atPath: $0) else { return false }
                    return String(decoding: bytes, as: UTF8.self).contains(server.stateDirectory)
                }
            }
            #expect(sessions().count == 3)
            try server.cli(["detach-disk", "vm1", "vdc"]).output()
            #expect(sessions().count == 2)
            try server.cli(["undefine", "vm1"]).output()
            #expect(sessions() == [])
            try server.stop()
        }

        @Test(
            "with O_DIRECT the last bytes of any size are read, written, zeroed and trimmed",
            arguments: [1, 511, 513, 4095, 4097, 65_537, 1_000_001, 16_777_215])
        func direct(size: Int) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            var oracle = try Images.random(path, bytes: size, seed: UInt64(size))
            let export = try ExportUnderTest(path, options: ["--cache", "none"])
            let client = try NBDClient(export.uri)
            var random = SeededGenerator(seed: UInt64(size))
            for round in 0..<250 {
                let reach = [1, 512, 4096, 9000, 70_000].randomElement(using: &random) ?? 1
                let back = Int.random(in: 1...min(size, reach), using: &random)
                let start = size - back
                let count =
                    Bool.random(using: &random) ? back : Int.random(in: 1...back, using: &random)
                let range = start..<(start + count)
                let flags: NBDFlags = Bool.random(using: &random) ? .forceUnitAccess : []
                switch round % 5 {
                case 0, 1:
                    let bytes = random.bytes(count)
                    try client.write(bytes, at: start, flags)
                    oracle.replaceSubrange(range, with: bytes)
                case 2:
                    try client.zero(start, count, flags)
                    oracle.replaceSubrange(range, with: repeatElement(0, count: count))
                case 3:
                    try client.trim(start, count)
                    let left = try client.read(start, count)
                    let isHint = zip(left, oracle[range]).allSatisfy { $0 == 0 || $0 == $1 }
                    #expect(isHint, "round \(round): \(range)")
                    oracle.replaceSubrange(range, with: left)
                default: try client.flush()
                }
                let from = max(0, start - 5000)
                #expect(
                    try client.read(from, size - from) == Array(oracle[from...]),
                    "round \(round): \(range)")
            }
            try export.stop()
            #expect(try Bytes.ofFile(path) == oracle)
        }

        @Test("P1: a backup of a disk of odd size with O_DIRECT has its last bytes as they were")
        func backup() throws {
            let size = (3 << 20) + 777
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            let before = try Images.random(path, bytes: size, seed: 3)
            var disk = DiskDescription("vda", path)
            disk.cache = .direct
            let server = try ServerUnderTest([DomainDescription("vm1", [disk])])
            let live = try NBDClient(server.liveURI("vm1", "vda"))
            let job = try server.begin("vm1", disks: ["vda"], tag: "job")
            let reader = try NBDClient(try job.uri("vda"))
            #expect(try reader.read(size - 70_000, 70_000) == Array(before[(size - 70_000)...]))
            for (offset, count) in [(size - 1, 1), (size - 778, 700), (size - 20_000, 20_000)] {
                try live.write(randomBytes(count, seed: UInt64(count)), at: offset)
            }
            try live.zero(size - 100_000, 60_000)
            #expect(try reader.read(0, size) == before)
            let copy = directory.file("copy")
            try Command.run("nbdcopy", [try job.uri("vda"), copy]).output()
            #expect(try Bytes.ofFile(copy) == before)
            try server.end("vm1", job)
            try server.stop()
            #expect(try Bytes.ofFile(path).count == size)
        }
    }
}
