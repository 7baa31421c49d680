import Foundation
import Glibc
import TestSupport
import Testing

private let canTrace = geteuid() == 0 && (try? Tool.path("strace")) != nil

extension InteropSuite {
    /// What requests cost in system calls: the part of speed that no busy machine changes.
    @Suite(.enabled(if: canTrace, "tracing needs strace and root"))
    struct SystemCallCountTests {
        /// Calls that the server makes while `body` runs, by name.
        ///
        /// `io_uring_enter` is left out: how often a ring looks for work is a matter of time.
        private func calls(
            of server: ServerUnderTest, during body: () throws -> Void
        ) throws -> [String: Int] {
            let names = "fadvise64,preadv2,pwrite64,recvmsg,sendmsg,splice,write"
            let log = server.directory.file("calls-\(UUID().uuidString)")
            let tracer = try Command(
                "strace",
                ["-f", "-q", "-e", "trace=" + names, "-o", log, "-p", "\(server.processID)"])
            try tracer.wait(for: "tracer") { _ in
                Files.listing("/proc/\(server.processID)/task").allSatisfy {
                    !Files.read("/proc/\(server.processID)/task/\($0)/status")
                        .contains("TracerPid:\t0")
                }
            }
            try body()
            tracer.signal(SIGINT)
            _ = try tracer.result()
            return Files.read(log).split(separator: "\n").reduce(into: [:]) { counts, line in
                // PID NAME(...) = RESULT
                guard
                    let name = line.split(separator: " ").dropFirst().first?
                        .split(separator: "(").first, names.contains(name)
                else { return }
                counts[String(name), default: 0] += 1
            }
        }

        @Test("a small read from memory is one read and one send")
        func smallReads() throws {
            let fixture = try LiveFixture()
            let client = try NBDClient(fixture.uri("vda"))
            _ = try client.read(0, fixture.sizeBytes)
            let counts = try calls(of: fixture.server) {
                for place in 0..<500 { _ = try client.read(place * 4096, 4096) }
            }
            print("500 reads of 4 KiB: \(counts)")
            #expect(counts == ["preadv2": 500, "sendmsg": 500])
            try fixture.server.stop()
        }

        @Test("a small write is one write and one send")
        func smallWrites() throws {
            let fixture = try LiveFixture()
            let client = try NBDClient(fixture.uri("vda"))
            let bytes = randomBytes(4096, seed: 7)
            try client.write(bytes, at: 0)
            let counts = try calls(of: fixture.server) {
                for place in 0..<500 { try client.write(bytes, at: place * 4096) }
            }
            print("500 writes of 4 KiB: \(counts)")
            #expect(counts["sendmsg"] == 500)
            #expect(counts["preadv2"] == nil && counts["splice"] == nil)
            // A slow one sends those after it to the kernel's workers. The log of changes is written
            // once for each 64 KiB that had none.
            let logged = 500 * 4096 / (64 << 10)
            #expect(counts["pwrite64", default: 0] <= 500 + logged)
            try fixture.server.stop()
        }

        @Test("256 KiB by reference are splices and a header, and nothing is copied")
        func byReference() throws {
            let fixture = try LiveFixture(bytes: 32 << 20)
            let client = try NBDClient(fixture.uri("vdc"))
            _ = try client.read(0, fixture.sizeBytes)
            let count = fixture.sizeBytes / (256 << 10)
            let counts = try calls(of: fixture.server) {
                for place in 0..<count { _ = try client.read(place * (256 << 10), 256 << 10) }
            }
            print("\(count) reads of 256 KiB by reference: \(counts)")
            #expect(counts["preadv2"] == nil, "nothing is copied")
            // A splice takes what a pipe's slots or the socket hold: a few for each direction.
            #expect(counts["splice", default: 0] <= 3 * count)
            #expect(counts["sendmsg", default: 0] <= count)
            try fixture.server.stop()
        }

        @Test("256 KiB copied are one read and few sends, of a job too")
        func copied() throws {
            let fixture = try LiveFixture(bytes: 32 << 20)
            let job = try fixture.begin()
            let client = try NBDClient(try job.uri("vda"))
            _ = try client.read(0, fixture.sizeBytes)
            let count = fixture.sizeBytes / (256 << 10)
            let counts = try calls(of: fixture.server) {
                for place in 0..<count { _ = try client.read(place * (256 << 10), 256 << 10) }
            }
            print("\(count) reads of 256 KiB, copied: \(counts)")
            #expect(counts["preadv2"] == count)
            #expect(counts["splice"] == nil)
            #expect(counts["sendmsg", default: 0] <= 3 * count)
            try fixture.server.stop()
        }
    }
}
