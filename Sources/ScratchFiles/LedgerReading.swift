import PointInTime
import Synchronization
import SystemLayer
import Tables

/// Takes up the words of a ledger that an earlier process has left, with as many threads as there are cores:
/// a machine waits for it.
///
/// Long runs of them are not copied but borrowed, as most of the time would be that of making memory. All of
/// them are looked at.
final class LedgerReading: Sendable {
    /// Words that one thread takes up at a time.
    private struct Piece: Sendable {
        let words: Range<Int>
        let isBorrowed: Bool
    }

    /// What the threads have found together.
    private struct Found: Sendable {
        var tally = WordTally()
        var others: [UInt32] = []
        var fault: LedgerFileFault?
    }

    private let descriptor: Int32
    private let words: SharedWordsStorage
    private let pieces: [Piece]
    private let next = Atomic<Int>(0)
    private let found = Mutex<Found>(Found())

    /// Memory of a piece is made in large pages, so their bounds are multiples of those, in words.
    private static let pieceWords = 4 << 20
    /// What is read at once, and counted while it is in the processor's cache.
    private static let chunkWords = 64 << 10
    /// Shorter runs are copied: a mapping for each would cost more.
    private static let borrowedWordsMin = 256 << 10
    /// Mappings for one ledger; a process has 65530.
    private static let borrowedRunsMax = 512
    /// Slots at the end of scratch among which there may be unused ones after a kill: several times as many
    /// as there are copies at a time.
    private static let lastSlots: UInt32 = 128 << 10
    private static let threadsMax = 8

    init(
        _ descriptor: Int32, _ words: SharedWordsStorage, _ extents: [Range<Int>]
    ) throws(LedgerFileFault) {
        self.descriptor = descriptor
        self.words = words
        var pieces: [Piece] = []
        var runs = 0
        for extent in extents {
            var borrowed = extent.lowerBound..<extent.lowerBound
            if extent.count >= Self.borrowedWordsMin, runs < Self.borrowedRunsMax {
                runs += 1
                borrowed = try LedgerFile.system { () throws(SystemFault) in
                    try words.borrow(
                        from: descriptor, first: extent.lowerBound, count: extent.count,
                        at: LedgerFile.position(of: extent.lowerBound))
                }
            }
            Self.cut(extent.lowerBound..<borrowed.lowerBound, false, into: &pieces)
            Self.cut(borrowed, true, into: &pieces)
            Self.cut(borrowed.upperBound..<extent.upperBound, false, into: &pieces)
        }
        self.pieces = pieces
    }

    private static func cut(
        _ run: Range<Int>, _ isBorrowed: Bool, into pieces: inout [Piece]
    ) {
        var first = run.lowerBound
        while first < run.upperBound {
            let end = min((first / pieceWords + 1) * pieceWords, run.upperBound)
            pieces.append(Piece(words: first..<end, isBorrowed: isBorrowed))
            first = end
        }
    }

    /// Returns how the words are distributed when all of them are there.
    func run() throws(LedgerFileFault) -> WordTally {
        try work { piece, found throws(LedgerFileFault) in
            try self.take(piece, &found.tally)
        }.tally
    }

    /// Looks again at words that do not name each slot once: nearly all of them, those below a limit, may.
    ///
    /// Nil when there are too many others for that to help.
    func lookAgain(_ tally: WordTally) throws(LedgerFileFault) -> LedgerContent.Split? {
        let used = tally.largest - 1
        guard used > Self.lastSlots else { return nil }
        let limit = used - Self.lastSlots
        let found = try work { piece, found throws(LedgerFileFault) in
            // Each names another slot, or they contradict each other.
            guard found.others.count <= Int(Self.lastSlots) else { return }
            self.words.count(
                piece.words, below: limit, into: &found.tally, others: &found.others)
        }
        guard found.others.count <= Int(Self.lastSlots) else { return nil }
        return LedgerContent.Split(limit: limit, below: found.tally, others: found.others)
    }

    private func work(
        _ body: @escaping @Sendable (Piece, inout Found) throws(LedgerFileFault) -> Void
    ) throws(LedgerFileFault) -> Found {
        next.store(0, ordering: .relaxed)
        found.withLock { $0 = Found() }
        let wanted = min(pieces.count, SystemFacts.coreCount, Self.threadsMax) - 1
        var helpers: [WorkerThread] = []
        for _ in 0..<max(wanted, 0) {
            // Without it the others do more.
            guard
                let thread = try? WorkerThread(
                    name: "nbdpull-ledger", body: { self.takePart(body) })
            else { break }
            helpers.append(thread)
        }
        takePart(body)
        for thread in helpers { thread.wait(milliseconds: -1) }
        let found = found.withLock { $0 }
        if let fault = found.fault { throw fault }
        return found
    }

    private func takePart(
        _ body: @Sendable (Piece, inout Found) throws(LedgerFileFault) -> Void
    ) {
        var own = Found()
        while own.fault == nil {
            let index = next.add(1, ordering: .relaxed).oldValue
            guard index < pieces.count else { break }
            do throws(LedgerFileFault) {
                try body(pieces[index], &own)
            } catch {
                own.fault = error
                next.store(pieces.count, ordering: .relaxed)
            }
        }
        let part = own
        found.withLock { found in
            found.tally.add(part.tally)
            found.others += part.others
            found.fault = found.fault ?? part.fault
        }
    }

    private func take(_ piece: Piece, _ tally: inout WordTally) throws(LedgerFileFault) {
        let run = piece.words
        if !piece.isBorrowed { words.prepare(first: run.lowerBound, count: run.count) }
        for first in stride(from: run.lowerBound, to: run.upperBound, by: Self.chunkWords) {
            let count = min(Self.chunkWords, run.upperBound - first)
            let chunk = first..<first + count
            let isThere =
                if piece.isBorrowed {
                    words.canLoad(chunk)
                } else {
                    try LedgerFile.system { () throws(SystemFault) in
                        try words.fill(
                            from: descriptor, first: first, count: count,
                            at: LedgerFile.position(of: first))
                    }
                }
            if !isThere { throw .implausible }
            words.count(chunk, into: &tally)
        }
    }
}
