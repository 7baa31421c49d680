package import PointInTime

/// One read of a disk, from a live export or as a backup job's instant had it: read, then check.
///
/// The driver does the I/O: `next` says where to read, and `got` how much has been read. What `got`
/// is told of is checked against the ledger *after* the read, of the source as of scratch, and what
/// a guest or a client has overtaken meanwhile is read again, from where it is now. Nothing may be
/// handed out before `next` has said `.done`.
///
/// Without a ledger (a live export) everything comes from the source and nothing is checked.
package struct PointInTimeRead: Sendable, Hashable, BitwiseCopyable {
    /// What the driver is to do.
    package enum Step: Sendable, Hashable {
        /// Read from the source, at `position`; answer with `got`.
        case source(count: Int)
        /// Read from scratch, at that byte of it; answer with `got`.
        case scratch(position: UInt64, count: Int)
        /// Fill with zeros; answer with `got`.
        case zeros(count: Int)
        /// Ask the kernel whether anything written to scratch has been lost, and break the job if
        /// so, which closes its ledger; answer with `asked`.
        ///
        /// A page whose write-back failed leaves the page cache like any other, and what the device
        /// has in its place reads without an error.
        case askScratch
        /// Every byte is the instant's.
        case done
        /// The job is broken or has ended: nothing that was read may be handed out.
        case closed
        /// A client of the job has released the cluster at `position`: nothing keeps its content.
        case released
    }

    /// Where the read goes on: every byte before is read and checked.
    package private(set) var position: UInt64
    package let end: UInt64
    private var origin = Origin.nowhere
    /// Some of it came from scratch, and scratch has not been asked about since.
    private var owesQuestion = false
    /// Bytes of the step taken last.
    private var stepBytes = 0

    private enum Origin: Hashable { case nowhere, source, scratch, zeros }

    /// A read of bytes of the disk; the range is not empty.
    package init(_ range: Range<UInt64>) {
        position = range.lowerBound
        end = range.upperBound
    }

    /// Bytes that are not read and checked yet.
    package var left: Int { Int(end - position) }

    /// Whether the step taken last reads scratch.
    package var isOfScratch: Bool { origin == .scratch }

    /// What is to be done now.
    package mutating func next(_ ledger: LedgerView?) -> Step {
        guard position < end else { return ending(ledger) }
        guard let ledger else {
            origin = .source
            return .source(count: left)
        }
        let step = ledger.step(from: position, to: end)
        switch step.place {
        case .source:
            origin = .source
            return .source(count: step.count)
        case .zero:
            origin = .zeros
            return .zeros(count: step.count)
        case .slot(let slot):
            origin = .scratch
            owesQuestion = true
            stepBytes = step.count
            return .scratch(
                position: LedgerView.scratchPosition(of: position, firstSlot: slot),
                count: step.count)
        case .released: return .released
        }
    }

    private func ending(_ ledger: LedgerView?) -> Step {
        if owesQuestion { return .askScratch }
        return ledger?.isClosed ?? false ? .closed : .done
    }

    /// So many bytes of the step, from its first, have been read just now.
    ///
    /// Keeps those that are the instant's: bytes of the source up to the first cluster that is
    /// preserved by now, bytes of scratch up to the first that is released.
    package mutating func got(_ count: Int, _ ledger: LedgerView?) {
        position += UInt64(good(count, ledger))
    }

    /// Whether a slot of the step taken last is another cluster's by now: what was found there says
    /// nothing of scratch.
    package func isOvertaken(_ ledger: LedgerView?) -> Bool {
        guard isOfScratch, let ledger else { return false }
        let clusters = ClusterGeometry.clusters(touching: position, length: UInt64(stepBytes))
        return ledger.firstReleased(in: clusters) != nil
    }

    /// Scratch has been asked, after everything was read.
    package mutating func asked() { owesQuestion = false }

    private func good(_ count: Int, _ ledger: LedgerView?) -> Int {
        guard count > 0, let ledger else { return count }
        let clusters = ClusterGeometry.clusters(touching: position, length: UInt64(count))
        let overtaken: Int?
        switch origin {
        case .source: overtaken = ledger.firstPreserved(in: clusters)
        case .scratch: overtaken = ledger.firstReleased(in: clusters)
        case .zeros, .nowhere: overtaken = nil
        }
        guard let overtaken else { return count }
        let start = ClusterGeometry.start(of: overtaken)
        return start > position ? Int(start - position) : 0
    }
}

extension PointInTimeRead {
    /// A run of a disk of which it is known whether it holds data.
    package struct Extent: Sendable, Hashable {
        package let count: UInt64
        /// False: a hole, which reads as zeros.
        package let isData: Bool
    }

    /// What the source's allocation, asked before this, says about the instant.
    ///
    /// The rule of reads: what the source was found to have counts for clusters that are not
    /// preserved even now. `looked`: the bytes that were found alike, with data or as a hole
    /// (`isData`). The answer is about the first of them.
    package static func extent(
        _ looked: Range<UInt64>, isData: Bool, under ledger: LedgerView?
    ) -> Extent {
        let all = looked.upperBound - looked.lowerBound
        guard let ledger else { return Extent(count: all, isData: isData) }
        let step = ledger.step(from: looked.lowerBound, to: looked.upperBound)
        switch step.place {
        case .source: return Extent(count: UInt64(step.count), isData: isData)
        case .zero: return Extent(count: UInt64(step.count), isData: false)
        // What a released cluster held is not known any more; data is what is always safe.
        case .slot, .released: return Extent(count: UInt64(step.count), isData: true)
        }
    }
}
