import Foundation
import TestSupport
import Testing
import WireClient

extension InteropSuite {
    /// Reads whose pages go to the socket without a copy.
    @Suite struct ReferenceReadTests {
        @Test("P1: scratch by reference is the disk at the instant, of all lengths and alignments")
        func scratch() throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin()
            let content = try fixture.content("vda")
            // Everything is overwritten in order, so all of the job lies in scratch, in long runs.
            let writer = try NBDClient(fixture.uri("vda"))
            for offset in stride(from: 0, to: fixture.sizeBytes, by: 1 << 20) {
                try writer.write(randomBytes(1 << 20, seed: UInt64(offset)), at: offset)
            }
            let reader = try NBDClient(try job.uri("vda"))
            var random = SeededGenerator(seed: 11)
            for _ in 0..<120 {
                let count = 1 + Int.random(in: 0..<(3 << 20), using: &random)
                let offset = Int.random(in: 0..<(fixture.sizeBytes - count), using: &random)
                let found = try reader.read(offset, count)
                if found != Array(content[offset..<(offset + count)]) {
                    Issue.record("\(count) bytes at \(offset) are not those of the instant")
                    break
                }
            }
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("a read-only disk reads right in simple, structured and unfragmented replies")
        func readOnlyDisk() throws {
            let fixture = try LiveFixture()
            let content = try fixture.content("vdc")
            var plain = NBDClientOptions()
            plain.structuredReplies = false
            for options in [NBDClientOptions(), plain] {
                let client = try NBDClient(fixture.uri("vdc"), options)
                for (offset, count) in [
                    (0, 1 << 20), (4095, 65_537), (1 << 20, 8 << 20), (777, (3 << 20) + 1),
                    (fixture.sizeBytes - 65_536, 65_536),
                ] {
                    let found = try client.read(offset, count)
                    #expect(found == Array(content[offset..<(offset + count)]))
                }
            }
            // The client library has no plain read with this flag.
            let whole = try WireConnection(
                socket: fixture.server.liveSocket, export: "vm1/vdc", mode: .structured)
            #expect(
                try whole.read(5, 1 << 20, flags: WireFlag.df)
                    == Array(content[5..<(5 + (1 << 20))]))
            try fixture.server.stop()
        }

        @Test(
            "an unfragmented read of any length is one chunk, by reference, by copy and by O_DIRECT",
            arguments: [WireMode.structured, .extended], ["vda", "vdb", "vdc"])
        func unfragmented(mode: WireMode, target: String) throws {
            let fixture = try LiveFixture(bytes: 40 << 20)
            let content = try fixture.content(target)
            let client = try WireConnection(
                socket: fixture.server.liveSocket, export: "vm1/" + target, mode: mode)
            for (offset, count) in [
                (0, 1 << 20), (5, (1 << 20) + 1), (0, 4 << 20), (777, 32 << 20),
                (fixture.sizeBytes - (3 << 20) - 1, (3 << 20) + 1), (0, 40 << 20),
            ] {
                // The client throws when the reply comes in pieces.
                let found = try client.read(UInt64(offset), count, flags: WireFlag.df)
                #expect(found == Array(content[offset..<(offset + count)]), "\(count) at \(offset)")
            }
            try fixture.server.stop()
        }

        @Test(
            "P5: an unfragmented read that fails midway is hung up on, one that fails early is not")
        func unfragmentedFailure() throws {
            let fixture = try LiveFixture()
            try Command.run("truncate", ["-s", "6M", fixture.path("vda")]).output()
            func ask(_ offset: UInt64) throws -> (WireConnection, WireRequest) {
                let client = try WireConnection(
                    socket: fixture.server.liveSocket, export: "vm1/vda", mode: .structured)
                return (
                    client,
                    WireRequest(
                        WireCommand.read, flags: WireFlag.df, offset: offset, length: 5 << 20)
                )
            }
            let (midway, longRead) = try ask(3 << 20)
            #expect(throws: TestFailure.self) { try midway.ask(longRead) }
            let (early, hopeless) = try ask(8 << 20)
            #expect(try early.ask(hopeless).error == 5)
            #expect(try early.read(0, 4096).count == 4096)
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("a peer that vanishes with pages on their way costs only itself")
        func vanishing() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let content = try fixture.content("vdc")
            for _ in 0..<40 {
                // Asks for 64 MiB and never reads.
                try Command.run(
                    "/usr/bin/python3", ["-c", Self.rudePeer, fixture.server.liveSocket, "vm1/vdc"]
                ).output()
            }
            let client = try NBDClient(fixture.uri("vdc"))
            #expect(try client.read(0, 8 << 20) == Array(content[0..<(8 << 20)]))
            try fixture.server.stop()
        }

        /// Negotiates by hand, sends 64 reads of 1 MiB, waits a little and hangs up.
        private static let rudePeer = """
            import socket, struct, sys, time
            s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
            def need(n):
                data = b""
                while len(data) < n: data += s.recv(n - len(data))
                return data
            need(18); s.sendall(struct.pack(">I", 3))
            name = sys.argv[2].encode()
            s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name); need(10)
            for i in range(64):
                s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, i << 20, 1 << 20))
            time.sleep(0.02)
            s.close()
            """
    }
}
