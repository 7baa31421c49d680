import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// `base:allocation` of files in many pieces.
    @Suite struct AllocationTests {
        private static let block = 4096

        /// A file of many short runs of every kind: written, reserved, written into reserved space,
        /// punched out; some of it not written back yet.
        private func fragmented(_ path: String) throws {
            try Images.sparse(path, bytes: 48 << 20)
            let file = try #require(FileHandle(forWritingAtPath: path))
            func write(_ offset: Int, _ blocks: Int) throws {
                try file.seek(toOffset: UInt64(offset))
                try file.write(contentsOf: Data(repeating: 0xA5, count: blocks * Self.block))
            }
            func fallocate(_ options: [String], _ offset: Int, _ count: Int) throws {
                try Command.run(
                    "fallocate", options + ["-o", String(offset), "-l", String(count), path]
                ).output()
            }
            for offset in stride(from: 0, to: 16 << 20, by: 16 << 10) { try write(offset, 1) }
            try fallocate([], 16 << 20, 16 << 20)
            for offset in stride(from: 16 << 20, to: 24 << 20, by: 96 << 10) {
                try write(offset + 8192, 3)
            }
            try file.synchronize()
            for offset in stride(from: 24 << 20, to: 32 << 20, by: 160 << 10) {
                try write(offset, 2)
            }
            for offset in stride(from: 32 << 20, to: 40 << 20, by: 12 << 10) {
                try write(offset + 4096, 1)
            }
            try fallocate(["--punch-hole"], 1 << 20, 100 << 10)
            try fallocate(["--punch-hole"], 17 << 20, 1 << 20)
            try fallocate(["--zero-range"], 35 << 20, 1 << 20)
            try file.close()
        }

        @Test("a map is the one that qemu-nbd makes of the same file")
        func likeQEMU() throws {
            try Tool.require("qemu-nbd", "nbdinfo")
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try fragmented(path)
            for round in 0..<2 {
                let export = try ExportUnderTest(path, options: ["--read-only"])
                let ours = try Command.run("nbdinfo", ["--map", export.uri]).output()
                try export.stop()
                let theirs = try mapByQEMU(path)
                #expect(ours == theirs, "round \(round)")
                #expect(ours.split(separator: "\n").count > 2000)
                // In the second round nothing waits to be written back any more.
                try Command.run("sync", [path]).output()
            }
        }

        private func mapByQEMU(_ path: String) throws -> String {
            let server = try ReferenceServer(path)
            return try withExtendedLifetime(server) {
                try Command.run("nbdinfo", ["--map", server.uri]).output()
            }
        }

        @Test("P5: a map shows what was written before it was asked for")
        func fresh() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try fragmented(path)
            let export = try ExportUnderTest(path)
            let client = try NBDClient(export.uri, .contexts("base:allocation"))
            var generator = SeededGenerator(seed: RunSettings.seed)
            print("seed \(RunSettings.seed)")
            for _ in 0..<60 {
                let offset = generator.below(client.sizeBytes / Self.block - 1) * Self.block
                try client.write([1, 2, 3], at: offset)
                let written = try client.map("base:allocation")
                let place = written.first { $0.offset <= offset && offset < $0.end }
                #expect(place?.isHole == false && place?.readsAsZero == false, "\(offset)")
                try client.trim(offset, Self.block)
                let trimmed = try client.map("base:allocation")
                let hole = trimmed.first { $0.offset <= offset && offset < $0.end }
                #expect(hole?.readsAsZero == true, "\(offset)")
            }
            try client.disconnect()
            try export.stop()
        }

        @Test(
            "P1: holes of a backup export held zeros at its instant, whatever is written meanwhile",
            arguments: ["vda", "vdb"])
        func backupHoles(target: String) throws {
            let fixture = try LiveFixture()
            let before = try fixture.content(target)
            let job = try fixture.begin()
            let writer = try NBDClient(fixture.uri(target))
            let client = try NBDClient(try job.uri(target), .contexts("base:allocation"))
            var holes = 0
            for round in 0..<40 {
                for index in 0..<4 {
                    let place = (round * 4 + index) * 97_003 % (fixture.sizeBytes - 8192)
                    try writer.write(randomBytes(8192, seed: UInt64(round)), at: place)
                    if index == 2 { try writer.trim(place / 2 & ~4095, 1 << 16) }
                }
                for extent in try client.map("base:allocation") where extent.readsAsZero {
                    holes += 1
                    #expect(
                        Bytes.isZero(before, at: extent.offset, count: extent.count),
                        "\(target) \(extent) in round \(round)")
                }
            }
            #expect(holes > 1000)
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        /// Without extents, Linux (6.18) calls what waits to be written back a hole.
        @Test("P5: where the kernel tells holes that are none, a copy has the data all the same")
        func oldForm() throws {
            let old = try TinyFileSystem(mebibytes: 64, lacking: ["extents", "64bit"])
            let path = old.path + "/disk"
            try Images.sparse(path, bytes: 16 << 20)
            let export = try ExportUnderTest(path)
            let guest = try NBDClient(export.uri)
            let bytes = randomBytes(256 << 10, seed: 3)
            try guest.write(bytes, at: 1 << 20)
            let directory = try TemporaryDirectory()
            let copy = directory.file("copy")
            try Command.run("nbdcopy", [export.uri, copy]).output()
            #expect(Array(try Bytes.ofFile(copy)[1 << 20..<(1 << 20) + bytes.count]) == bytes)
            try export.stop()
        }
    }
}
