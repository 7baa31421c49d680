import Control
import ServerInterface
import Testing

/// What the port for watching is told at the start, and whom it answers.
@Suite struct MonitorRuleTests {
    @Test(
        "a bare port is one of the loopback address, an address is taken as it is",
        arguments: [
            ("9809", "127.0.0.1", 9809), (":9809", "127.0.0.1", 9809), ("0", "127.0.0.1", 0),
            ("0.0.0.0:9809", "0.0.0.0", 9809), ("[::1]:9809", "::1", 9809),
            ("backup.example.org:1", "backup.example.org", 1), ("10.0.0.1:0", "10.0.0.1", 0),
        ])
    func address(_ text: String, _ host: String, _ port: Int) throws {
        let settings = try MonitorSettings(text)
        #expect(settings.host == host && settings.port == UInt16(port))
    }

    @Test(
        "what is no port is refused by name",
        arguments: [
            "65536", ":", "", "-1", "host", "host:", "::1:9809", "1.2.3.4:99999", "http://x",
        ])
    func refused(_ text: String) {
        let error = #expect(throws: ControlError.self) { try MonitorSettings(text) }
        #expect(error?.message.contains("--metrics '\(text)'") == true)
    }

    @Test(
        "what is wrong with a port or address is said, and what to do",
        arguments: [
            ("99999", "port 99999 does not exist: choose one of 1 to 65535"),
            ("1.2.3.4:70000", "port 70000 does not exist"), ("::1:80", "in brackets"),
            ("host:", "ADDR:PORT"),
        ])
    func reasons(_ text: String, _ words: String) {
        let error = #expect(throws: ControlError.self) { try MonitorSettings(text) }
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test("a host that has no address is told by that, and not by a call's errno")
    func unknownHost() async {
        let settings = MonitorSettings(host: "nohost.invalid", port: 1)
        let error = #expect(throws: ControlError.self) {
            try MonitorListener(settings, SocketKeep())
        }
        #expect(
            error?.message.contains("host 'nohost.invalid' has no address") == true,
            "\(error?.message ?? "")")
        let foreign = MonitorSettings(host: "192.0.2.1", port: 1)
        let other = #expect(throws: ControlError.self) {
            try MonitorListener(foreign, SocketKeep())
        }
        #expect(
            other?.message.contains("this machine does not have that address") == true,
            "\(other?.message ?? "")")
    }

    @Test(
        "P6: a page of another name cannot read the answers, whatever address its name resolves to")
    func rebinding() {
        let rule = HostRule(names: ["proxy.example.org"], ownName: "Backup1")
        for host in [
            "127.0.0.1:9809", "127.0.0.1", "192.168.0.7:80", "[::1]:9809", "[fe80::1]", "localhost",
            "localhost:9809", "LOCALHOST", "backup1:9809", "BACKUP1", "proxy.example.org",
            "Proxy.Example.org.:443",
        ] {
            #expect(rule.allows(host), "\(host)")
        }
        for host in [
            "evil.example.com", "evil.example.com:9809", "127.0.0.1.evil.com", "1.2.3.4.5",
            "backup1.evil.com", "localhost.evil.com", "127.0.0.256", "127.0.0", "", ":9809",
            "[::1", "[::1]evil.com", "[evil.com]", "evil.com:127.0.0.1", "127.0.0.1:80:80",
            "localhost:99999", "127.0.0.1 evil.com", "x@localhost",
        ] {
            #expect(!rule.allows(host), "\(host)")
        }
        #expect(rule.allows(nil))
        #expect(HostRule(names: ["*"], ownName: "").allows("anything.at.all"))
        #expect(!HostRule(names: [], ownName: "").allows(""))
    }

    @Test("a duration is counted in the first step whose bound it does not exceed")
    func steps() {
        for step in 0..<DurationHistogram.boundCount {
            let bound = DurationHistogram.boundNanoseconds(step)
            for (value, place) in [(bound, step), (bound + 1, step + 1)] {
                var histogram = DurationHistogram()
                histogram.note(nanoseconds: value)
                #expect(histogram.counts[place] == 1, "\(value)")
                #expect(histogram.count == 1 && histogram.totalNanoseconds == value)
            }
        }
        var extremes = DurationHistogram()
        extremes.note(nanoseconds: 0)
        extremes.note(nanoseconds: .max)
        #expect(extremes.counts.first == 1 && extremes.counts.last == 1)
        #expect(DurationHistogram.boundNanoseconds(0) == 16_000)
    }

    @Test(
        "a disk of any size has at most 1024 cells, which cover it",
        arguments: [
            0, 1, 16_383, 16_384, 16_385, 1 << 24, (1 << 24) + 1, 1 << 40, (1 << 62) - 1, 1 << 62,
        ] as [UInt64])
    func cells(_ size: UInt64) {
        let geometry = CellGeometry(sizeBytes: size)
        #expect(geometry.count <= CellGeometry.cellsMax)
        #expect(geometry.cells(0..<size) == 0..<geometry.count)
        guard size > 0 else { return }
        #expect(UInt64(geometry.count - 1) << geometry.shift < size)
        #expect(geometry.cells((size - 1)..<size) == (geometry.count - 1)..<geometry.count)
        #expect(geometry.cells(size..<size).isEmpty)
        #expect(geometry.cells(UInt64.max - 1..<UInt64.max).isEmpty)
    }
}
