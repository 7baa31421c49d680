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
    /// Memory for bits of slots: each thread has bits of all.
    private static let slotBytesMax = 64 << 20

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

    /// Reads all words; returns how they are distributed.
    func run() throws(LedgerFileFault) -> WordTally {
        try forPieces(threads: Self.threadsMax, WordTally()) {
            piece, tally throws(LedgerFileFault) in
            try self.read(piece, &tally)
        } merge: {
            $0.add($1)
        }
    }

    /// Which slots the words name that were read, a bit for each; those beyond the count are left
    /// out.
    func slots(_ count: Int) throws(LedgerFileFault) -> [UInt64] {
        let length = (count + 63) / 64
        let threads = max(Self.slotBytesMax / (length * 8 + 1), 1)
        return try forPieces(threads: threads, [UInt64](repeating: 0, count: length)) {
            piece, taken throws(LedgerFileFault) in
            self.words.mark(piece.words, in: &taken)
        } merge: { all, more in
            for index in all.indices { all[index] |= more[index] }
        }
    }

    /// Has threads do something with all pieces, each with a result of its own that is merged.
    private func forPieces<Part: Sendable>(
        threads: Int, _ start: @autoclosure @escaping @Sendable () -> Part,
        _ body: @escaping @Sendable (Piece, inout Part) throws(LedgerFileFault) -> Void,
        merge: @escaping @Sendable (inout Part, Part) -> Void
    ) throws(LedgerFileFault) -> Part {
        let shares = Shares<Part>(count: pieces.count)
        let work: @Sendable () -> Void = {
            var part = start()
            let fault = shares.take { index throws(LedgerFileFault) in
                try body(self.pieces[index], &part)
            }
            shares.end(part, fault, merge)
        }
        let wanted = min(pieces.count, SystemFacts.coreCount, Self.threadsMax, threads) - 1
        var helpers: [WorkerThread] = []
        for _ in 0..<max(wanted, 0) {
            // Without it the others read more.
            guard let thread = try? WorkerThread(name: "nbdpull-ledger", body: work) else { break }
            helpers.append(thread)
        }
        work()
        for thread in helpers { thread.wait(milliseconds: -1) }
        return try shares.result() ?? start()
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

/// Pieces of one task that threads take one after the other, and what has come of them.
private final class Shares<Part: Sendable>: Sendable {
    private let count: Int
    private let next = Atomic<Int>(0)
    private let ended = Mutex<(part: Part?, fault: LedgerFileFault?)>((nil, nil))

    init(count: Int) { self.count = count }

    /// Does pieces until there are none left, or one has failed.
    func take(
        _ body: (Int) throws(LedgerFileFault) -> Void
    ) -> LedgerFileFault? {
        while true {
            let index = next.add(1, ordering: .relaxed).oldValue
            guard index < count else { return nil }
            do throws(LedgerFileFault) {
                try body(index)
            } catch {
                next.store(count, ordering: .relaxed)
                return error
            }
        }
    }

    func end(_ part: Part, _ fault: LedgerFileFault?, _ merge: (inout Part, Part) -> Void) {
        ended.withLock { ended in
            if var all = ended.part {
                ended.part = nil
                merge(&all, part)
                ended.part = all
            } else {
                ended.part = part
            }
            ended.fault = ended.fault ?? fault
        }
    }

    func result() throws(LedgerFileFault) -> Part? {
        let (part, fault) = ended.withLock { $0 }
        if let fault { throw fault }
        return part
    }
}
