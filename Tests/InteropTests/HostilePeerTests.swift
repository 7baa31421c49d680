import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// A peer that sends garbage, stops reading or vanishes costs only itself.
    @Suite struct HostilePeerTests {
        private func jobSocket(_ fixture: LiveFixture, _ tag: String = "job") -> String {
            fixture.server.directory.file("job-\(tag).sock")
        }

        private func resize(_ path: String, _ bytes: Int) throws {
            try Command.run("truncate", ["-s", "\(bytes)", path]).output()
        }

        private func seconds(_ body: () throws -> Void) rethrows -> Double {
            let start = Date()
            try body()
            return Date().timeIntervalSince(start)
        }

        @Test(
            "P6: clients that never read hold what the limits say, and a pull goes on beside them")
        func neverRead() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let job = try fixture.begin()
            let uri = try job.uri("vda")
            let copy = fixture.directory.file("copy")
            try Command.run("nbdcopy", [uri, copy]).output()
            let before = fixture.server.memoryBytes
            let count = 60
            let peers = try HostilePeer.start([
                "never-read", jobSocket(fixture), "vda", "\(count)", "12",
            ])
            Thread.sleep(forTimeInterval: 3)
            let held = fixture.server.memoryBytes - before
            let pull = try seconds { try Command.run("nbdcopy", [uri, copy]).output() }
            print("\(count) stalled readers hold \(held >> 20) MiB, a pull takes \(pull) s")
            #expect(held < count * 12 << 20, "\(held >> 20) MiB for \(count) clients")
            #expect(try Bytes.ofFile(copy) == (try fixture.content("vda")))
            _ = try peers.result()
            // Their places are free again.
            #expect(try fixture.served(jobSocket(fixture), "vda", 70) == 70)
            try fixture.server.stop()
        }

        @Test("P6: an announced write holds a buffer, not its length")
        func halfWrites() throws {
            let fixture = try LiveFixture()
            _ = try fixture.served(fixture.liveSocket, "vm1/vda", 4)
            let before = fixture.server.memoryBytes
            let peers = try HostilePeer.start([
                "half-writes", fixture.liveSocket, "vm1/vda", "60", "3",
            ])
            Thread.sleep(forTimeInterval: 1)
            let held = fixture.server.memoryBytes - before
            print("60 announced writes of 64 MiB hold \(held >> 10) KiB")
            #expect(held < 60 << 20)
            // The same disk is written and read by others meanwhile.
            let client = try NBDClient(fixture.uri("vda"))
            try client.write([1, 2, 3], at: 5000)
            #expect(try client.read(5000, 3) == [1, 2, 3])
            _ = try peers.result()
            try fixture.server.stop()
        }

        @Test("P6: ten thousand peers that stall in their handshakes do not stop a pull")
        func handshakeFlood() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let job = try fixture.begin()
            let uri = try job.uri("vda")
            let pull = { _ = try Command.run("nbdcopy", [uri, "null:"], timeout: 50).output() }
            try pull()
            let alone = try seconds { for _ in 0..<5 { try pull() } }
            let before = fixture.server.memoryBytes
            let flood = try HostilePeer.start(
                ["flood", jobSocket(fixture), "10000", "3000", "18"], isHeld: false)
            var pulls = 0
            var highest = 0
            let busy = try seconds {
                repeat {
                    try pull()
                    pulls += 1
                    highest = max(highest, fixture.server.memoryBytes)
                } while flood.isRunning && pulls < 5000
            }
            let flooded = try HostilePeer.result(of: flood, as: Flooded.self)
            let mib = 64.0
            print(
                "pull alone \(mib * 5 / alone) MiB/s, beside \(flooded.connects) connects in"
                    + " \(flooded.seconds) s \(mib * Double(pulls) / busy) MiB/s;"
                    + " memory \(before >> 20) MiB, then \(highest >> 20) MiB at most")
            #expect(flooded.connects == 10_000)
            // The flood takes a processor for itself; a fifth is far from starving.
            #expect(Double(pulls) / busy > 0.2 * 5 / alone)
            #expect(highest - before < 100 * 12 << 20)
            #expect(try fixture.served(jobSocket(fixture), "vda", 70) == 70)
            try fixture.server.stop()
        }

        @Test("a full server lets an honest client in while others stall in their handshakes")
        func evictedHandshakes() throws {
            let fixture = try LiveFixture(options: ["--max-connections", "20"])
            let stalled = try HostilePeer.start(["stalled", fixture.liveSocket, "60", "8"])
            #expect(try fixture.served(fixture.liveSocket, "vm1/vda", 10) == 10)
            _ = try stalled.result()
            try fixture.server.stop()
        }

        @Test("handshakes that stall on the live socket make way for a job's clients")
        func evictedForJob() throws {
            let fixture = try LiveFixture(options: ["--max-connections", "20"])
            _ = try fixture.begin()
            let stalled = try HostilePeer.start(["stalled", fixture.liveSocket, "60", "8"])
            #expect(try fixture.served(jobSocket(fixture), "vda", 10) == 10)
            _ = try stalled.result()
            try fixture.server.stop()
        }

        @Test("P6: a job's clients and a peer's connections are counted for themselves")
        func connectionShares() throws {
            let fixture = try LiveFixture(options: [
                "--max-connections", "16", "--max-connections-per-job", "6",
                "--max-connections-per-peer", "5",
            ])
            _ = try fixture.begin()
            #expect(try fixture.served(jobSocket(fixture), "vda", 10, expected: 6) == 6)
            #expect(try fixture.served(fixture.liveSocket, "vm1/vda", 20, expected: 16) == 16)
            #expect(
                try fixture.served(
                    "127.0.0.1:\(fixture.port)", "vm1/vda", 9, expected: 5) == 5)
            try fixture.server.stop()
        }

        @Test("CVE-2013-7441, CVE-2017-9524: hanging up at any byte ends that connection only")
        func hangups() throws {
            let fixture = try LiveFixture()
            _ = try fixture.begin()
            for (address, name) in [
                (fixture.liveSocket, "vm1/vda"), (jobSocket(fixture), "vda"),
                ("127.0.0.1:\(fixture.port)", "vm1/vdb"),
            ] {
                let done = try HostilePeer.run(["hangups", address, name], as: Hangups.self)
                #expect(done.hangups > 300)
            }
            try fixture.server.requireHealthy()
            #expect(try fixture.served(fixture.liveSocket, "vm1/vda", 100) == 100)
            try fixture.server.stop()
        }

        @Test("CVE-2024-7409: stray connections in every state do not disturb a stop")
        func stopUnderPeers() throws {
            let fixture = try LiveFixture()
            _ = try fixture.begin()
            let stalled = try HostilePeer.start(["stalled", fixture.liveSocket, "30", "40"])
            let deaf = try HostilePeer.start(["never-read", jobSocket(fixture), "vda", "20", "40"])
            let half = try HostilePeer.start(
                ["half-writes", fixture.liveSocket, "vm1/vda", "10", "40"])
            let took = try seconds { try fixture.server.stop() }
            #expect(took < 25, "the stop took \(took) s")
            for peer in [stalled, deaf, half] { peer.kill() }
        }

        @Test("CVE-2019-14850: a peer that has not chosen an export opens nothing but its socket")
        func nothingOpenedBeforeGo() throws {
            let fixture = try LiveFixture()
            _ = try fixture.served(fixture.liveSocket, "vm1/vda", 1)
            let before = fixture.server.descriptorCount
            let stalled = try HostilePeer.start(["stalled", fixture.liveSocket, "40", "3"])
            #expect(fixture.server.descriptorCount <= before + 40)
            _ = try stalled.result()
            try fixture.server.stop()
        }

        @Test("no error text, log line or event carries what a peer sent, or a path of the server")
        func nothingIsEchoed() throws {
            let fixture = try LiveFixture()
            _ = try fixture.begin()
            for (address, name) in [
                (fixture.liveSocket, "vm1/vda"), (jobSocket(fixture), "vda"),
            ] {
                let found = try HostilePeer.run(["marked", address, name], as: Marked.self)
                #expect(found.texts.count > 12)
                for text in found.texts {
                    #expect(!text.contains("MARK") && !text.contains("\u{1b}"), "\(text)")
                    #expect(!text.contains("/") && text != "not closed", "\(text)")
                }
            }
            let events = try fixture.server.cli(["event"]).output()
            for text in [fixture.server.stderr, events] {
                #expect(!text.contains("MARK") && !text.contains("\u{1b}"), "\(text)")
            }
            try fixture.server.stop()
        }

        @Test("requests that break the rules get the errors of the table, in both reply modes")
        func rude() throws {
            let fixture = try LiveFixture()
            _ = try fixture.begin()
            // Empty: the request is carried out.
            let live = [
                "read-beyond": "EINVAL", "read-across": "EINVAL", "read-unknown-flags": "EINVAL",
                "read-empty": "", "write": "", "write-beyond": "ENOSPC",
                "write-unknown-flags": "EINVAL", "write-empty": "", "trim-beyond": "EINVAL",
                "zero-beyond": "ENOSPC", "zero-fast-and-keep": "", "cache-beyond": "EINVAL",
                "flush-flags": "EINVAL", "status-without-context": "EINVAL",
                "status-empty": "EINVAL",
            ]
            var backup = live
            for name in [
                "write", "write-beyond", "write-unknown-flags", "write-empty", "trim-beyond",
                "zero-beyond", "zero-fast-and-keep",
            ] {
                backup[name] = "EPERM"
            }
            for (address, name, expected) in [
                (fixture.liveSocket, "vm1/vda", live), (jobSocket(fixture), "vda", backup),
            ] {
                let found = try HostilePeer.run(["rude", address, name], as: [String: String].self)
                #expect(found.count == 2 * expected.count)
                for (what, error) in found {
                    let row = what.replacing("-simple", with: "")
                    #expect(error == expected[row], "\(name) \(what)")
                }
            }
            try fixture.server.stop()
        }

        @Test("a backup client that stalls or asks nothing is let go; a guest may rest")
        func deadlines() throws {
            let fixture = try LiveFixture(
                options: ["--stall-timeout", "2", "--idle-timeout", "3"])
            _ = try fixture.begin()
            for (what, at) in [("stall", 2.0), ("half", 2.0), ("rest", 3.0)] {
                let found = try HostilePeer.run(
                    ["closes", jobSocket(fixture), "vda", "8", what], as: Closed.self)
                #expect(found.closed && found.seconds > at - 0.2, "\(what): \(found)")
                let guest = try HostilePeer.run(
                    ["closes", fixture.liveSocket, "vm1/vda", "4", what], as: Closed.self)
                #expect(!guest.closed, "a guest that does \(what): \(guest)")
            }
            try fixture.server.stop()
        }

        @Test("P6: zeroing stops when the peer that asked for it is gone")
        func abandonedZeroing() throws {
            // In memory: there zeroing that keeps the space is done by writing.
            let path = "/dev/shm/nbdpull-zeroing-\(UUID().uuidString)"
            try Images.sparse(path, bytes: 256 << 20)
            defer { try? FileManager.default.removeItem(atPath: path) }
            let server = try ServerUnderTest([
                DomainDescription("z", [DiskDescription("vda", path)])
            ])
            _ = try HostilePeer.run(
                ["zeroes-and-goes", server.liveSocket, "z/vda", "\(256 << 20)"],
                as: [String: Int].self)
            Thread.sleep(forTimeInterval: 3)
            let before = server.processorSeconds
            Thread.sleep(forTimeInterval: 1)
            let spent = server.processorSeconds - before
            #expect(spent < 0.3, "still busy: \(spent) s of processor time in a second")
            try server.stop()
        }

        @Test("CVE-2022-0485: data that cannot be read is an error, never zeros")
        func vanishedData() throws {
            let fixture = try LiveFixture()
            for structured in [true, false] {
                var options = NBDClientOptions()
                options.structuredReplies = structured
                let client = try NBDClient(fixture.uri("vda"), options)
                try resize(fixture.path("vda"), 4 << 20)
                #expect(throws: NBDFailure.self) { try client.read(8 << 20, 65536) }
                try resize(fixture.path("vda"), fixture.sizeBytes)
            }
            try fixture.server.stop()
        }

        @Test("CVE-2025-47711, CVE-2025-47712: extents of more than 4 GiB are told right")
        func largeExtents() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("large")
            let size = 13 << 30
            try Images.sparse(path, bytes: size)
            let export = try ExportUnderTest(path)
            let client = try NBDClient(export.uri, .contexts("base:allocation"))
            try client.write([1], at: (9 << 30) + 5)
            let extents = try client.map("base:allocation")
            #expect(extents.reduce(0) { $0 + $1.count } == size)
            let data = extents.filter { $0.flags == 0 }
            #expect(data.map(\.offset) == [9 << 30])
            try export.stop()
        }

        @Test("CVE-2005-3534, CVE-2011-0530: the longest requests there are do not spill")
        func longestRequests() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 80 << 20)
            let export = try ExportUnderTest(path)
            for structured in [true, false] {
                var options = NBDClientOptions.unchecked
                options.structuredReplies = structured
                let client = try NBDClient(export.uri, options)
                let bytes = randomBytes(64 << 20, seed: structured ? 1 : 2)
                try client.write(bytes, at: 4097)
                #expect(try client.read(4097, bytes.count) == bytes)
                #expect(try client.read(0, 4097).allSatisfy { $0 == 0 })
            }
            try export.stop()
        }
    }
}
