import Testing

@testable import NBDServer

@Suite("Small buffered writes on the ring's thread")
struct InlineWritesTests {
    private let slow = InlineWrites.slowNanoseconds + 1
    private let pause = InlineWrites.pauseNanoseconds

    @Test("only short writes of whole pages")
    func bounds() {
        let writes = InlineWrites()
        #expect(writes.allows(bytes: 4096, isWholePages: true, now: 0))
        #expect(writes.allows(bytes: InlineWrites.bytesMax, isWholePages: true, now: 0))
        #expect(!writes.allows(bytes: InlineWrites.bytesMax + 1, isWholePages: true, now: 0))
        #expect(!writes.allows(bytes: 512, isWholePages: false, now: 0))
    }

    @Test("a slow write pauses them, twice as long each time, up to a bound")
    func pauses() {
        var writes = InlineWrites()
        var now: UInt64 = 1
        var expected = pause
        var lost: UInt64 = 0
        for _ in 0..<20 {
            writes.took(slow, now: now)
            lost += slow
            #expect(!writes.allows(bytes: 4096, isWholePages: true, now: now + expected - 1))
            now += expected
            #expect(writes.allows(bytes: 4096, isWholePages: true, now: now))
            expected = min(expected * 2, InlineWrites.pauseNanosecondsMax)
        }
        #expect(lost * 1000 < now)
    }

    @Test("quick writes go on, and after many of them a slow one is the first again")
    func forgets() {
        var writes = InlineWrites()
        writes.took(slow, now: 0)
        writes.took(slow, now: pause)
        for _ in 0..<InlineWrites.quickWritesToForget { writes.took(1000, now: 4 * pause) }
        writes.took(slow, now: 4 * pause)
        #expect(writes.allows(bytes: 4096, isWholePages: true, now: 5 * pause))
    }

    @Test("expensive writes go to the kernel's workers, but for a few that look again")
    func expensive() {
        var writes = InlineWrites()
        var inline = 0
        var now: UInt64 = 0
        for _ in 0..<100_000 {
            if writes.allows(bytes: 4096, isWholePages: true, now: now) {
                inline += 1
                writes.took(45_000, now: now)
            }
            now += 30_000
        }
        // 3 s in pauses of 250 ms, a handful of writes between them.
        #expect((12...120).contains(inline))
        for _ in 0..<10_000 where writes.allows(bytes: 4096, isWholePages: true, now: now + pause) {
            writes.took(4_000, now: now + pause)
        }
        #expect(writes.allows(bytes: 4096, isWholePages: true, now: now + pause))
    }

    @Test("one expensive write among cheap ones changes nothing")
    func outlier() {
        var writes = InlineWrites()
        for index in 0..<1000 {
            writes.took(index % 50 == 0 ? 100_000 : 4_000, now: 1)
            #expect(writes.allows(bytes: 4096, isWholePages: true, now: 1))
        }
    }

    @Test("a thread that loses its processor now and then does not make writes expensive")
    func preempted() {
        var writes = InlineWrites()
        for index in 0..<1000 {
            writes.took(index % 100 == 50 ? 2_000_000 : 4_000, now: 1)
            #expect(writes.allows(bytes: 4096, isWholePages: true, now: 1))
        }
    }

    @Test("writes of which every tenth takes long are not made inline, alone or not")
    func oftenLong() {
        var writes = InlineWrites()
        for index in 0..<1000 { writes.took(index % 10 == 0 ? 1_500_000 : 4_000, now: 1) }
        #expect(!writes.allows(bytes: 4096, isWholePages: true, now: 2))
        #expect(!writes.allowsAlone(bytes: 4096, isWholePages: true, now: 2))
        #expect(writes.allows(bytes: 4096, isWholePages: true, now: 1 + pause))
    }

    @Test("a lone write is made inline although it is expensive, up to a bound")
    func alone() {
        var writes = InlineWrites()
        for _ in 0..<100 { writes.took(45_000, now: 1) }
        #expect(!writes.allows(bytes: 4096, isWholePages: true, now: 2))
        #expect(writes.allowsAlone(bytes: 4096, isWholePages: true, now: 2))
        let more = InlineWrites.bytesMaxAlone + 1
        #expect(!writes.allowsAlone(bytes: more, isWholePages: true, now: 2))
        #expect(!writes.allowsAlone(bytes: 512, isWholePages: false, now: 2))
        for _ in 0..<100 { writes.took(150_000, now: 1) }
        #expect(!writes.allowsAlone(bytes: 4096, isWholePages: true, now: 2))
        // What others find out now and then counts for it as well.
        for _ in 0..<100 { writes.took(4_000, now: pause) }
        #expect(writes.allowsAlone(bytes: 4096, isWholePages: true, now: pause))
        writes.took(slow, now: pause)
        #expect(!writes.allowsAlone(bytes: 4096, isWholePages: true, now: 2 * pause - 1))
    }
}
