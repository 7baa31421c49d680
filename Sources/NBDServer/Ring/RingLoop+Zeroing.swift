import Disk
import IORing
import NBDProtocol
import Scratch

/// Guest zeroing and discarding: whole pages by the file system or device, the pieces of pages at
/// the ends by writing.
///
/// A request goes step by step, one at a time, so that no step holds the ring. A job begins before
/// the request, after it, or between two steps that meet at a cluster's edge: the content of a
/// cluster is never half of a request.
extension RingLoop {
    private static var page: UInt64 { UInt64(BufferArena.pageBytes) }

    /// Begins the request, now or when no job is beginning and others have finished.
    mutating func startZeroing(_ request: RequestIndex) {
        let disk = requests[request].homeDisk
        if disks[disk].heldRequests.isEmpty, mayZero(disk) { return admitZeroing(request) }
        disks[disk].heldRequests.append(request)
    }

    private func mayZero(_ disk: DiskIndex) -> Bool {
        !disks[disk].isHeld && disks[disk].zeroingCount < Limits.zeroingPerDisk
            && zeroingCount < Limits.zeroingPerRing
    }

    private mutating func admitZeroing(_ request: RequestIndex) {
        let disk = requests[request].homeDisk
        requests[request].isAdmitted = true
        disks[disk].changesInFlight += 1
        if !requests[request].hasZeroingPlace {
            requests[request].hasZeroingPlace = true
            disks[disk].zeroingCount += 1
            zeroingCount += 1
        }
        continueZeroing(request)
    }

    /// Begins zeroing requests of the disk that wait, as many as may.
    mutating func startHeldZeroing(_ disk: DiskIndex) {
        while mayZero(disk), !disks[disk].heldRequests.isEmpty {
            admitZeroing(disks[disk].heldRequests.removeFirst())
        }
    }

    /// Steps aside for a job that begins; true when the request waits.
    private mutating func stepAside(_ request: RequestIndex) -> Bool {
        let disk = requests[request].homeDisk
        guard disks[disk].isHeld, requests[request].isAdmitted else { return false }
        leave(request)
        leavePlace(request)
        disks[disk].heldRequests.append(request)
        return true
    }

    /// The request changes nothing more for now: a job may begin.
    private mutating func leave(_ request: RequestIndex) {
        guard requests[request].isAdmitted else { return }
        requests[request].isAdmitted = false
        let disk = requests[request].homeDisk
        disks[disk].changesInFlight -= 1
        reportIfQuiet(disk)
    }

    /// The request has no operation in flight any more, its sync included: another may begin.
    private mutating func leavePlace(_ request: RequestIndex) {
        guard requests[request].hasZeroingPlace else { return }
        requests[request].hasZeroingPlace = false
        let disk = requests[request].homeDisk
        disks[disk].zeroingCount -= 1
        let wasFull = zeroingCount == Limits.zeroingPerRing
        zeroingCount -= 1
        if !disks[disk].heldRequests.isEmpty || wasFull { zeroingHasRoom = true }
    }

    /// Zeroing requests have finished: others that wait for them begin.
    mutating func startWaitingZeroing() {
        guard zeroingHasRoom else { return }
        zeroingHasRoom = false
        for disk in disks.indices where disks.contains(disk) { startHeldZeroing(disk) }
    }

    /// Takes the next step of the request, or answers it.
    mutating func continueZeroing(_ request: RequestIndex) {
        let isDiscard = requests[request].valid.command == .trim
        while true {
            if requests[request].error != nil
                || connections[requests[request].connection].phase == .closing
            {
                requests[request].zeroStage = .done
            }
            switch requests[request].zeroStage {
            case .firstStep:
                requests[request].zeroStage = isDiscard ? .middle : .head
                if startStep(request) { return }
            case .head:
                requests[request].zeroStage = .middle
                if writeEdge(request, headRange(request)) { return }
            case .middle:
                if hasMoreSteps(request), stepAside(request) { return }
                if startStep(request) { return }
                requests[request].zeroStage = isDiscard ? .sync : .tail
            case .tail:
                requests[request].zeroStage = .sync
                if writeEdge(request, tailRange(request)) { return }
            case .sync:
                requests[request].zeroStage = .done
                leave(request)
                if requests[request].valid.flags.contains(.fua) { return submitSync(request) }
            case .done:
                leave(request)
                leavePlace(request)
                return finish(request)
            }
        }
    }

    private func hasMoreSteps(_ request: RequestIndex) -> Bool {
        let middle = middleRange(request)
        return middle.lowerBound + requests[request].issued < middle.upperBound
    }

    /// Whole pages inside the request; empty when there is none.
    private func middleRange(_ request: RequestIndex) -> Range<UInt64> {
        let valid = requests[request].valid
        let start = (valid.offset + Self.page - 1) / Self.page * Self.page
        let end = (valid.offset + valid.length) / Self.page * Self.page
        return start < end ? start..<end : start..<start
    }

