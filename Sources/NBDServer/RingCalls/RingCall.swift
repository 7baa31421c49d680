import SystemLayer

/// A call that asks rings and goes on by their answers, as a machine that never waits: time and
/// answers in, messages to rings out.
///
/// In the server a thread or a task drives it (`run`); a simulator calls `step` whenever it likes.
protocol RingCall {
    associatedtype Outcome

    /// Where rings answer.
    var replies: Replies { get }
    /// When `step` is to be called although nothing was answered, in nanoseconds of the clock.
    var deadline: UInt64 { get }

    /// Goes on as far as the answers that are there allow; nil while some are missing.
    ///
    /// After an outcome it is not called again.
    mutating func step(now: UInt64) -> Outcome?
}

extension RingCall {
    /// Drives the call on a thread that may wait.
    consuming func run() -> Outcome {
        while true {
            if let outcome = step(now: MonotonicClock.now()) { return outcome }
            replies.wait(until: deadline)
        }
    }

    /// Drives the call without keeping a thread.
    consuming func runLater() async -> Outcome {
        while true {
            if let outcome = step(now: MonotonicClock.now()) { return outcome }
            await replies.arrival(until: deadline)
        }
    }
}

/// Questions that were put to rings at once, with a limit for their answers.
///
/// A call that puts further questions begins anew: answers to earlier ones are ignored then.
struct Questions {
    let replies = Replies()
    /// When the time for the answers is over, in nanoseconds of the clock.
    private(set) var deadline = UInt64.max
    private var present = 0..<0
    private var missing = 0
    private(set) var refusals = 0
    /// Those that were answered with success, counted from 0.
    private(set) var done: [Int] = []

    /// Forgets earlier questions; those that follow have so many milliseconds from `now` on.
    mutating func begin(milliseconds: Int32, now: UInt64) {
        deadline = now + UInt64(milliseconds) * 1_000_000
        present = present.upperBound..<present.upperBound
        missing = 0
        refusals = 0
        done = []
    }

    /// The same questions have so many milliseconds from `now` on.
    mutating func extend(milliseconds: Int32, now: UInt64) {
        deadline = now + UInt64(milliseconds) * 1_000_000
    }

    /// A ticket for the next question.
    mutating func ticket() -> Ticket {
        defer {
            present = present.lowerBound..<present.upperBound + 1
            missing += 1
        }
        return replies.ticket(present.upperBound)
    }

    /// Whether every question has its answer.
    var areAnswered: Bool { missing == 0 }

    /// Takes the answers that are there.
    mutating func takeAnswers() {
        while let reply = replies.take() {
            guard present.contains(reply.number) else { continue }
            missing -= 1
            if reply.succeeded {
                done.append(reply.number - present.lowerBound)
            } else {
                refusals += 1
            }
        }
    }

    func isLate(_ now: UInt64) -> Bool { now >= deadline }
}

/// One question to one ring.
struct RingQuestion: RingCall {
    enum Outcome { case done, refused, late }

    private var questions = Questions()
    var replies: Replies { questions.replies }
    var deadline: UInt64 { questions.deadline }

    /// Asks; the answer has `Limits.ringMilliseconds`.
    init(
        _ ring: Mailbox<RingMessage>, now: UInt64 = MonotonicClock.now(),
        _ message: (Ticket) -> RingMessage
    ) {
        questions.begin(milliseconds: Limits.ringMilliseconds, now: now)
        ring.post(message(questions.ticket()))
    }

    mutating func step(now: UInt64) -> Outcome? {
        questions.takeAnswers()
        if questions.areAnswered { return questions.refusals == 0 ? .done : .refused }
        return questions.isLate(now) ? .late : nil
    }
}
