import Testing

@testable import NBDServer

@Suite struct GuestCallsTests {
    private static let late = GuestCalls.quickNanoseconds

    /// Turns in which a guest that sleeps is answered once and woken after a time, by how many
    /// early calls there were.
    private func earlyCalls(turns: Int, wakingAfter nanoseconds: UInt64) -> Int {
        var calls = GuestCalls()
        var now: UInt64 = 1000
        var index: UInt16 = 7
        var count = 0
        for _ in 0..<turns {
            calls.beginTurn()
            calls.show(1, wantsCall: true)
            if calls.isDueEarly {
                calls.called(early: now, index: index)
                count += 1
            } else {
                calls.called()
            }
            now += nanoseconds
            index &+= 1
            calls.look(index, now: now)
            now += 1000
        }
        return count
    }

    @Test("a guest that wakes slowly is called by the first answer of every turn")
    func slow() { #expect(earlyCalls(turns: 500, wakingAfter: Self.late) == 500) }

    @Test("a guest that wakes at once is called at the end of a turn, but for a try now and then")
    func quick() {
        let count = earlyCalls(turns: 1000, wakingAfter: Self.late - 1)
        #expect(count >= 1000 / GuestCalls.pauseTurns.most && count < 30, "\(count)")
    }

    @Test("a guest that is awake is never called")
    func awake() {
        var calls = GuestCalls()
        for _ in 0..<100 {
            calls.beginTurn()
            calls.show(3, wantsCall: false)
            #expect(!calls.isDueEarly && !calls.isOwed)
        }
    }

    @Test("a second early call comes some answers after the first, once that had its effect")
    func second() {
        var calls = GuestCalls()
        calls.beginTurn()
        calls.show(1, wantsCall: true)
        #expect(calls.isDueEarly)
        calls.called(early: 0, index: 1)
        calls.show(GuestCalls.answersBetween, wantsCall: true)
        calls.look(1, now: Self.late - 1)
        #expect(!calls.isDueEarly && calls.isOwed)
        calls.look(1, now: Self.late)
        #expect(!calls.isDueEarly && !calls.isWatching)
        calls.show(1, wantsCall: false)
        #expect(calls.isDueEarly)
    }
}
