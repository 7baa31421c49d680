import Glibc
import TestSupport
import Testing
import WireClient

extension InteropSuite {
    /// Extended headers over a real socket, by the tests' own client.
    @Suite struct ExtendedHeaderTests {
        private static let gibibyte: UInt64 = 1 << 30
        private static let allocation = "base:allocation"

        private func connect(
            _ fixture: LiveFixture, _ target: String, _ mode: WireMode = .extended,
            contexts: [String] = [allocation]
        ) throws -> WireConnection {
            try WireConnection(
                socket: fixture.server.liveSocket, export: "vm1/" + target, mode: mode,
                contexts: mode == .simple ? [] : contexts)
        }

        /// A server whose only disk is the file.
        private func serve(_ path: String) throws -> ServerUnderTest {
            try ServerUnderTest([DomainDescription("vm1", [DiskDescription("vda", path)])])
        }

        @Test(
            "reads, writes, zeroes and trims are the disk's in every mode",
            arguments: ["vda", "vdb"],
            WireMode.allCases)
        func changes(target: String, mode: WireMode) throws {
            let fixture = try LiveFixture()
            let client = try connect(fixture, target, mode)
            var content = try fixture.content(target)
            #expect(client.agreement.sizeBytes == UInt64(content.count))
            #expect(try client.read(0, content.count) == content)
            #expect(try client.read(1, 4097) == Array(content[1..<4098]))
            let bytes = randomBytes(300_000, seed: 7)
            try client.write(bytes, at: 77_777, flags: WireFlag.fua)
            content.replaceSubrange(77_777..<(77_777 + bytes.count), with: bytes)
            try client.perform(WireCommand.writeZeroes, 100_001, 200_000)
            content.replaceSubrange(
                100_001..<300_001, with: [UInt8](repeating: 0, count: 200_000))
            try client.perform(WireCommand.writeZeroes, 1 << 20, 1 << 20, flags: WireFlag.noHole)
            try client.perform(WireCommand.trim, 1 << 20, 1 << 20)
            content.replaceSubrange(
                (1 << 20)..<(2 << 20), with: [UInt8](repeating: 0, count: 1 << 20))
            try client.perform(WireCommand.cache, 0, client.agreement.sizeBytes)
            try client.perform(WireCommand.flush)
            #expect(try client.read(0, content.count) == content)
            if mode != .simple {
                #expect(try client.read(5, 1 << 20, flags: WireFlag.df).count == 1 << 20)
            }
            #expect(try client.read(0, 0).isEmpty)
            try fixture.server.stop()
            #expect(try Bytes.ofFile(fixture.path(target)) == content)
        }

        @Test(
            "P1: long reads of a read-only disk and of scratch are whole in every mode",
            arguments: WireMode.allCases)
        func longReads(mode: WireMode) throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin()
            // All of vda is overwritten, so the job reads it from scratch.
            let live = try connect(fixture, "vda")
            try live.write(randomBytes(fixture.sizeBytes, seed: 5), at: 0)
            let backup = try WireConnection(
                socket: fixture.socket(of: job), export: "vda", mode: mode)
            for (client, target) in [(backup, "vda"), (try connect(fixture, "vdc", mode), "vdc")] {
                let content = try fixture.content(target)
                for (offset, count) in [
                    (0, content.count), (1, 1_000_001), (131_072, 2 << 20), (4096, 262_144),
                ] {
                    let found = try client.read(UInt64(offset), count)
                    #expect(found == Array(content[offset..<(offset + count)]), "\(target)")
                }
            }
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("many requests in flight are each answered whole", arguments: WireMode.allCases)
        func inFlight(mode: WireMode) throws {
            let fixture = try LiveFixture()
            let content = try fixture.content("vda")
            let client = try connect(fixture, "vda", mode)
            let requests = (0..<200).map { index -> WireRequest in
                let number = UInt64(index)
                return WireRequest(
                    WireCommand.read, cookie: number << 32, offset: number * 54_321,
                    length: number * 777)
            }
            let replies = try client.ask(requests)
            for request in requests {
                let range = Int(request.offset)..<Int(request.offset + request.length)
                #expect(replies[request.cookie]?.data == Array(content[range]))
            }
            try fixture.server.stop()
        }

