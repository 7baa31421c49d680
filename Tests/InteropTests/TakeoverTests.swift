import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

extension InteropSuite {
    /// A new process takes the server's place, and nobody loses a request.
    @Suite struct TakeoverTests {
        /// A client that connects again and asks again whatever was not answered.
        final class PatientClient {
            let uri: String
            private var client: NBDClient?
            private(set) var connects = 0
            /// The longest that one request took, in seconds.
            private(set) var longest = 0.0

            init(_ uri: String) { self.uri = uri }

            func write(_ bytes: [UInt8], at offset: Int) throws {
                try ask { try $0.write(bytes, at: offset) }
            }

            func read(_ offset: Int, _ count: Int) throws -> [UInt8] {
                try ask { try $0.read(offset, count) }
            }

            private func ask<Value>(_ body: (NBDClient) throws -> Value) throws -> Value {
                let begun = Date()
                while true {
                    do {
                        let connected = try client ?? NBDClient(uri)
                        if client == nil { connects += 1 }
                        client = connected
                        let value = try body(connected)
                        longest = max(longest, Date().timeIntervalSince(begun))
                        return value
                    } catch {
                        client = nil
                        guard Date().timeIntervalSince(begun) < 40 else { throw error }
                        Thread.sleep(forTimeInterval: 0.002)
                    }
                }
            }
        }

        /// Writes 4 KiB blocks, each with a number of its own, on a thread until told to stop.
        final class Machine: Sendable {
            private struct State {
                var blocks: [Int: UInt8] = [:]
                var failure: String?
                var connects = 0
                var longest = 0.0
            }
            private let state = Mutex(State())
            private let stopping = Atomic<Bool>(false)
            private let ended = DispatchSemaphore(value: 0)

            init(_ uri: String, blocks: Int) {
                Thread.detachNewThread { [self] in
                    let client = PatientClient(uri)
                    var number = 0
                    while !stopping.load(ordering: .relaxed) {
                        let block = number * 7 % blocks
                        let value = UInt8(truncatingIfNeeded: number)
                        do {
                            try client.write(
                                [UInt8](repeating: value, count: 4096), at: block * 4096)
                        } catch {
                            state.withLock { $0.failure = "\(error)" }
                            break
                        }
                        state.withLock { $0.blocks[block] = value }
                        number += 1
                    }
                    state.withLock {
                        $0.connects = client.connects
                        $0.longest = client.longest
                    }
                    ended.signal()
                }
            }

            /// What it has written, by block.
            func stop() throws -> (blocks: [Int: UInt8], connects: Int, longest: Double) {
                stopping.store(true, ordering: .relaxed)
                ended.wait()
                let state = state.withLock { $0 }
                if let failure = state.failure { throw TestFailure("a write failed: \(failure)") }
                return (state.blocks, state.connects, state.longest)
            }
        }

        func expect(
            _ fixture: LiveFixture, _ target: String, _ blocks: [Int: UInt8]
        ) throws {
            let image = try Bytes.ofFile(fixture.path(target))
            for (block, value) in blocks {
                let found = image[block * 4096..<(block + 1) * 4096]
                #expect(found.allSatisfy { $0 == value }, "block \(block)")
            }
        }

        @Test("P1: a machine and backup clients that connect again lose nothing over takeovers")
        func takeovers() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let job = try fixture.begin()
            let overTCP = try fixture.begin(tag: "tcp", tcp: true)
            let machine = Machine(fixture.uri("vda"), blocks: 2048)
            let readers = [
                PatientClient(try job.uri("vda")), PatientClient(try overTCP.uri("vda")),
            ]
            var images = [[UInt8]](repeating: [], count: readers.count)
            let first = server.processID
            for offset in stride(from: 0, to: fixture.sizeBytes, by: 1 << 20) {
                if offset % (4 << 20) == 0 { try server.takeOver() }
                for (index, reader) in readers.enumerated() {
                    images[index] += try reader.read(offset, 1 << 20)
                }
            }
            #expect(server.processID != first)
            let written = try machine.stop()
            #expect(written.blocks.count > 100)
            #expect(written.connects >= 4)
            for image in images { #expect(image == (try fixture.content("vda"))) }
            try server.end("vm1", job)
            try server.end("vm1", overTCP)
            try expect(fixture, "vda", written.blocks)
            let ended = try server.cli(["backup-list", "vm1", "--completed"]).output()
            #expect(!ended.contains("failed"), "\(ended)")
            print("longest request of a machine: \(written.longest) s")
            try server.stop()
        }

