import Foundation
import TestSupport
import Testing

/// A `qemu-storage-daemon` of `Tests/hostile/program.py` in front of the real one.
private final class StandIn {
    let directory: TemporaryDirectory
    private var log: String { directory.file("log") }

    init(_ mode: String) throws {
        directory = try TemporaryDirectory()
        let script = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "hostile/program.py").path
        let program = try directory.directory("bin") + "/qemu-storage-daemon"
        try Files.write(
            """
            #!/bin/sh
            exec /usr/bin/python3 \(script) \(mode) \(try Tool.path("qemu-storage-daemon")) "$@"
            """, to: program)
        try FileManager.default.setAttributes(
            [.posixPermissions: 0o755], ofItemAtPath: program)
    }

    var environment: [String: String] {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        return ["PATH": directory.file("bin") + ":" + path, "PROGRAM_LOG": log]
    }

    var said: [String] { Files.read(log).split(separator: "\n").map(String.init) }
}

extension InteropSuite {
    /// Memory that is shared with the programs that open images.
    @Suite struct SharedMemoryTests {
        private static let bytes = 8 << 20

        private func image(_ directory: TemporaryDirectory) throws -> (String, [UInt8]) {
            let raw = directory.file("disk.raw")
            let content = try Images.random(raw, bytes: Self.bytes, seed: 11)
            let path = directory.file("disk.qcow2")
            try Command.run("qemu-img", ["convert", "-O", "qcow2", raw, path]).output()
            return (path, content)
        }

        private func server(
            _ path: String, in directory: TemporaryDirectory, readOnly: Bool = false,
            environment: [String: String] = [:]
        ) throws -> ServerUnderTest {
            let server = try ServerUnderTest(in: directory, environment: environment)
            var disk = DiskDescription("vda", path)
            disk.format = "qcow2"
            disk.isReadOnly = readOnly
            let file = directory.file("vm1.xml")
            try Files.write(DomainDescription("vm1", [disk]).xml, to: file)
            try server.cli(["define", file]).output()
            return server
        }

        /// Whether the server has memory that it shares with a program.
        private func shares(_ server: ServerUnderTest) -> Bool {
            Files.read("/proc/\(server.processID)/maps").contains("memfd:nbdpull-shared")
        }

        /// Writes and reads in many sizes and places, odd ones among them.
        private func exercise(
            _ client: NBDClient, _ expected: inout [UInt8], seed: UInt64, rounds: Int = 200
        ) throws {
            var random = SeededGenerator(seed: seed)
            for round in 0..<rounds {
                let counts = [1, 511, 512, 4096, 65_536, 100_001, 262_144, 1 << 20, 3 << 20]
                let count = counts[random.below(counts.count)]
                var place = Int.random(in: 0...Self.bytes - count, using: &random)
                if round.isMultiple(of: 2) { place &= ~4095 }
                if round % 3 == 0 {
                    let byte = UInt8.random(in: 0...255, using: &random)
                    let new = [UInt8](repeating: byte, count: count)
                    try client.write(new, at: place)
                    expected.replaceSubrange(place..<place + count, with: new)
                } else {
                    let read = try client.read(place, count)
                    #expect(read == Array(expected[place..<place + count]), "\(place) \(count)")
                }
            }
            try client.flush()
        }

        @Test("P5: a program of an image is asked in memory, and every byte is the right one")
        func content() throws {
            let directory = try TemporaryDirectory()
            var (path, expected) = try image(directory)
            let server = try server(path, in: directory)
            #expect(shares(server))
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            try exercise(client, &expected, seed: 1)
            #expect(try client.read(0, Self.bytes) == expected)
            // Killed in the midst of it: its successor shares memory as well.
            try Command.run("pkill", ["-9", "-f", "qemu-storage-daemon.*\(path)"]).output()
            try exercise(client, &expected, seed: 2)
            #expect(try client.read(0, Self.bytes) == expected)
            #expect(shares(server))
            try client.disconnect()
            try server.stop()
            try Command.run("qemu-img", ["check", "-q", path]).output()
            let copy = directory.file("copy.raw")
            try Command.run("qemu-img", ["convert", "-O", "raw", path, copy]).output()
            #expect(try Bytes.ofFile(copy) == expected)
        }

        @Test(
            "P1: a kill -9 of the server loses no write that was answered, asked for in memory or not"
        )
        func serverKilled() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.qcow2")
            try Command.run("qemu-img", ["create", "-q", "-f", "qcow2", path, "256M"]).output()
            let server = try server(path, in: directory)
            let clusters = 512
            for round in 0..<8 {
                // Places that the image has no room for yet: what is lost with its program.
                func place(_ index: Int) -> Int { (round * clusters + index) * 65_536 }
                func bytes(_ index: Int) -> [UInt8] {
                    [UInt8](repeating: UInt8(1 + (round + index) % 255), count: 4096)
                }
                let client = try NBDClient(server.liveURI("vm1", "vda"))
                var open: [(index: Int, ticket: NBDTicket)] = []
                var answered: [Int] = []
                var next = 0
                while answered.count < 40 + 30 * round {
                    while open.count < 32, next < clusters {
                        open.append((next, try client.startWrite(bytes(next), at: place(next))))
                        next += 1
                    }
                    NBDClient.waitForActivity([client], milliseconds: 100)
                    open.removeAll { entry in
                        guard case .done = client.outcome(of: entry.ticket) else { return false }
                        answered.append(entry.index)
                        return true
                    }
                }
                server.kill()
                try server.start()
                #expect(shares(server))
                let again = try NBDClient(server.liveURI("vm1", "vda"))
                for index in answered {
                    #expect(try again.read(place(index), 4096) == bytes(index), "\(round) \(index)")
                }
                try again.disconnect()
            }
            try server.stop()
            try Command.run("qemu-img", ["check", "-q", path]).output()
        }

