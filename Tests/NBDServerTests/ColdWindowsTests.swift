import Testing

@testable import NBDServer

@Suite("What a backup brought into the page cache")
struct ColdWindowsTests {
    private static let window = ColdWindows.bytes
    private let size = 10 * window + 4096

    /// Reads `ranges` one after the other where everything was cold, or nothing.
    private func given(
        back ranges: [Range<UInt64>], cold: Bool = true
    ) -> [Range<UInt64>] {
        var windows = ColdWindows(sizeBytes: size)
        return ranges.compactMap {
            windows.begin($0.lowerBound, $0.upperBound - $0.lowerBound, now: 0) { _ in cold }
            return windows.end($0.lowerBound, $0.upperBound - $0.lowerBound, now: 0)
        }
    }

    private func pieces(_ bytes: UInt64, to end: UInt64) -> [Range<UInt64>] {
        stride(from: 0, to: end, by: Int(bytes)).map { $0..<min($0 + bytes, end) }
    }

    @Test("read to the end, each cold window is given back once, the short last one too")
    func sequential() {
        for bytes: UInt64 in [4096, 65_536, 262_144, 1 << 20, 2 << 20, 98_304] {
            let back = given(back: pieces(bytes, to: size))
            // In order, without a gap and nothing twice.
            var end: UInt64 = 0
            for range in back {
                #expect(range.lowerBound == end && range.lowerBound % Self.window == 0, "\(bytes)")
                end = range.upperBound
            }
            #expect(end == size, "\(bytes)")
        }
    }

    @Test("what was cached before stays")
    func warm() {
        #expect(given(back: pieces(262_144, to: size), cold: false).isEmpty)
    }

    @Test("a window of which a part was not read stays")
    func partly() {
        let back = given(
            back: pieces(262_144, to: size).filter { $0.lowerBound % Self.window != 0 })
        #expect(back.isEmpty)
    }

    @Test("a window is judged before the one in front of it is read")
    func ahead() {
        var windows = ColdWindows(sizeBytes: size)
        var asked: [UInt64] = []
        windows.begin(0, 4096, now: 0) {
            asked.append($0.lowerBound)
            return true
        }
        #expect(asked == (0...ColdWindows.ahead).map { $0 * Self.window })
        // Reading ahead has brought it by now: that does not make it the guest's.
        windows.begin(Self.window, Self.window, now: 0) { _ in false }
        #expect(
            windows.end(Self.window, Self.window, now: 0) == Self.window..<2 * Self.window)
    }

    @Test("pieces in flight may end in any order", arguments: 0..<20)
    func anyOrder(seed: Int) {
        var windows = ColdWindows(sizeBytes: size)
        var back: [UInt64] = []
        let all = pieces(262_144, to: size)
        for start in stride(from: 0, to: all.count, by: 16) {
            let flight = all[start..<min(start + 16, all.count)]
            for piece in flight {
                let length = piece.upperBound - piece.lowerBound
                windows.begin(piece.lowerBound, length, now: 0) { _ in true }
            }
            let order = flight.enumerated().sorted {
                ($0.offset * (seed + 1) * 7 % 17, $0.offset)
                    < ($1.offset * (seed + 1) * 7 % 17, $1.offset)
            }
            for piece in order.map(\.element) {
                let length = piece.upperBound - piece.lowerBound
                if let window = windows.end(piece.lowerBound, length, now: 0) {
                    back.append(window.lowerBound)
                }
            }
        }
        #expect(back.sorted() == (0..<11).map { $0 * Self.window })
    }

    @Test("small reads here and there ask nothing")
    func scattered() {
        var windows = ColdWindows(sizeBytes: 1 << 40)
        var asked = 0
        for step in 1...1000 {
            let offset = UInt64(step) * 997 % 1000 * (1 << 30)
            windows.begin(offset, 65_536, now: 0) { _ in
                asked += 1
                return true
            }
            #expect(windows.end(offset, 65_536, now: 0) == nil)
        }
        #expect(asked == 0)
    }

    @Test("two places read in turn are both given back, and each window is judged once")
    func twoPlaces() {
        let half = 64 * Self.window
        var windows = ColdWindows(sizeBytes: 2 * half)
        var asked: UInt64 = 0
        var back: UInt64 = 0
        for offset in stride(from: 0, to: half, by: 262_144) {
            for place in [offset, half + offset] {
                windows.begin(place, 262_144, now: 0) { _ in
                    asked += 1
                    return true
                }
                if let range = windows.end(place, 262_144, now: 0) {
                    back += range.upperBound - range.lowerBound
                }
            }
        }
        // What is ahead of the first place belongs to the second, in the end.
        #expect(asked <= 128 + ColdWindows.ahead, "\(asked)")
        #expect(back >= 2 * half - ColdWindows.ahead * Self.window)
    }

    @Test("an old judgement gives nothing back: a guest may have come to use the window")
    func old() {
        var windows = ColdWindows(sizeBytes: size)
        windows.begin(0, Self.window, now: 1) { _ in true }
        let late = 2 + ColdWindows.validNanoseconds
        #expect(windows.end(0, Self.window, now: late) == nil)
    }
}

extension ColdWindows {
    /// A range is about to be read; `isCold` is asked about windows that are new.
    fileprivate mutating func begin(
        _ offset: UInt64, _ count: UInt64, now: UInt64, isCold: (_ window: Range<UInt64>) -> Bool
    ) {
        guard let windows = enter(offset, count) else { return }
        for window in windows {
            guard let bytes = unjudged(window) else { continue }
            judge(window, isCold: isCold(bytes), now: now)
        }
    }
}
