import Core
import Disk
import IORing
import NBDProtocol
import PointInTime
import SystemLayer
import Tables

/// Guest zeroing and discarding: whole pages by the file system or device, the pieces of pages at
/// the ends by writing.
///
/// A request goes step by step, one at a time, so that no step holds the ring. A job begins before
/// the request, after it, or between two steps that meet at a cluster's edge: the content of a
/// cluster is never half of a request.
extension RingLoop where IO: ~Copyable {
    /// Begins the request, now or when no job is beginning and others have finished.
    mutating func startZeroing(_ request: RequestIndex) {
        let disk = requests[request].homeDisk
        let valid = requests[request].valid
        requests[request].zeroing = Zeroing(
            valid.offset..<(valid.offset + valid.length), isDiscard: valid.command == .trim,
            cut: disks[disk].tailStart)
        switch disks[disk].changes.admitZeroing(request.zeroing, &zeroingPlaces) {
        case .go: resumeZeroing(request)
        case .waits: break
        }
    }

    /// The request is at work, for the first time or again.
    mutating func resumeZeroing(_ request: RequestIndex) {
        requests[request].zeroing?.place = .working
        continueZeroing(request)
    }

    /// Takes the next part of the request, or answers it.
    mutating func continueZeroing(_ request: RequestIndex) {
        while true {
            if requests[request].failure != nil
                || connections[requests[request].connection].phase == .closing
            {
                requests[request].zeroing?.abandon()
            }
            guard let part = requests[request].zeroing?.next() else {
                preconditionFailure("only zeroing goes part by part")
            }
            switch part {
            case .pages(let pages, let isFirst):
                // A step may end with a hole, in the midst of a cluster.
                let isEdge = ClusterGeometry.isEdge(pages.lowerBound)
                if !isFirst, isEdge, stepAside(request) { return }
                if startStep(request, pages) { return }
                requests[request].zeroing?.skipPages()
            case .edge(let bytes):
                if writeEdge(request, bytes) { return }
            case .sync:
                changedAll(request)
                if requests[request].valid.flags.contains(.fua) { return submitSync(request) }
            case .done: return endZeroing(request)
            }
        }
    }

    /// Between two steps: whether the request waits for a job that begins.
    private mutating func stepAside(_ request: RequestIndex) -> Bool {
        let disk = requests[request].homeDisk
        let wasFull = zeroingPlaces.isFull
        guard disks[disk].changes.continueZeroing(request.zeroing, &zeroingPlaces) == .waits else {
            return false
        }
        if wasFull { zeroingMayStart = true }
        requests[request].zeroing?.place = .waiting
        perform(disk)
        return true
    }

    /// The request changes nothing more: a job may begin.
    private mutating func changedAll(_ request: RequestIndex) {
        guard requests[request].zeroing?.place == .working else { return }
        requests[request].zeroing?.place = .syncing
        let disk = requests[request].homeDisk
        disks[disk].changes.zeroingChangedAll()
        perform(disk)
    }

    private mutating func endZeroing(_ request: RequestIndex) {
        changedAll(request)
        let disk = requests[request].homeDisk
        if zeroingPlaces.isFull || disks[disk].hasWaitingZeroing { zeroingMayStart = true }
        disks[disk].changes.endZeroing(&zeroingPlaces)
        finish(request)
    }

    /// Zeroing requests have finished: others that wait for them begin.
    mutating func startWaitingZeroing() {
        guard zeroingMayStart else { return }
        zeroingMayStart = false
        for disk in disks.indices
        where disks.contains(disk) && disks[disk].hasWaitingZeroing { perform(disk) }
    }

    // MARK: Whole pages