        @Test("P5: read-only images are read in memory, too")
        func readOnly() throws {
            let directory = try TemporaryDirectory()
            let (path, expected) = try image(directory)
            let server = try server(path, in: directory, readOnly: true)
            #expect(shares(server))
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            #expect(try client.read(0, Self.bytes) == expected)
            try client.disconnect()
            try server.stop()
        }

        @Test(
            "P5, P2: a program that shares no memory, or does not get on with it, is asked by socket",
            arguments: ["old", "refuse", "end", "jump", "head", "error", "keep"])
        func standIns(mode: String) throws {
            let directory = try TemporaryDirectory()
            var (path, expected) = try image(directory)
            let standIn = try StandIn(mode)
            let server = try server(path, in: directory, environment: standIn.environment)
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            try exercise(client, &expected, seed: 3, rounds: 60)
            #expect(try client.read(0, Self.bytes) == expected)
            let connections = standIn.said.count { $0 == "connection" }
            let requests = standIn.said.count - connections
            let told = try server.cli(["event"]).output()
            switch mode {
            case "old": #expect(!shares(server) && connections == 0)
            case "refuse":
                #expect(!shares(server) && connections == 0)
                let words = "does not accept value 'vhost-user-blk'"
                #expect(told.contains(words) && told.contains("vda"), "\(told)")
            case "keep": #expect(shares(server) && connections == 1 && requests > 40)
            case "error": #expect(shares(server) && connections == 1, "\(told)")
            case "end":
                #expect(!shares(server) && connections == 4)
                #expect(told.contains("broken 4 times in a row"), "\(told)")
            default:
                #expect(!shares(server) && connections == 1)
                #expect(told.contains("it says that it has done"), "\(told)")
            }
            // What the next one of the image's programs does is another matter.
            try client.disconnect()
            try server.stop()
            try Command.run("qemu-img", ["check", "-q", path]).output()
        }

        @Test("P5: a program that does not end when it is told to is killed, which is told")
        func deaf() throws {
            let directory = try TemporaryDirectory()
            let (path, expected) = try image(directory)
            let standIn = try StandIn("deaf")
            let server = try server(path, in: directory, environment: standIn.environment)
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            #expect(try client.read(0, Self.bytes) == expected)
            try client.disconnect()
            try server.cli(["detach-disk", "vm1", "vda"]).output()
            let told = try server.cli(["event"]).output()
            #expect(told.contains("did not end in order: it was killed by signal 9"), "\(told)")
            try server.stop()
        }

        @Test("P5: a guest is told why a write failed, which a program says by its socket only")
        func noSpace() throws {
            let directory = try TemporaryDirectory()
            let room = try TinyFileSystem(mebibytes: 4)
            let path = room.path + "/disk.qcow2"
            try Command.run("qemu-img", ["create", "-q", "-f", "qcow2", path, "64M"]).output()
            let server = try server(path, in: directory)
            #expect(shares(server))
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 7, count: 1 << 20)
            var failure: NBDFailure?
            for index in 0..<16 where failure == nil {
                do throws(NBDFailure) { try client.write(new, at: index << 20) } catch {
                    failure = error
                }
            }
            #expect(failure?.code == ENOSPC, "\(String(describing: failure))")
            #expect(try client.read(0, 1 << 20) == new)
            try client.disconnect()
            try server.stop()
        }

        @Test("memory that a burst has needed is given back")
        func givenBack() throws {
            let directory = try TemporaryDirectory()
            let (path, _) = try image(directory)
            let server = try server(path, in: directory)
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            let tickets = try (0..<32).map { try client.startRead($0 % 8 << 20, 1 << 20) }
            for ticket in tickets {
                while client.outcome(of: ticket) == nil {
                    NBDClient.waitForActivity([client], milliseconds: 100)
                }
            }
            var kibibytes = 0
            for _ in 0..<100 {
                kibibytes = residentKiB(server)
                if kibibytes < 2048 { break }
                Thread.sleep(forTimeInterval: 0.1)
            }
            #expect(kibibytes > 0 && kibibytes < 2048)
            try client.disconnect()
            try server.stop()
        }

        /// What of the shared memory is there, in KiB.
        private func residentKiB(_ server: ServerUnderTest) -> Int {
            let text = Files.read("/proc/\(server.processID)/smaps")
            guard let place = text.range(of: "memfd:nbdpull-shared") else { return 0 }
            for line in text[place.upperBound...].split(separator: "\n")
            where line.hasPrefix("Rss:") {
                return Int(line.split(separator: " ")[1]) ?? 0
            }
            return 0
        }
    }
}
