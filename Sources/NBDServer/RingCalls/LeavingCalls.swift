import SystemLayer

/// Asks several rings the same; false when one refuses or does not answer in time.
struct AllRingsCall: RingCall {
    private var questions = Questions()
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    init(
        _ rings: Range<Int>, milliseconds: Int32, _ shared: ServerShared,
        now: UInt64 = MonotonicClock.now(), _ message: (Ticket) -> RingMessage
    ) {
        questions.begin(milliseconds: milliseconds, now: now)
        for ring in rings { shared.mailboxes[ring].post(message(questions.ticket())) }
    }

    mutating func step(now: UInt64) -> Bool? {
        questions.takeAnswers()
        if questions.areAnswered { return questions.refusals == 0 }
        return questions.isLate(now) ? false : nil
    }
}
