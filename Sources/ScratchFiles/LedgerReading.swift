import SystemLayer
import Synchronization
import Tables

/// Reads the words of a ledger that an earlier process has left, with as many threads as there are
/// cores: a machine waits for it.
///
/// Long runs are not copied: their pages are the file's until a word is stored. Short ones are, as
/// a process may have only so many mappings.
final class LedgerReading: Sendable {
    private let descriptor: Int32
    private let words: SharedWordsStorage
    /// Runs of words, in pieces that one thread reads at a time.
    private let pieces: [Piece]
    private let next = Atomic<Int>(0)
    private let found = Mutex<(tally: WordTally, fault: LedgerFileFault?)>((WordTally(), nil))

    private struct Piece {
        let words: Range<Int>
        let isMapped: Bool
    }

    /// Memory of a piece is made in large pages, so their bounds are multiples of those, in words.
    private static let pieceWords = 4 << 20
    /// Runs of one ledger that are mapped.
    private static let mappingsMax = 128
    /// What is read at once, and counted while it is in the processor's cache.
    private static let chunkWords = 64 << 10
    private static let threadsMax = 8

    init(
        _ descriptor: Int32, _ words: SharedWordsStorage, _ extents: [Range<Int>],
        mappedWordsMin: Int
    ) throws(LedgerFileFault) {
        self.descriptor = descriptor
        self.words = words
        var pieces: [Piece] = []
        var mappings = 0
        for extent in extents {
            var isMapped = false
            if extent.count >= mappedWordsMin, mappings < Self.mappingsMax {
                isMapped = try LedgerFile.system { () throws(SystemFault) in
                    try words.map(
                        descriptor, first: extent.lowerBound, count: extent.count,
                        at: Self.position(of: extent.lowerBound))
                }
                mappings += 1
            }
            var first = extent.lowerBound
            while first < extent.upperBound {
                let end = (first / Self.pieceWords + 1) * Self.pieceWords
                pieces.append(
                    Piece(words: first..<min(end, extent.upperBound), isMapped: isMapped))
                first = end
            }
        }
        self.pieces = pieces
    }

    private static func position(of word: Int) -> UInt64 {
        UInt64(LedgerFile.headerBytes) + UInt64(word) * 4
    }

    /// Returns how the words are distributed when all of them are read.
    func run() throws(LedgerFileFault) -> WordTally {
        let wanted = min(pieces.count, SystemFacts.coreCount, Self.threadsMax) - 1
        var helpers: [WorkerThread] = []
        for _ in 0..<max(wanted, 0) {
            // Without it the others read more.
            guard let thread = try? WorkerThread(name: "nbdpull-ledger", body: { self.work() })
            else {
                break
            }
            helpers.append(thread)
        }
        work()
        for thread in helpers { thread.wait(milliseconds: -1) }
        let (tally, fault) = found.withLock { $0 }
        if let fault { throw fault }
        return tally
    }

    private func work() {
        var tally = WordTally()
        var fault: LedgerFileFault?
        while fault == nil {
            let index = next.add(1, ordering: .relaxed).oldValue
            guard index < pieces.count else { break }
            do throws(LedgerFileFault) {
                try read(pieces[index], &tally)
            } catch {
                fault = error
                next.store(pieces.count, ordering: .relaxed)
            }
        }
        let (counted, first) = (tally, fault)
        found.withLock { found in
            found.tally.add(counted)
            found.fault = found.fault ?? first
        }
    }

    private func read(_ piece: Piece, _ tally: inout WordTally) throws(LedgerFileFault) {
        let isMapped = piece.isMapped
        let piece = piece.words
        if isMapped {
            try LedgerFile.system { () throws(SystemFault) in
                try words.lookUp(first: piece.lowerBound, count: piece.count)
            }
            words.count(piece, into: &tally)
            return
        }
        words.prepare(first: piece.lowerBound, count: piece.count)
        for first in stride(from: piece.lowerBound, to: piece.upperBound, by: Self.chunkWords) {
            let count = min(Self.chunkWords, piece.upperBound - first)
            let isFilled = try LedgerFile.system { () throws(SystemFault) in
                try words.fill(
                    from: descriptor, first: first, count: count,
                    at: Self.position(of: first))
            }
            if !isFilled { throw .implausible }
            words.count(first..<first + count, into: &tally)
        }
    }
}