    private func headRange(_ request: RequestIndex) -> Range<UInt64> {
        let valid = requests[request].valid
        let middle = middleRange(request)
        guard middle.isEmpty else { return valid.offset..<middle.lowerBound }
        let disk = requests[request].homeDisk
        let end = valid.offset + valid.length
        return valid.offset..<disks[disk].writeEnd(from: valid.offset, to: end)
    }

    private func tailRange(_ request: RequestIndex) -> Range<UInt64> {
        let valid = requests[request].valid
        let middle = middleRange(request)
        let end = valid.offset + valid.length
        return middle.isEmpty ? headRange(request).upperBound..<end : middle.upperBound..<end
    }

    // MARK: Whole pages

    private mutating func startStep(_ request: RequestIndex) -> Bool {
        let middle = middleRange(request)
        let position = middle.lowerBound + requests[request].issued
        guard position < middle.upperBound else { return false }
        let disk = requests[request].homeDisk
        if requests[request].valid.command == .trim {
            // A discard is a hint: where the source cannot do it nothing happens.
            guard disks[disk].canPunchHoles else { return false }
        } else if !canZeroQuickly(disk, request) {
            if requests[request].valid.flags.contains(.fastZero), requests[request].issued == 0 {
                fail(request, .notSupported, "zeroing is not faster than writing here", at: 0)
                return false
            }
            requests[request].writesZeros = true
        }
        if requests[request].writesZeros {
            let stepEnd =
                ClusterGeometry.start(of: ClusterGeometry.cluster(of: position))
                + UInt64(Limits.pieceBytes)
            let end = disks[disk].writeEnd(from: position, to: min(stepEnd, middle.upperBound))
            requests[request].issued += end - position
            return writeZeros(request, position..<end)
        }
        let (end, isHole) = step(disk, position, middle.upperBound)
        requests[request].issued += end - position
        requests[request].piecesInFlight += 1
        var piece = Piece(
            request: request, disk: disk,
            kind: requests[request].valid.command == .trim ? .discard : .zero,
            offset: position, count: end - position)
        piece.changesNothing = isHole
        piece.keepsSpace = requests[request].valid.flags.contains(.noHole)
        piece.ioOffset = position
        piece.ioCount = Int(end - position)
        startChange(pieces.insert(piece))
        return true
    }

    private func canZeroQuickly(_ disk: DiskIndex, _ request: RequestIndex) -> Bool {
        disks[disk].canZeroRanges
            || (disks[disk].canPunchHoles && !requests[request].valid.flags.contains(.noHole))
    }

    /// How far one step may reach, and whether all of it is a hole already.
    ///
    /// A hole that becomes a hole again changes nothing: it is no change for checkpoints, and under a
    /// job its clusters are noted as zeros and cost no copy. Whatever a guest writes there meanwhile
    /// is a change of its own, before the same instants as this request, which is admitted.
    private mutating func step(
        _ disk: DiskIndex, _ start: UInt64, _ end: UInt64
    ) -> (end: UInt64, isHole: Bool) {
        let first = ClusterGeometry.cluster(of: start)
        let lookEnd = min(ClusterGeometry.start(of: first) + Limits.zeroingStepBytes, end)
        let hasJobs = disks[disk].gate.hasActiveJobs
        guard hasJobs || disks[disk].tracking != nil else { return (lookEnd, false) }
        let lookLimit = min(
            ClusterGeometry.start(of: ClusterGeometry.cluster(of: lookEnd - 1) + 1),
            disks[disk].sizeBytes)
        let known = disks[disk].export.source.allocation(
            at: hasJobs ? ClusterGeometry.start(of: first) : start, end: lookLimit)
        guard hasJobs else {
            return known.isData ? (lookEnd, false) : (min(known.end, lookEnd), true)
        }
        if known.isData {
            let limit = ClusterGeometry.start(of: first) + Limits.zeroingStepBytesUnderJob
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
        disks[disk].gate.noteHole(first..<endCluster)
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
            let known = disks[disk].export.source.allocation(at: position, end: end)
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
        ring.prepareAllocate(
            disks[value.homeDisk].descriptor, mode: usesZeroRange ? .zeroRange : .punchHole,
            filePosition: value.offset, count: value.count,
            tag: Operation.piece(piece).tag)
    }

    mutating func zeroCompleted(_ piece: PieceIndex, result: Int32) {
        if result == -Errno.interrupted || result == -Errno.again {
            return submitAllocation(piece)
        }
        if findsNoRoom(piece, result: result) { return }
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
        requests[request].issued -= pieces[piece].count
        if requests[request].issued == 0 { requests[request].zeroStage = .firstStep }
        endChange(piece, errno: nil)
    }

    // MARK: Pieces of pages

    /// Writes zeros over a piece of a page, unless it lies in a hole that may stay one.
    private mutating func writeEdge(_ request: RequestIndex, _ range: Range<UInt64>) -> Bool {
        guard !range.isEmpty else { return false }
        let disk = requests[request].homeDisk
        if !requests[request].valid.flags.contains(.noHole) {
            let known = disks[disk].export.source.allocation(
                at: range.lowerBound, end: range.upperBound)
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
