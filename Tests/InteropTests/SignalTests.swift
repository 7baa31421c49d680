import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// CVE-2015-0847: a server that works in signal handlers deadlocks on what it interrupted.
    @Suite struct SignalTests {
        /// The signals in a line of hexadecimal digits of `/proc`.
        private func signals(_ key: String, in text: String) -> Set<Int32> {
            let line = text.split(separator: "\n").first { $0.hasPrefix(key) }
            let mask = line.flatMap { UInt64($0.drop { $0 != "\t" }.dropFirst(), radix: 16) } ?? 0
            return Set((1...64).filter { mask & (1 << UInt64($0 - 1)) != 0 })
        }

        @Test(
            "CVE-2015-0847: operators' signals are read from descriptors, and no others are handled"
        )
        func descriptors() throws {
            let fixture = try LiveFixture()
            let process = "/proc/\(fixture.server.processID)"
            let handled = signals("SigCgt:", in: Files.read(process + "/status"))
            let read = Files.listing(process + "/fdinfo").reduce(into: Set<Int32>()) {
                $0.formUnion(signals("sigmask:", in: Files.read(process + "/fdinfo/" + $1)))
            }
            // The language's runtime reports crashes; 32 and 33 are the C library's own.
            let others = [SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, 32, 33]
            let operators: Set = [SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2]
            #expect(read == operators, "\(read.sorted())")
            #expect(handled.subtracting(others) == operators, "\(handled.sorted())")
            try fixture.server.stop()
        }

        @Test("CVE-2015-0847: a storm of signals disturbs no guest, no pull and no end")
        func storm() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let job = try fixture.begin()
            let (server, copy) = (fixture.server, fixture.directory.file("copy"))
            let pull = try Command("nbdcopy", [try job.uri("vda"), copy])
            let guest = try NBDClient(fixture.uri("vda"))
            var (signals, at) = (0, 0)
            repeat {
                for number in [SIGHUP, SIGCHLD, SIGWINCH, SIGURG, SIGSTOP, SIGCONT] {
                    kill(server.processID, number)
                }
                signals += 6
                try guest.write([UInt8(truncatingIfNeeded: at)], at: at << 16)
                at = (at + 1) % 1024
            } while pull.isRunning || signals < 6000
            #expect(try pull.result().succeeded)
            #expect(try Bytes.ofFile(copy) == (try fixture.content("vda")))
            try server.requireHealthy()
            #expect(server.stderr.contains("reloaded"))
            // While a storm still blows, the end is as clean as ever.
            for _ in 0..<100 { kill(server.processID, SIGHUP) }
            try server.stop()
        }
    }
}
