import SystemLayer
import Testing

/// What somebody else has for a moment more.
@Suite struct InUseTests {
    private enum Refused: Error { case inUse, other }

    private static func outwait(
        _ nanoseconds: UInt64, _ body: () throws(Refused) -> Int
    ) throws(Refused) -> Int {
        try InUse.outwait(nanoseconds: nanoseconds, while: { $0 == .inUse }, body)
    }

    @Test("what is in use is tried again until it is free")
    func freed() throws {
        var attempts = 0
        let value = try Self.outwait(60_000_000_000) { () throws(Refused) in
            attempts += 1
            guard attempts == 3 else { throw .inUse }
            return 7
        }
        #expect(value == 7 && attempts == 3)
    }

    @Test("another error is thrown at once, and being in use when the time is over")
    func refused() {
        var attempts = 0
        let other = #expect(throws: Refused.self) {
            try Self.outwait(60_000_000_000) { () throws(Refused) in
                attempts += 1
                throw .other
            }
        }
        #expect(other == .other && attempts == 1)
        let before = MonotonicClock.now()
        let taken = #expect(throws: Refused.self) {
            try Self.outwait(30_000_000) { () throws(Refused) in throw .inUse }
        }
        #expect(taken == .inUse && MonotonicClock.now() - before >= 30_000_000)
    }
}
