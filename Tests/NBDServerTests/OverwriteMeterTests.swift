import Testing

@testable import NBDServer

@Suite struct OverwriteMeterTests {
    private static let cluster: UInt64 = 16 << 10
    private static let disk: UInt64 = 1 << 40
    private static let start: UInt64 = 5_000_000_000_000

    private func bytes(_ meter: OverwriteMeter, _ now: UInt64 = start) throws -> UInt64 {
        try #require(meter.bytes(now: now, diskBytes: Self.disk))
    }

    @Test("a disk that nobody has written has nothing overwritten")
    func nothing() throws {
        #expect(try bytes(OverwriteMeter()) == 0)
        #expect(try bytes(OverwriteMeter(), 0) == 0)
    }

    @Test("a cluster counts once, however often and in whatever parts it is written")
    func once() throws {
        let meter = OverwriteMeter()
        for _ in 0..<1000 {
            meter.note(offset: 7 * Self.cluster + 512, length: 512, now: Self.start)
            meter.note(offset: 7 * Self.cluster, length: Self.cluster, now: Self.start)
        }
        #expect(try bytes(meter) / Self.cluster == 1)
        // A write over the edge of two clusters counts both.
        meter.note(offset: 8 * Self.cluster - 1, length: 2, now: Self.start)
        #expect(try bytes(meter) / Self.cluster == 2)
    }

    @Test("the estimate is within a tenth", arguments: [100, 1000, 5000, 50_000, 1_000_000])
    func estimate(clusters: UInt64) throws {
        let meter = OverwriteMeter()
        let first = clusters * 977
        for cluster in 0..<clusters {
            meter.note(
                offset: (first + cluster) * Self.cluster, length: 4096,
                now: Self.start + cluster * 1000)
        }
        let found = Double(try bytes(meter, Self.start + clusters * 1000)) / Double(Self.cluster)
        #expect(abs(found / Double(clusters) - 1) < 0.1, "\(found) for \(clusters)")
    }

    @Test("what was written more than an hour ago is forgotten, also when the clock jumped")
    func forgets() throws {
        let meter = OverwriteMeter()
        let hour = OverwriteMeter.spanLength * UInt64(OverwriteMeter.spans)
        meter.note(offset: 0, length: Self.cluster, now: Self.start)
        let later = Self.start + hour - OverwriteMeter.spanLength
        #expect(try bytes(meter, later) / Self.cluster == 1)
        #expect(try bytes(meter, Self.start + hour) == 0)
        #expect(try bytes(meter, Self.start + 1000 * hour) == 0)
        // The span of the same place, an hour later, begins with nothing.
        meter.note(offset: 1 << 30, length: Self.cluster, now: Self.start + hour)
        #expect(try bytes(meter, Self.start + hour) / Self.cluster == 1)
    }

    @Test("P6: a request over a whole disk costs what a small one does and counts as the disk")
    func whole() throws {
        let meter = OverwriteMeter()
        for _ in 0..<3 { meter.note(offset: 0, length: Self.disk, now: Self.start) }
        #expect(try bytes(meter) == Self.disk)
        meter.note(offset: 0, length: 1 << 62, now: Self.start)
        #expect(try bytes(meter) == Self.disk)
        meter.note(offset: (1 << 63) - 1, length: 1, now: Self.start)
        meter.note(offset: 0, length: 0, now: Self.start)
        #expect(try bytes(meter) == Self.disk)
    }
}