    /// Zeroes or discards pages from the first on, as many as one step may; false when there is
    /// nothing to do, or it cannot be done.
    private mutating func startStep(_ request: RequestIndex, _ pages: Range<UInt64>) -> Bool {
        let position = pages.lowerBound
        let disk = requests[request].homeDisk
        let isDiscard = requests[request].valid.command == .trim
        if isDiscard {
            // A discard is a hint: where the source cannot do it nothing happens.
            guard disks[disk].canPunchHoles else { return false }
        } else if !canZeroQuickly(disk, request, pages) {
            if requests[request].valid.flags.contains(.fastZero),
                requests[request].zeroing?.isUntouched ?? false
            {
                fail(request, .notSupported, "zeroing is not faster than writing here", at: 0)
                return false
            }
            requests[request].zeroing?.writesZeros = true
        }
        if requests[request].zeroing?.writesZeros ?? false { return writeStep(request, pages) }
        let (reach, isHole) = step(disk, position, pages.upperBound)
        let (end, isWhole) =
            isDiscard ? (reach, true) : disks[disk].wholeUnits(position..<reach)
        if !isWhole { return writeStep(request, position..<end) }
        requests[request].zeroing?.took(upTo: end)
        requests[request].piecesInFlight += 1
        var piece = Piece(
            request: request, disk: disk, kind: isDiscard ? .discard : .zero, offset: position,
            count: end - position)
        piece.changesNothing = isHole
        piece.keepsSpace = requests[request].valid.flags.contains(.noHole)
        piece.ioOffset = position
        piece.ioCount = Int(end - position)
        startChange(pieces.insert(piece))
        return true
    }

    /// Writes zeros over pages from the first on, as many as a write may.
    private mutating func writeStep(_ request: RequestIndex, _ pages: Range<UInt64>) -> Bool {
        let position = pages.lowerBound
        let stepEnd =
            ClusterGeometry.start(of: ClusterGeometry.cluster(of: position))
            + UInt64(Limits.pieceBytes)
        let end = disks[requests[request].homeDisk].writeEnd(
            from: position, to: min(stepEnd, pages.upperBound))
        requests[request].zeroing?.took(upTo: end)
        return writeZeros(request, position..<end)
    }

    /// Whether any of the pages can go otherwise than by writing.
    private mutating func canZeroQuickly(
        _ disk: DiskIndex, _ request: RequestIndex, _ pages: Range<UInt64>
    ) -> Bool {
        guard disks[disk].hasWholeUnit(pages) else { return false }
        return disks[disk].canZeroRanges
            || (disks[disk].canPunchHoles && !requests[request].valid.flags.contains(.noHole))
    }

    /// How far one step may reach, and whether all of it is a hole already.
    ///
    /// A hole that becomes a hole again changes nothing: it is no change for checkpoints, and under
    /// a job its clusters are noted as zeros and cost no copy. Whatever a guest writes there
    /// meanwhile is a change of its own, before the same instants as this request, which is
    /// admitted.
    private mutating func step(
        _ disk: DiskIndex, _ start: UInt64, _ end: UInt64
    ) -> (end: UInt64, isHole: Bool) {
        let first = ClusterGeometry.cluster(of: start)
        let lookEnd = min(ClusterGeometry.start(of: first) + Limits.zeroingStepBytes, end)
        let hasJobs = disks[disk].hasActiveJobs
        guard hasJobs || disks[disk].tracking != nil else { return (lookEnd, false) }
        let lookLimit = min(
            ClusterGeometry.start(of: ClusterGeometry.cluster(of: lookEnd - 1) + 1),
            disks[disk].sizeBytes)
        let known = io.allocation(
            of: disks[disk].export.source,
            at: hasJobs ? ClusterGeometry.start(of: first) : start, end: lookLimit)
        guard hasJobs else {
            return known.isData ? (lookEnd, false) : (min(known.end, lookEnd), true)
        }
        if known.isData {
            let stepBytes = max(Limits.zeroingStepBytesUnderJob, disks[disk].zeroingUnit)
            let limit = start / stepBytes * stepBytes + stepBytes
            return (min(limit, lookEnd), false)
        }
        // Only clusters that lie wholly in the hole; the disk's end closes the last one.
        let endCluster =
            known.end == disks[disk].sizeBytes
            ? ClusterGeometry.cluster(of: known.end - 1) + 1
            : ClusterGeometry.cluster(of: known.end)
        if endCluster <= first {
            return (min(ClusterGeometry.start(of: first + 1), lookEnd), false)
        }
        disks[disk].changes.noteHole(first..<endCluster)
        return (min(ClusterGeometry.start(of: endCluster), lookEnd), true)
    }

