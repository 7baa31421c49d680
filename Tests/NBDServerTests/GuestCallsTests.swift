import Testing

@testable import NBDServer

@Suite struct GuestCallsTests {
    /// What a chain takes of the ring in these tests, in nanoseconds.
    private static let chain: UInt64 = 2000

    /// A guest with 32 chains in flight that sleeps when it has seen all answers, and comes back some
    /// time after it was called: the ring's rate against that of one that is never without work,
    /// and how many chains the guest has got done for each call.
    private func rate(waking wake: UInt64, turns: Int = 400) -> (share: Double, perCall: Double) {
        var calls = GuestCalls()
        var now: UInt64 = 1000
        var idle: UInt64 = 0
        var count = 0
        var index: UInt16 = 32
        var chainsLeft = 32
        var answered = 0
        var comesBack: UInt64?
        for step in 1...turns * 32 {
            now += Self.chain
            if step % 16 == 0 { calls.took(16, 16 * Self.chain) }
            chainsLeft -= 1
            answered += 1
            if comesBack == nil {
                calls.show(wantsCall: true)
                if calls.isDueEarly(chainsLeft: chainsLeft) {
                    calls.called(early: now, index: index)
                    (comesBack, count) = (now + wake, count + 1)
                } else if chainsLeft == 0 {
                    calls.called()
                    (comesBack, count) = (now + wake, count + 1)
                }
            }
            if chainsLeft == 0 {
                let back = comesBack ?? now
                if back > now { (now, idle) = (back, idle + back - now) }
            }
            if let back = comesBack, now >= back {
                index &+= UInt16(answered)
                chainsLeft += answered
                (answered, comesBack) = (0, nil)
                if calls.isWatching { calls.look(index, now: now) }
            }
        }
        return (1 - Double(idle) / Double(now), Double(turns * 32) / Double(count))
    }

    @Test(
        "a guest is called so that it is back before the ring is through, and no sooner",
        arguments: [1_000, 5_000, 20_000, 45_000, 60_000] as [UInt64])
    func justInTime(wake: UInt64) {
        let (share, perCall) = rate(waking: wake)
        #expect(share > 0.95, "the ring was idle")
        #expect(perCall > 20, "the guest was called for a few answers")
    }

    @Test("one that needs longer than all its chains take is called by the first answer")
    func slow() {
        let (share, perCall) = rate(waking: 150_000)
        #expect(perCall > 30)
        #expect(share > 0.4 && share < 0.6, "32 chains of 2 us in 150 us")
    }

    @Test("a guest that is awake is never called, nor is one early for the last chain")
    func awake() {
        var calls = GuestCalls()
        calls.show(wantsCall: false)
        #expect(!calls.isDueEarly(chainsLeft: 1) && !calls.isOwed)
        calls.show(wantsCall: true)
        #expect(!calls.isDueEarly(chainsLeft: 0) && calls.isOwed)
        #expect(calls.isDueEarly(chainsLeft: 1))
    }

    @Test("a guest that wants a call for every answer is not called again before it has come back")
    func insistent() {
        var calls = GuestCalls()
        calls.show(wantsCall: true)
        calls.called(early: 1000, index: 9)
        calls.show(wantsCall: true)
        calls.look(9, now: 2000)
        #expect(calls.isOwed && !calls.isDueEarly(chainsLeft: 1))
        calls.look(10, now: 3000)
        #expect(calls.isDueEarly(chainsLeft: 1))
    }

    @Test("a guest that has woken at once is called early again when it has got slow")
    func slowAgain() {
        var calls = GuestCalls()
        for _ in 0..<100 {
            calls.called(early: 1000, index: 1)
            calls.look(2, now: 1100)
            calls.took(8, 8 * 10_000)
        }
        var early = 0
        for _ in 0..<1000 {
            calls.show(wantsCall: true)
            if calls.isDueEarly(chainsLeft: 3) {
                early += 1
                calls.called(early: 1000, index: 1)
                calls.look(2, now: 51_000)
            } else {
                calls.called()
            }
        }
        #expect(early > 200, "a try after 64 turns, then another, until it is known")
    }

    @Test("a call waits for turns that follow at once, but not for many")
    func waits() {
        var calls = GuestCalls()
        for _ in 0..<100 { calls.took(4, 4 * 10_000) }
        for _ in 0..<3 {
            calls.show(wantsCall: true)
            var turns = 0
            while turns < 100, calls.canWait(chainsLeft: 500) { turns += 1 }
            #expect(turns == GuestCalls.turnsOwedMax)
            calls.called()
        }
        calls.show(wantsCall: true)
        let (forNone, forFew) = (calls.canWait(chainsLeft: 0), calls.canWait(chainsLeft: 2))
        #expect(!forNone && !forFew)
    }

    @Test("what chains take is learnt from turns of several, and huge numbers do no harm")
    func chains() {
        var calls = GuestCalls()
        calls.show(wantsCall: true)
        calls.took(GuestCalls.chainsOfSample - 1, 1_000_000)
        #expect(calls.chain == 0)
        calls.took(4, .max)
        #expect(calls.chain == GuestCalls.longestWake)
        #expect(!calls.isDueEarly(chainsLeft: 256 << 16))
        for _ in 0..<200 { calls.took(4, 4) }
        #expect(calls.isDueEarly(chainsLeft: 1000))
    }

    @Test("a guest that had nothing to ask for says nothing of its waking")
    func silent() {
        var calls = GuestCalls()
        calls.called(early: 1000, index: 5)
        calls.look(5, now: 1000 + GuestCalls.longestWake)
        #expect(calls.isWatching)
        calls.look(5, now: 1001 + GuestCalls.longestWake)
        #expect(!calls.isWatching && calls.wake == GuestCalls.wakeAtFirst)
        calls.called(early: 1000, index: 5)
        // It asks for something long after: the ring has slept meanwhile.
        calls.look(6, now: 1001 + GuestCalls.longestWake)
        #expect(!calls.isWatching && calls.wake == GuestCalls.wakeAtFirst)
        calls.called(early: 1000, index: 6)
        calls.look(7, now: 1000 + GuestCalls.longestWake)
        #expect(calls.wake > GuestCalls.wakeAtFirst)
    }
}
