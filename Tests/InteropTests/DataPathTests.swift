import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Bytes through the live exports, one command at a time.
    @Suite struct DataPathTests {
        @Test("P5: unaligned commands keep every byte", arguments: ["vda", "vdb"])
        func unalignedAgainstOracle(target: String) throws {
            let seed = RunSettings.seed
            print("seed \(seed)")
            let fixture = try LiveFixture()
            var plan = StressPlan(seed: seed)
            plan.largestBytes = 1 << 18
            let writer = try StressWriter(
                uris: [fixture.uri(target)], contents: [try fixture.content(target)], plan: plan)
            try writer.run(seconds: 2)
            try writer.drain()
            let client = try NBDClient(fixture.uri(target))
            #expect(try client.read(0, client.sizeBytes) == writer.oracle[0])
            try fixture.server.stop()
            #expect(try Bytes.ofFile(fixture.path(target)) == writer.oracle[0])
        }

        @Test("single commands of up to 64 MiB pass", arguments: ["vda", "vdb"])
        func large(target: String) throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let client = try NBDClient(fixture.uri(target), .unchecked)
            let content = try fixture.content(target)
            #expect(try client.read(0, 64 << 20) == content)
            let bytes = randomBytes(33 << 20, seed: 11)
            try client.write(bytes, at: 1 << 20)
            #expect(try client.read(1 << 20, bytes.count) == bytes)
            let whole = randomBytes(64 << 20, seed: 12)
            try client.write(whole, at: 0)
            #expect(try Bytes.ofFile(fixture.path(target)) == whole)
            try client.zero(0, 64 << 20)
            try client.trim(0, 64 << 20)
            #expect(Bytes.isZero(try client.read(0, 64 << 20), at: 0, count: 64 << 20))
            try fixture.server.stop()
        }

        @Test("MULTI_CONN: a flush on one connection covers the other's writes")
        func multiConnection() throws {
            let fixture = try LiveFixture()
            for target in ["vda", "vdb"] {
                let first = try NBDClient(fixture.uri(target))
                let second = try NBDClient(fixture.uri(target))
                let bytes = randomBytes(100_000, seed: 21)
                try first.write(bytes, at: 777)
                #expect(try second.read(777, bytes.count) == bytes)
                try second.flush()
                try second.write([9], at: 777, .forceUnitAccess)
                #expect(try first.read(777, 1) == [9])
                let file = try Bytes.ofFile(fixture.path(target))
                #expect(Array(file[778..<777 + bytes.count]) == Array(bytes.dropFirst()))
            }
            try fixture.server.stop()
        }

        @Test("two clients at once do not see each other's traffic")
        func twoWriters() throws {
            let seed = RunSettings.seed
            print("seed \(seed)")
            let fixture = try LiveFixture()
            let writer = try StressWriter(
                uris: [fixture.uri("vda"), fixture.uri("vdb", tcp: true)],
                contents: [try fixture.content("vda"), try fixture.content("vdb")],
                plan: StressPlan(seed: seed))
            try writer.run(seconds: 2)
            try writer.drain()
            for (index, target) in ["vda", "vdb"].enumerated() {
                #expect(try Bytes.ofFile(fixture.path(target)) == writer.oracle[index])
            }
            try fixture.server.stop()
        }

        @Test("the classic clients without structured replies are served")
        func simpleReplies() throws {
            let fixture = try LiveFixture()
            var options = NBDClientOptions()
            options.structuredReplies = false
            let client = try NBDClient(fixture.uri("vda"), options)
            #expect(!client.canDontFragment)
            #expect(
                try client.read(0, client.sizeBytes / 2).elementsEqual(
                    try fixture.content("vda").prefix(client.sizeBytes / 2)))
            try fixture.server.stop()
        }

        @Test("what a client may not do is refused with the right error, and the connection stays")
        func refusals() throws {
            let fixture = try LiveFixture()
            let size = fixture.sizeBytes
            let client = try NBDClient(fixture.uri("vda"), .unchecked)
            func expect(_ code: Int32, _ what: String, _ body: () throws -> Void) {
                #expect(performing: { try body() }, throws: { ($0 as? NBDFailure)?.code == code })
            }
            expect(EINVAL, "read past the end") { _ = try client.read(size - 1, 2) }
            expect(ENOSPC, "write past the end") { try client.write([1, 2], at: size - 1) }
            expect(ENOSPC, "zero past the end") { try client.zero(size - 1, 2) }
            expect(EINVAL, "trim past the end") { try client.trim(size - 1, 2) }
            expect(EINVAL, "read far out") { _ = try client.read(1 << 60, 1) }
            #expect(try client.read(0, 1) == Array(try fixture.content("vda").prefix(1)))

            let readOnly = try NBDClient(fixture.uri("vdc"), .unchecked)
            expect(EPERM, "write") { try readOnly.write([1], at: 0) }
            expect(EPERM, "zero") { try readOnly.zero(0, 1) }
            expect(EPERM, "trim") { try readOnly.trim(0, 1) }
            #expect(try readOnly.read(0, size) == (try fixture.content("vdc")))

            let job = try fixture.begin()
            let backup = try NBDClient(try job.uri("vda"), .unchecked)
            expect(EPERM, "write to a backup") { try backup.write([1], at: 0) }
            expect(EPERM, "zero a backup") { try backup.zero(0, 1) }
            expect(EPERM, "trim a backup") { try backup.trim(0, 1) }
            expect(EINVAL, "read a backup past its end") { _ = try backup.read(size, 1) }
            #expect(try backup.read(0, size) == (try fixture.content("vda")))
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("block status is what the file system says", arguments: ["vda", "vdb"])
        func blockStatus(target: String) throws {
            let fixture = try LiveFixture()
            try NBDClient(fixture.uri(target)).flush()
            let client = try NBDClient(fixture.uri(target), .contexts("base:allocation"))
            let map = try client.map("base:allocation")
            let wanted = try Command.run(
                "qemu-img", ["map", "-f", "raw", "--output=json", fixture.path(target)]
            ).output()
            let file = try JSONDecoder().decode([MapEntry].self, from: Data(wanted.utf8))
            #expect(map.filter { !$0.isHole }.map(\.offset) == file.filter(\.data).map(\.start))
            #expect(map.filter { !$0.isHole }.map(\.count) == file.filter(\.data).map(\.length))
            #expect(map.filter { $0.isHole && !$0.readsAsZero }.isEmpty)
            let one = try client.blockStatus(1, 1 << 20, .requestOne)["base:allocation"] ?? []
            #expect(one == [NBDExtent(offset: 1, count: 65_535, flags: 0)])
            try fixture.server.stop()
        }

        private struct MapEntry: Decodable {
            let start: Int
            let length: Int
            let data: Bool
        }

        @Test("discards free space, and NO_HOLE keeps it", arguments: ["vda", "vdb"])
        func discards(target: String) throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let client = try NBDClient(fixture.uri(target))
            try client.write([UInt8](repeating: 1, count: 32 << 20), at: 0)
            try client.flush()
            let full = try Images.allocatedBytes(fixture.path(target))
            try client.trim(0, 16 << 20)
            try client.flush()
            let trimmed = try Images.allocatedBytes(fixture.path(target))
            #expect(trimmed <= full - (15 << 20))
            try client.zero(16 << 20, 8 << 20, .noHole)
            try client.flush()
            #expect(try Images.allocatedBytes(fixture.path(target)) >= trimmed)
            #expect(Bytes.isZero(try client.read(0, 24 << 20), at: 0, count: 24 << 20))
            try fixture.server.stop()
        }
    }
}
