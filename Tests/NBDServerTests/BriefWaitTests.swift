import Testing

@testable import NBDServer

@Suite("Looking before sleeping")
struct BriefWaitTests {
    private let short = BriefWait(.client).longestSleep / 2
    private let long = BriefWait(.client).longestSleep + 1

    private func looking() -> BriefWait {
        var wait = BriefWait(.client)
        for _ in 0..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        return wait
    }

    @Test("nothing is looked for at first, nor on a ring that rests")
    func rests() {
        var wait = BriefWait(.client)
        for _ in 0..<1000 {
            #expect(wait.nanoseconds == 0)
            wait.slept(long, completions: 1)
        }
    }

    @Test("a run of short sleeps begins it, a longer one in between does not count")
    func begins() {
        var wait = BriefWait(.client)
        for _ in 1..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        #expect(wait.nanoseconds == 0)
        wait.slept(long, completions: 1)
        for _ in 1..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 1) }
        #expect(wait.nanoseconds == 0)
        wait.slept(short, completions: 1)
        #expect(wait.nanoseconds == wait.longestLook)
    }

    @Test("several completions at once are no reason to begin")
    func crowds() {
        var wait = BriefWait(.client)
        for _ in 0..<1000 { wait.slept(short, completions: 2) }
        #expect(wait.nanoseconds == 0)
    }

    @Test("several answers of a disk at once are as good as one, and so are chains of busy guests")
    func countedCrowds() {
        for kind in [BriefWait.Kind.disk, .busyGuests] {
            var wait = BriefWait(kind)
            for _ in 0..<BriefWait.shortSleepsToBegin {
                #expect(wait.nanoseconds == 0)
                wait.slept(wait.longestSleep, completions: 5)
            }
            for _ in 0..<100 { wait.found(completions: 5) }
            #expect(wait.nanoseconds == wait.longestLook)
            for _ in 0..<BriefWait.missesToEnd { wait.missed() }
            #expect(wait.nanoseconds == 0)
        }
    }

    @Test("it goes on while it finds something, and ends when it does not")
    func ends() {
        var wait = looking()
        for _ in 0..<1000 { wait.found(completions: 1) }
        #expect(wait.nanoseconds > 0)
        for _ in 0..<BriefWait.missesToEnd { wait.missed() }
        #expect(wait.nanoseconds == 0)
    }

    @Test("mostly in vain, it ends soon")
    func mostlyVain() {
        var wait = looking()
        var looks = 0
        while wait.nanoseconds > 0, looks < 1000 {
            looks += 1
            if looks % 3 == 0 { wait.found(completions: 1) } else { wait.missed() }
        }
        #expect(looks < 20)
    }

    @Test("each kind has its own measure", arguments: BriefWait.Kind.allCases)
    func kinds(_ kind: BriefWait.Kind) {
        var wait = BriefWait(kind)
        for _ in 0..<1000 { wait.slept(wait.longestSleep + 1, completions: 1) }
        #expect(wait.nanoseconds == 0)
        for _ in 0..<BriefWait.shortSleepsToBegin {
            wait.slept(wait.longestSleep, completions: 1)
        }
        #expect(wait.nanoseconds == wait.longestLook)
        #expect(wait.longestLook <= wait.longestSleep)
    }

    @Test("several completions at once are what busy guests are waited for with")
    func crowdsOfGuests() {
        var wait = BriefWait(.busyGuests)
        for _ in 0..<BriefWait.shortSleepsToBegin { wait.slept(short, completions: 3) }
        #expect(wait.nanoseconds > 0)
        for _ in 0..<1000 { wait.found(completions: 3) }
        #expect(wait.nanoseconds > 0)
        for _ in 0..<BriefWait.missesToEnd { wait.missed() }
        #expect(wait.nanoseconds == 0)
    }

    @Test("a crowd ends it")
    func crowdEnds() {
        var wait = looking()
        for _ in 0..<BriefWait.missesToEnd { wait.found(completions: 3) }
        #expect(wait.nanoseconds == 0)
    }
}

@Suite("Whether guests are busy")
struct GuestRateTests {
    private let window = GuestRate.windowNanoseconds

    private func rate(_ requests: Int, in nanoseconds: UInt64) -> Bool {
        var rate = GuestRate()
        rate.judge(window)
        for _ in 0..<requests { rate.note() }
        rate.judge(window + nanoseconds)
        return rate.isBusy
    }

    @Test("they are with so many requests in a window, however long it was")
    func threshold() {
        #expect(rate(GuestRate.requestsOfBusy, in: window))
        #expect(!rate(GuestRate.requestsOfBusy - 1, in: window))
        #expect(!rate(GuestRate.requestsOfBusy, in: window * 2))
        #expect(rate(GuestRate.requestsOfBusy * 2, in: window * 2))
        #expect(!rate(1000, in: .max - window))
    }

    @Test("a window that has not passed changes nothing")
    func early() {
        #expect(!rate(1000, in: window - 1))
    }
}