        @Test("qemu with reconnect-delay sees no error over takeovers")
        func qemu() throws {
            let fixture = try LiveFixture()
            let commands = (0..<60).flatMap { number in
                [
                    "-c", "write -P \(number + 1) \(number * 64)k 64k", "-c", "sleep 20",
                ]
            }
            let image =
                "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="
                + "\(fixture.server.liveSocket),file.export=vm1/vda,file.reconnect-delay=60"
            let writer = try Command("qemu-io", ["--image-opts", image] + commands)
            for _ in 0..<3 {
                try fixture.server.takeOver()
                Thread.sleep(forTimeInterval: 0.1)
            }
            let result = try writer.result(timeout: 60)
            #expect(result.succeeded && !result.description.contains("error"), "\(result)")
            let content = try Bytes.ofFile(fixture.path("vda"))
            for number in 0..<60 {
                let piece = content[number << 16..<(number + 1) << 16]
                #expect(piece.allSatisfy { $0 == UInt8(number + 1) }, "write \(number)")
            }
            try fixture.server.stop()
        }

        @Test("SIGUSR2 starts the program that lies at the server's path; the job keeps its id")
        func signal() throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin()
            let old = fixture.server.processID
            fixture.server.signal(SIGUSR2)
            let deadline = Date(timeIntervalSinceNow: 20)
            while fixture.server.isRunning, Date() < deadline {
                Thread.sleep(forTimeInterval: 0.01)
            }
            let said = fixture.server.stderr
            #expect(!fixture.server.isRunning, "\(said)")
            #expect(said.contains("takes over from version"), "\(said)")
            let new = try self.process(of: fixture.server)
            defer { kill(new, SIGKILL) }
            #expect(new != old)
            #expect(
                try fixture.server.cli(["backup-list", "vm1"]).output().contains(job.id))
            #expect(
                try PatientClient(try job.uri("vdb")).read(0, 1 << 20)
                    == Array(try fixture.content("vdb").prefix(1 << 20)))
            kill(new, SIGTERM)
            while kill(new, 0) == 0, Date() < deadline { Thread.sleep(forTimeInterval: 0.01) }
            #expect(!Files.exists(fixture.server.liveSocket))
        }

        /// The process that answers on the control socket.
        private func process(of server: ServerUnderTest) throws -> Int32 {
            struct Body: Decodable { let pid: Int32 }
            let text = try Command.run(
                "curl", ["-s", "--unix-socket", server.controlSocket, "http://h/v1/server"]
            ).output()
            return try JSONDecoder().decode(Body.self, from: Data(text.utf8)).pid
        }

        // MARK: Newcomers that fail

        /// How a newcomer that is not one of ours ends.
        private enum Ending: String {
            case nonsense, afterHello, afterTake, afterGo, failedAfterGo, silentAfterGo
            case silentAfterHello
        }

        /// Speaks as a newcomer does, then ends as it was told.
        private func bad(_ server: ServerUnderTest, _ ending: Ending) throws -> Command {
            let script = """
                import json, os, socket, sys, time
                run, state, ending = sys.argv[1:]
                s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                s.connect(run + "/takeover.sock")
                def say(kind, **more): s.send(json.dumps(dict(more, kind=kind)).encode())
                def hear(): return json.loads(s.recv(65536) or '{"kind": "ended"}')
                if ending == "nonsense": s.send(b"what?")
                else: say("hello", version=1, program="9.9", executable="/bad",
                          stateDirectory=state, runDirectory=run)
                answer = hear()
                print(answer, flush=True)
                if ending == "afterHello": os._exit(0)
                if answer["kind"] != "welcome": os._exit(1)
                if ending == "silentAfterHello": time.sleep(60)
                say("take")
                if ending == "afterTake": os._exit(0)
                while True:
                    heard = hear()
                    print(heard, flush=True)
                    if heard["kind"] in ("go", "refused", "ended"): break
                if ending == "failedAfterGo":
                    say("failed", reason="it cannot read what it found")
                    time.sleep(0.2)
                if ending == "silentAfterGo": time.sleep(60)
                """
            return try Command(
                "/usr/bin/python3",
                ["-c", script, server.runDirectory, server.stateDirectory, ending.rawValue])
        }

        @Test("P2: a newcomer that fails at any step leaves the server serving")
        func failures() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let job = try fixture.begin()
            let machine = Machine(fixture.uri("vda"), blocks: 2048)
            let reader = PatientClient(try job.uri("vda"))
            let process = server.processID
            let endings: [Ending] = [
                .nonsense, .afterHello, .afterTake, .afterGo, .failedAfterGo, .silentAfterGo,
            ]
            for (index, ending) in endings.enumerated() {
                let newcomer = try bad(server, ending)
                _ = try newcomer.result(timeout: 40)
                let offset = index << 20
                let read = try reader.read(offset, 1 << 20)
                let expected = try fixture.content("vda")[offset..<offset + 1 << 20]
                #expect(read.elementsEqual(expected), "\(ending)")
                #expect(try self.process(of: server) == process)
            }
            #expect(server.stderr.contains("goes on"), "\(server.stderr)")
            #expect(server.stderr.contains("it cannot read what it found"))
            #expect(server.stderr.contains("nothing was heard of it"))
            // One of ours that cannot listen where it is told to.
            let blocker = try ReferenceListener()
            let blocked = try server.startNewcomer(["--live-tcp", "127.0.0.1:\(blocker.port)"])
                .result(timeout: 30)
            #expect(blocked.status == 1 && blocked.stderr.contains("cannot listen"), "\(blocked)")
            #expect(try reader.read(8 << 20, 4096).count == 4096)
            let written = try machine.stop()
            #expect(written.blocks.count > 100)
            // And one that can comes after all of them.
            try server.takeOver()
            #expect(
                try server.cli(["backup-list", "vm1"]).output().contains(job.id))
            try server.end("vm1", job)
            try expect(fixture, "vda", written.blocks)
            try server.stop()
        }

        @Test("P2: a newcomer that is killed at any moment leaves the server serving, or serves")
        func killed() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let job = try fixture.begin()
            let machine = Machine(fixture.uri("vda"), blocks: 2048)
            for pause in [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13] {
                let newcomer = try server.startNewcomer()
                Thread.sleep(forTimeInterval: pause)
                newcomer.kill()
                if !server.isRunning { try server.start() }
                let deadline = Date(timeIntervalSinceNow: 30)
                while try !server.cli(["backup-list", "vm1"]).output().contains(job.id),
                    Date() < deadline
                {}
            }
            let written = try machine.stop()
            let read = try PatientClient(try job.uri("vda")).read(0, fixture.sizeBytes / 2)
            #expect(read.elementsEqual(try fixture.content("vda").prefix(fixture.sizeBytes / 2)))
            try expect(fixture, "vda", written.blocks)
            try server.end("vm1", job)
            try server.stop()
        }

        @Test("what cannot take over is refused with what to do, and disturbs nobody")
        func refusals() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let guest = try NBDClient(fixture.uri("vda"))
            func refused(_ newcomer: Command, _ text: String) throws {
                let result = try newcomer.result(timeout: 20)
                #expect(result.status == 1 && result.stderr.contains(text), "\(result)")
                try guest.write([1, 2, 3], at: 0)
            }
            let directory = fixture.directory.file("other")
            try refused(
                try server.startNewcomer(state: directory), "its state directory is '\(directory)'")
            let newer = server.stateDirectory + "/domains/newer.state"
            try Files.write("nbdpull-state 9 domain 00000000 0\n", to: newer)
            try refused(try server.startNewcomer(), "was written by a newer version")
            try FileManager.default.removeItem(atPath: newer)
            // One is at it: another one has to wait.
            let first = try bad(server, .silentAfterHello)
            try first.wait(for: "welcome") { $0.stdout.contains("welcome") }
            try refused(
                try server.startNewcomer(), "process \(first.processID) is taking over")
            first.kill()
            try guest.write([4], at: 0)
            // Nothing to take over: it starts.
            let lone = try Command(
                try ServerUnderTest.binary(),
                [
                    "serve", "--takeover", "--state-dir", fixture.directory.file("s2"), "--run-dir",
                    fixture.directory.file("r2"),
                ])
            try lone.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
            #expect(lone.stderr.contains("there is no server to take over from"))
            lone.terminate()
            #expect(try lone.result().succeeded)
        }
    }
}

/// A TCP port that somebody else listens on.
private final class ReferenceListener {
    let port: Int
    private let server: Command

    init() throws {
        port = Ports.free()
        let script =
            "import socket,time;s=socket.socket();s.bind(('127.0.0.1',\(port)));s.listen();"
            + "print('up',flush=True);time.sleep(60)"
        server = try Command("/usr/bin/python3", ["-c", script])
        try server.wait(for: "listener") { $0.stdout.contains("up") }
    }
}
