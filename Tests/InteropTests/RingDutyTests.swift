import TestSupport
import Testing

extension InteropSuite {
    /// Machines and backup clients are served by threads of their own.
    @Suite struct RingDutyTests {
        private struct Times {
            let guests: UInt64
            let backups: UInt64

            init(_ server: ServerUnderTest) {
                func sum(_ prefix: String) -> UInt64 {
                    server.threads.filter { $0.name.hasPrefix(prefix) }
                        .reduce(0) { $0 + $1.processorNanoseconds }
                }
                guests = sum("nbdpull-ring-")
                backups = sum("nbdpull-job-")
            }
        }

        @Test("a pull leaves the machines' threads alone, and gives way to them")
        func pull() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let begun = try fixture.begin()
            let threads = fixture.server.threads
            let ring = try #require(threads.first { $0.name == "nbdpull-ring-0" })
            let job = try #require(threads.first { $0.name == "nbdpull-job-0" })
            #expect(job.niceness == min(ring.niceness + 10, 19))
            let before = Times(fixture.server)
            for _ in 0..<4 {
                try Command.run("nbdcopy", [try begun.uri("vda"), "null:"]).output()
            }
            let after = Times(fixture.server)
            let guests = after.guests - before.guests
            let backups = after.backups - before.backups
            #expect(backups > 1_000_000)
            #expect(guests * 5 < backups, "\(guests) ns beside \(backups) ns")
            try fixture.server.stop()
        }

        @Test("a machine's own reads and writes are no business of the backups' threads")
        func machine() throws {
            let fixture = try LiveFixture(bytes: 64 << 20)
            let job = try fixture.begin()
            let before = Times(fixture.server)
            for _ in 0..<4 {
                try Command.run("nbdcopy", [fixture.uri("vda"), "null:"]).output()
            }
            let after = Times(fixture.server)
            let guests = after.guests - before.guests
            let backups = after.backups - before.backups
            #expect(guests > 1_000_000)
            #expect(backups * 5 < guests, "\(backups) ns beside \(guests) ns")
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }
    }
}
