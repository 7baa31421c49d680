import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Sources that are another NBD server's.
    @Suite struct UpstreamSourceTests {
        private static let mebibyte = 1 << 20

        /// A file of so many bytes.
        private func file(_ directory: TemporaryDirectory, _ bytes: Int) throws -> String {
            let path = directory.file("disk.img")
            _ = try Images.random(path, bytes: bytes, seed: 5)
            return path
        }

        @Test(
            "P5: bytes of odd sizes and places are the upstream's, whatever its smallest block is",
            arguments: [
                (1, 1), (513, 1), (65_537, 1), (1 << 20, 4096), ((1 << 20) + 512, 512),
            ])
        func sizes(bytes: Int, block: Int) throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, bytes)
            let options =
                block == 1
                ? []
                : [
                    "--filter=blocksize-policy", "blocksize-minimum=\(block)",
                    "blocksize-maximum=65536", "blocksize-error-policy=error",
                ]
            let upstream = try UpstreamServer(.nbdkit(options), over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri)
            var expected = try Bytes.ofFile(path)
            #expect(client.sizeBytes == bytes)
            #expect(try client.read(0, bytes) == expected)
            for (place, count) in [(0, 1), (3, 509), (4095, 2), (100, 300_000), (bytes - 1, 1)]
            where place + count <= bytes {
                let new = [UInt8](repeating: UInt8(count & 0xFF), count: count)
                try client.write(new, at: place)
                expected.replaceSubrange(place..<place + count, with: new)
            }
            if bytes > 100_000 {
                try client.zero(5000, 70_000)
                expected.replaceSubrange(
                    5000..<75_000, with: [UInt8](repeating: 0, count: 70_000))
            }
            #expect(try client.read(0, bytes) == expected)
            try client.flush()
            try client.disconnect()
            try export.stop()
            #expect(try Bytes.ofFile(path) == expected)
        }

        @Test("small requests have a connection to themselves, and large reads share the others")
        func connections() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, 4 * Self.mebibyte)
            let log = directory.file("log")
            let upstream = try UpstreamServer(
                .nbdkit(["--filter=log", "logfile=" + log]), over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri)
            let expected = try Bytes.ofFile(path)
            for place in 0..<4 {
                let start = place * Self.mebibyte
                #expect(try client.read(start, 4096) == Array(expected[start..<start + 4096]))
                let end = start + Self.mebibyte
                #expect(try client.read(start, Self.mebibyte) == Array(expected[start..<end]))
            }
            try client.disconnect()
            try export.stop()
            let reads = Files.read(log).split(separator: "\n").filter { $0.contains(" Read ") }
            func connections(_ isOf: (Substring) -> Bool) -> Set<Substring> {
                Set(
                    reads.filter(isOf).compactMap { line in
                        line.split(separator: " ").first { $0.hasPrefix("connection=") }
                    })
            }
            let small = connections { $0.contains("count=0x1000 ") }
            let large = connections { !$0.contains("count=0x1000 ") }
            #expect(small.count == 1 && large.count > 1, "\(reads.joined(separator: "\n"))")
            #expect(small.isDisjoint(with: large))
        }

        @Test("P5: an upstream that loses what it has not flushed is written again")
        func lostCache() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let upstream = try UpstreamServer(.nbdkit(["--filter=cache"]), over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri)
            let new = [UInt8](repeating: 0xAB, count: 64 << 10)
            try client.write(new, at: 4096)
            try client.zero(256 << 10, 64 << 10)
            upstream.kill()
            try upstream.start()
            #expect(try client.read(4096, new.count) == new)
            #expect(try client.read(256 << 10, 64 << 10).allSatisfy { $0 == 0 })
            try client.flush()
            upstream.kill()
            #expect(Array(try Bytes.ofFile(path)[4096..<4096 + new.count]) == new)
            try upstream.start()
            #expect(try client.read(4096, new.count) == new)
            try client.disconnect()
            try export.stop()
        }

        @Test(
            "P2: requests wait for an upstream until patience is over; lost writes stay lost"
        )
        func neverBack() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let upstream = try UpstreamServer(.nbdkit([]), over: path)
            let export = try ExportUnderTest(upstream.uri, options: ["--upstream-patience", "1"])
            let client = try NBDClient(export.uri)
            // Flushed: nothing is lost with the upstream.
            try client.write([UInt8](repeating: 1, count: 4096), at: 0)
            try client.flush()
            upstream.kill()
            let start = Date()
            #expect(throws: NBDFailure.self) { try client.read(0, 4096) }
            #expect(Date().timeIntervalSince(start) > 0.8)
            #expect(throws: NBDFailure.self) { try client.flush() }
            try upstream.start()
            try wait(for: client)
            try client.flush()
            // Not flushed: it may be, and every flush fails from then on.
            try client.write([UInt8](repeating: 2, count: 4096), at: 0)
            upstream.kill()
            #expect(throws: NBDFailure.self) { try client.read(0, 4096) }
            try upstream.start()
            try wait(for: client)
            #expect(throws: NBDFailure.self) { try client.flush() }
            #expect(throws: NBDFailure.self) { try client.flush() }
            try client.disconnect()
        }

        /// Waits until a read succeeds.
        private func wait(for client: NBDClient) throws {
            let end = Date().addingTimeInterval(20)
            while Date() < end {
                if (try? client.read(0, 512)) != nil { return }
                Thread.sleep(forTimeInterval: 0.05)
            }
            throw TestFailure("the upstream is not found again")
        }

        @Test("P2: an error of the upstream is the guest's, and nothing but that request fails")
        func errors() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let trigger = directory.file("fail")
            let upstream = try UpstreamServer(
                .nbdkit(["--filter=error", "error=EIO", "error-rate=1", "error-file=\(trigger)"]),
                over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri)
            let before = try client.read(0, 4096)
            try Files.write("", to: trigger)
            #expect(throws: NBDFailure.self) { try client.read(0, 4096) }
            #expect(throws: NBDFailure.self) { try client.write([1, 2, 3], at: 0) }
            Files.remove(trigger)
            #expect(try client.read(0, 4096) == before)
            try client.flush()
            try client.disconnect()
            try export.stop()
        }

        @Test(
            "P5: a flush of the upstream that failed is not forgotten, whatever its smallest block",
            arguments: [1, 4096])
        func flushFails(block: Int) throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let trigger = directory.file("fail")
            let upstream = try UpstreamServer(
                .plugin([
                    "eval", "get_size=echo \(Self.mebibyte)",
                    "pread=dd if=\(path) iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none",
                    "can_write=exit 0",
                    "pwrite=dd of=\(path) conv=notrunc oflag=seek_bytes seek=$4 status=none",
                    "can_flush=exit 0",
                    "flush=[ ! -e \(trigger) ] || { echo ENOMEM >&2; exit 1; }",
                    "block_size=echo \(block) 65536 1M",
                ]), over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri)
            try client.write([UInt8](repeating: 1, count: 4096), at: 0)
            try client.flush()
            try client.write([UInt8](repeating: 2, count: 4096), at: 4096)
            try Files.write("", to: trigger)
            #expect(throws: NBDFailure.self) { try client.flush() }
            Files.remove(trigger)
            #expect(throws: NBDFailure.self) { try client.flush() }
            #expect(try client.read(4096, 4096).allSatisfy { $0 == 2 })
            try client.disconnect()
        }

        @Test("A read-only upstream is refused for writing, and served read-only")
        func readOnly() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let upstream = try UpstreamServer(.nbdkit(["-r"]), over: path)
            let refused = try Command.run(
                try ServerUnderTest.binary(),
                ["export", "--socket", directory.file("s"), upstream.uri])
            #expect(!refused.succeeded && refused.stderr.contains("read-only"))
            let export = try ExportUnderTest(upstream.uri, options: ["--read-only"])
            let client = try NBDClient(export.uri)
            #expect(try client.read(0, Self.mebibyte) == (try Bytes.ofFile(path)))
            try client.disconnect()
            try export.stop()
        }

        @Test("What an upstream says of holes is passed on; what it does not say is data")
        func allocation() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("sparse.img")
            try Images.sparse(path, bytes: 8 * Self.mebibyte)
            let upstream = try UpstreamServer(.nbdkit([]), over: path)
            let export = try ExportUnderTest(upstream.uri)
            let client = try NBDClient(export.uri, .contexts("base:allocation"))
            try client.write([UInt8](repeating: 7, count: 65_536), at: Self.mebibyte)
            try client.flush()
            let map = try client.map("base:allocation")
            #expect(map.map(\.readsAsZero) == [true, false, true])
            #expect(map.map(\.count).reduce(0, +) == 8 * Self.mebibyte)
            #expect(map[1].offset == Self.mebibyte)
            try client.trim(Self.mebibyte, 65_536)
            #expect(try client.map("base:allocation").allSatisfy(\.readsAsZero))
            try client.disconnect()
            try export.stop()
        }

        @Test("P2: an upstream that does not answer holds up only its own disk")
        func slow() throws {
            let directory = try TemporaryDirectory()
            let paths = ["vda", "vdb"].map { directory.file($0 + ".img") }
            for path in paths { _ = try Images.random(path, bytes: Self.mebibyte, seed: 3) }
            let upstreams = try paths.map { path throws in
                try UpstreamServer(.nbdkit([]), over: path)
            }
            var disks = [DiskDescription("vda", paths[0]), DiskDescription("vdb", paths[1])]
            for index in disks.indices { disks[index].upstreamSocket = upstreams[index].socket }
            let server = try ServerUnderTest(
                [DomainDescription("vm1", disks)], options: ["--rings", "1"])
            let stuck = try NBDClient(server.liveURI("vm1", "vda"))
            let free = try NBDClient(server.liveURI("vm1", "vdb"))
            upstreams[0].hang()
            let waiting = try stuck.startRead(0, 4096)
            for number in 0..<200 {
                try free.write([UInt8](repeating: UInt8(number), count: 4096), at: number * 4096)
            }
            try free.flush()
            #expect(stuck.outcome(of: waiting) == nil)
            upstreams[0].goOn()
            while stuck.outcome(of: waiting) == nil {
                NBDClient.waitForActivity([stuck], milliseconds: 100)
            }
            try server.stop()
        }

        @Test(
            "P1: a write that is still on its way when another connection ends does not come over a newer one"
        )
        func slowConnection() throws {
            let directory = try TemporaryDirectory()
            let upstream = try UpstreamServer(
                .nbdkit([]), over: try file(directory, 4 * Self.mebibyte))
            let socket = directory.file("relay.sock")
            let relay = try Command("python3", [Self.relay, socket, upstream.socket, "4"])
            try relay.wait(for: "socket") { _ in Files.isListening(socket) }
            let export = try ExportUnderTest("nbd+unix:///?socket=" + socket)
            let client = try NBDClient(export.uri)
            // By connections of their own.
            _ = try client.read(0, Self.mebibyte)
            let old = try client.startWrite([UInt8](repeating: 0x5A, count: 4096), at: 0)
            NBDClient.waitForActivity([client], milliseconds: 0)
            try relay.wait(for: "write") { $0.stdout.contains("held") }
            relay.signal(SIGUSR1)
            try relay.wait(for: "cut") { $0.stdout.contains("cut") }
            while client.outcome(of: old) == nil {
                NBDClient.waitForActivity([client], milliseconds: 100)
            }
            let new = [UInt8](repeating: 0xA5, count: 4096)
            try client.write(new, at: 0)
            let end = Date(timeIntervalSinceNow: 5)
            while Date() < end {
                #expect(try client.read(0, new.count) == new)
                Thread.sleep(forTimeInterval: 0.1)
            }
            try client.disconnect()
            try export.stop()
            #expect(relay.stdout.contains("cut ") && !relay.stdout.contains("nothing"))
        }

        private static let relay = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "hostile/relay.py").path

        @Test("An upstream by TLS: keys and certificates are used, and without them it is refused")
        func secured() throws {
            let directory = try TemporaryDirectory()
            let path = try file(directory, Self.mebibyte)
            let keys = directory.file("keys.psk")
            try Files.write("vm1:0123456789abcdef0123456789abcdef\n", to: keys)
            let upstream = try UpstreamServer(
                .nbdkit(["--tls=require", "--tls-psk=\(keys)"]), over: path)
            let plain = try Command.run(
                try ServerUnderTest.binary(),
                ["export", "--socket", directory.file("s"), upstream.uri])
            #expect(!plain.succeeded)
            let export = try ExportUnderTest(
                "nbds+unix://vm1@/?socket=\(upstream.socket)&tls-psk-file=\(keys)")
            let client = try NBDClient(export.uri)
            try client.write([1, 2, 3], at: 77)
            try client.flush()
            #expect(try client.read(77, 3) == [1, 2, 3])
            try client.disconnect()
            try export.stop()
        }
    }
}