        @Test("commands of 5 GiB are carried out in one go")
        func fiveGibibytes() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 8 << 30)
            let server = try serve(path)
            let client = try WireConnection(
                socket: server.liveSocket, export: "vm1/vda", contexts: [Self.allocation])
            let five = 5 * Self.gibibyte
            for offset in [0, 4 * Self.gibibyte - 4096, five - 65_536, five + 65_536] {
                try client.write(randomBytes(65_536, seed: 1), at: offset)
            }
            try client.perform(WireCommand.trim, 4096, five)
            #expect(
                Bytes.isZero(try client.read(five - 65_536, 65_536), at: 0, count: 65_536))
            #expect(Bytes.isZero(try client.read(4096, 61_440), at: 0, count: 61_440))
            #expect(try client.read(0, 4096) == Array(randomBytes(65_536, seed: 1).prefix(4096)))
            try client.perform(WireCommand.flush)
            // What is left: the first page, and the block behind the trimmed range.
            let map = try client.map(Self.allocation)
            #expect(
                map == [
                    WireExtent(4096, 0), WireExtent(five + 61_440, 3), WireExtent(65_536, 0),
                    WireExtent(3 * Self.gibibyte - 131_072, 3),
                ])
            try client.perform(WireCommand.writeZeroes, 0, 8 * Self.gibibyte, flags: WireFlag.fua)
            try client.perform(WireCommand.cache, 0, 8 * Self.gibibyte)
            #expect(try client.map(Self.allocation) == [WireExtent(8 * Self.gibibyte, 3)])
            try server.stop()
            #expect(try Images.allocatedBytes(path) < 1 << 20)
        }

        @Test("one extent says what 64 bits can")
        func longExtent() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 43)
            let server = try serve(path)
            let client = try WireConnection(
                socket: server.liveSocket, export: "vm1/vda", contexts: [Self.allocation])
            for flags in [0, WireFlag.reqOne] {
                let whole = try client.status(0, 1 << 43, flags: flags)
                #expect(whole == [Self.allocation: [WireExtent(1 << 43, 3)]])
                let part = try client.status(4096, 1 << 42, flags: flags)
                #expect(part == [Self.allocation: [WireExtent(1 << 42, 3)]])
            }
            // Without extended headers the same range needs pieces of at most 4 GiB.
            let short = try WireConnection(
                socket: server.liveSocket, export: "vm1/vda", mode: .structured,
                contexts: [Self.allocation])
            let most = try short.status(0, 0xffff_ffff, flags: WireFlag.reqOne)
            #expect(most == [Self.allocation: [WireExtent(0xffff_0000, 3)]])
            try server.stop()
        }

        @Test("allocation and dirty bitmap of a job come together, or each alone")
        func namedContexts() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let full = try server.begin("vm1", disks: ["vda"], tag: "full", checkpoint: "c1")
            try server.end("vm1", full)
            let live = try connect(fixture, "vda")
            try live.write([1, 2, 3], at: 70_000)
            try live.perform(WireCommand.writeZeroes, 1 << 20, 131_072)
            let job = try server.begin("vm1", disks: ["vda"], tag: "inc", incremental: "c1")
            let dirty = "qemu:dirty-bitmap:backup-vda"
            let client = try WireConnection(
                socket: fixture.socket(of: job), export: "vda",
                contexts: [dirty, Self.allocation])
            #expect(client.agreement.flags & WireExportFlag.blockStatusPayload != 0)
            #expect(client.agreement.flags & WireExportFlag.readOnly != 0)
            let size = client.agreement.sizeBytes

            let both = try client.status(0, size)
            #expect(Set(both.keys) == [dirty, Self.allocation])
            let reversed = try client.status(0, size, of: [dirty, Self.allocation])
            #expect(reversed == both)
            for name in [dirty, Self.allocation] {
                #expect(try client.status(0, size, of: [name]) == [name: both[name]])
            }
            #expect(
                both[dirty]?.prefix(4) == [
                    WireExtent(65_536, 0), WireExtent(65_536, 1), WireExtent(917_504, 0),
                    // The second half was a hole before.
                    WireExtent(65_536, 1),
                ])
            // What an independent client says, which has structured replies only.
            let other = try NBDClient(try job.uri("vda"), .contexts(Self.allocation, dirty))
            for name in [dirty, Self.allocation] {
                let map = try other.map(name)
                #expect(try client.map(name).map(\.length) == map.map { UInt64($0.count) })
                #expect(try client.map(name).map(\.flags) == map.map { UInt64($0.flags) })
            }
            let one = try client.status(70_000, size - 70_000, flags: WireFlag.reqOne)
            #expect(one[dirty] == [WireExtent(61_072, 1)])
            #expect(one[Self.allocation]?.count == 1)
            try server.stop()
        }

        @Test("P1: a job's status and reads hold while 64-bit zeroing changes the disk")
        func zeroingUnderJob() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            try Images.sparse(path, bytes: 6 << 30)
            let server = try serve(path)
            let live = try WireConnection(
                socket: server.liveSocket, export: "vm1/vda", contexts: [Self.allocation])
            let bytes = randomBytes(1 << 20, seed: 3)
            let places = [0, 4 * Self.gibibyte - 4096, 5 * Self.gibibyte]
            for place in places { try live.write(bytes, at: place) }
            let before = try live.map(Self.allocation)
            let job = try server.begin("vm1", disks: ["vda"], tag: "job")
            let backup = try WireConnection(
                socket: server.directory.file("job-job.sock"), export: "vda",
                contexts: [Self.allocation])
            try live.perform(WireCommand.writeZeroes, 0, 6 * Self.gibibyte)
            #expect(try live.map(Self.allocation) == [WireExtent(6 * Self.gibibyte, 3)])
            for place in places {
                #expect(try backup.read(place, bytes.count) == bytes)
                #expect(Bytes.isZero(try live.read(place, bytes.count), at: 0, count: bytes.count))
            }
            // Preserved by the cluster: what was data is data, and at most to a cluster's edges.
            let after = try backup.map(Self.allocation)
            #expect(after.map(\.flags) == before.map(\.flags))
            #expect(after.reduce(0) { $0 + $1.length } == 6 * Self.gibibyte)
            try server.end("vm1", job)
            try server.stop()
        }
    }
}