    /// Records what a zeroing or discarding step is about to change: where there are holes already,
    /// nothing.
    ///
    /// A bounded number of places is looked up; what lies behind them counts as changed.
    mutating func recordAllocation(_ piece: PieceIndex) {
        let disk = pieces[piece].homeDisk
        guard disks[disk].tracking != nil else { return }
        let end = pieces[piece].end
        var position = pieces[piece].offset
        for _ in 0..<Limits.lookupsPerTurn {
            guard position < end else { return }
            let known = io.allocation(
                of: disks[disk].export.source, at: position, end: end)
            if known.isData { record(disk, position..<known.end) }
            position = known.end
        }
        if position < end { record(disk, position..<end) }
    }

    mutating func submitAllocation(_ piece: PieceIndex) {
        let value = pieces[piece]
        let isZero = value.kind == .zero
        let usesZeroRange = isZero && (value.keepsSpace || !disks[value.homeDisk].canPunchHoles)
        let isPossible =
            usesZeroRange
            ? disks[value.homeDisk].canZeroRanges : disks[value.homeDisk].canPunchHoles
        guard isPossible else { return allocationImpossible(piece) }
        pieces[piece].usesZeroRange = usesZeroRange
        pieces[piece].handedOverAt = now
        pieces[piece].keepsWorker = io.prepareAllocate(
            disks[value.homeDisk].file,
            mode: isZero ? (usesZeroRange ? .zeroRange : .punchHole) : .discard,
            filePosition: value.offset, count: value.count,
            tag: Operation.piece(piece).tag)
    }

    mutating func zeroCompleted(_ piece: PieceIndex, result: Int32) {
        if result == -Errno.interrupted || result == -Errno.again {
            return submitAllocation(piece)
        }
        if Self.lacksRoom(result), reclaimRoom(piece) { return }
        guard result == -Errno.notSupported else {
            return endChange(piece, errno: result < 0 ? -result : nil)
        }
        if pieces[piece].usesZeroRange {
            disks[pieces[piece].homeDisk].canZeroRanges = false
        } else {
            disks[pieces[piece].homeDisk].canPunchHoles = false
        }
        submitAllocation(piece)
    }

    /// The source cannot do it: a discard is only a hint, zeros can be written.
    private mutating func allocationImpossible(_ piece: PieceIndex) {
        let request = pieces[piece].request
        if pieces[piece].kind == .discard { return endChange(piece, errno: nil) }
        // The step is taken again; by then the disk is known not to do it.
        requests[request].zeroing?.giveBack(pieces[piece].count)
        endChange(piece, errno: nil)
    }

    // MARK: Pieces of pages

    /// Writes zeros over a piece of a page, unless it lies in a hole that may stay one.
    private mutating func writeEdge(_ request: RequestIndex, _ range: Range<UInt64>) -> Bool {
        guard !range.isEmpty else { return false }
        let disk = requests[request].homeDisk
        if !requests[request].valid.flags.contains(.noHole) {
            let known = io.allocation(
                of: disks[disk].export.source, at: range.lowerBound, end: range.upperBound)
            if !known.isData, known.end == range.upperBound { return false }
        }
        return writeZeros(request, range)
    }

    /// Writes zeros over a range as an ordinary write; false when the range is empty.
    private mutating func writeZeros(_ request: RequestIndex, _ range: Range<UInt64>) -> Bool {
        guard !range.isEmpty else { return false }
        let slot = requests[request].connection
        let count = UInt64(range.upperBound - range.lowerBound)
        // Not charged to the connection's share: a guest's zeroing must not fail because its writes
        // fill it.
        guard
            let piece = makePiece(
                slot, request, .write, range.lowerBound, count, isCharged: false)
        else {
            fail(request, .noMemory, "no buffer for writing zeros", at: range.lowerBound)
            return false
        }
        arena.zero(pieces[piece].guestData, count: Int(count))
        startChange(piece)
        return true
    }
}
