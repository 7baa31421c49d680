/// Which parts of a source a connection has brought into the page cache and read to the end.
///
/// A backup is read once, and the memory it passes through is the guest's: so what the page cache
/// did not have before, it need not keep. The disk is divided into windows. One of which nothing
/// was cached when its first byte was asked for, and all of which has been read, is given back
/// whole. Windows and not requests, because the kernel reads ahead, and because pieces of a request
/// leave in any order. A window is judged well before it is reached: by then the kernel has read
/// ahead into it.
///
/// A client that reads here and there in small pieces completes no window, and is not followed.
struct ColdWindows {
    /// Size of a window, in bytes.
    static let bytes: UInt64 = 2 << 20
    /// Windows that are judged ahead of the one being read: farther than the kernel reads ahead (8
    /// MiB are not unusual on a virtual disk).
    static let ahead: UInt64 = 8
    /// Windows remembered: for two places that are read in turn, those of all pieces in flight, and
    /// those ahead.
    static let count = 32
    /// The shortest read that begins a place of its own, in bytes.
    static let leapBytes: UInt64 = 128 << 10
    /// A judgement this old says nothing about what a guest has cached since, in nanoseconds.
    static let validNanoseconds: UInt64 = 60_000_000_000

    private struct Window {
        var number: UInt64
        var isCold: Bool
        var left: UInt64
        var judgedAt: UInt64
    }

    private let sizeBytes: UInt64
    private var windows: [Window] = []
    /// The next to be forgotten.
    private var oldest = 0
    /// The last window that was begun: small reads mostly stay in it.
    ///
    /// The next one goes on from it; at first that is the disk's beginning.
    private var current = UInt64.max

    /// For a disk of that size, in bytes.
    init(sizeBytes: UInt64) {
        self.sizeBytes = sizeBytes
        windows.reserveCapacity(Self.count)
    }

    /// A range is about to be read: the windows that it leads to, of which those that are
    /// `unjudged` are to be judged.
    ///
    /// Nil while the reads stay in a window.
    mutating func enter(_ offset: UInt64, _ count: UInt64) -> ClosedRange<UInt64>? {
        let first = offset / Self.bytes
        let last = (offset + max(count, 1) - 1) / Self.bytes
        if first == current, last == current { return nil }
        let goesOn = first == current || first == current &+ 1
        current = last
        guard goesOn || count >= Self.leapBytes else { return nil }
        return first...last + Self.ahead
    }

    /// The bytes of a window that is not remembered; nil when it is, or has none.
    func unjudged(_ window: UInt64) -> Range<UInt64>? {
        let range = range(window)
        guard !range.isEmpty, !windows.contains(where: { $0.number == window }) else { return nil }
        return range
    }

    /// Remembers a window, of which nothing was cached (`isCold`) at `now`, in nanoseconds.
    mutating func judge(_ window: UInt64, isCold: Bool, now: UInt64) {
        let range = range(window)
        remember(
            Window(
                number: window, isCold: isCold, left: range.upperBound - range.lowerBound,
                judgedAt: now))
    }

    /// A range of at most a window has been read; returns what is to be given back: a window, or
    /// two neighbours.
    mutating func end(_ offset: UInt64, _ count: UInt64, now: UInt64) -> Range<UInt64>? {
        var found: Range<UInt64>?
        for place in windows.indices {
            let whole = range(windows[place].number)
            let range = whole.clamped(to: offset..<offset + count)
            guard !range.isEmpty else { continue }
            windows[place].left -= min(windows[place].left, range.upperBound - range.lowerBound)
            guard windows[place].left == 0 else { continue }
            let age = now - min(now, windows[place].judgedAt)
            if windows[place].isCold, age <= Self.validNanoseconds {
                found =
                    min(
                        whole.lowerBound, found?.lowerBound ?? .max)..<max(
                        whole.upperBound, found?.upperBound ?? 0)
            }
            windows[place].number = .max / Self.bytes
        }
        return found
    }

    private mutating func remember(_ window: Window) {
        guard windows.count == Self.count else { return windows.append(window) }
        windows[oldest] = window
        oldest = (oldest + 1) % Self.count
    }

    private func range(_ number: UInt64) -> Range<UInt64> {
        let start = min(number * Self.bytes, sizeBytes)
        return start..<min(start + Self.bytes, sizeBytes)
    }
}
