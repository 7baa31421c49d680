import Control
import Testing

@Suite struct JobStateTests {
    static let states: [JobState] = [
        .starting, .running, .broken(reason: "first"),
        .ending(cause: .success, brokenReason: nil),
        .ending(cause: .success, brokenReason: "first"), .ended(.completed(note: nil)),
    ]
    static let events: [JobState.Event] = [
        .started, .refused(reason: "no"), .broke(reason: "late"), .endRequested(.abort),
        .endRefused, .engineEnded(brokenReason: nil), .engineEnded(brokenReason: "at the end"),
    ]
    /// Every state against every event; nil is a refusal.
    static let table: [[JobState?]] = [
        [
            .running, .ended(.failed(reason: "no")), .broken(reason: "late"), nil, nil, nil, nil,
        ],
        [
            nil, nil, .broken(reason: "late"), .ending(cause: .abort, brokenReason: nil), nil, nil,
            nil,
        ],
        [
            .broken(reason: "first"), .ended(.failed(reason: "no")), .broken(reason: "first"),
            .ending(cause: .abort, brokenReason: "first"), nil, nil, nil,
        ],
        [
            nil, nil, .ending(cause: .success, brokenReason: "late"), nil, .running,
            .ended(.completed(note: nil)), .ended(.failed(reason: "at the end")),
        ],
        [
            nil, nil, .ending(cause: .success, brokenReason: "first"), nil,
            .broken(reason: "first"), .ended(.failed(reason: "first")),
            .ended(.failed(reason: "first")),
        ],
        [nil, nil, nil, nil, nil, nil, nil],
    ]

    @Test func everyStateAnswersEveryEventAsTheTableSays() {
        for (row, state) in Self.states.enumerated() {
            for (column, event) in Self.events.enumerated() {
                #expect(
                    (try? state.after(event)) == Self.table[row][column], "\(state) \(event)")
            }
        }
    }

    @Test func eachCauseHasItsOutcome() {
        #expect(EndCause.success.outcome(brokenReason: nil) == .completed(note: nil))
        #expect(EndCause.abort.outcome(brokenReason: nil).message == "Operation canceled")
        #expect(EndCause.abort.outcome(brokenReason: nil).jobType == "Completed")
        #expect(EndCause.failure.outcome(brokenReason: nil).jobType == "Failed")
        #expect(EndCause.expired(seconds: 3).outcome(brokenReason: nil).jobType == "Failed")
        #expect(EndCause.shutdown.outcome(brokenReason: nil).jobType == "Cancelled")
        #expect(EndCause.success.outcome(brokenReason: "x") == .failed(reason: "x"))
    }
}
