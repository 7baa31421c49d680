import Bitmap
import Disk
import IORing
import NBDProtocol
import Scratch

/// Block status: which parts of a range hold data, a few lookups a turn.
///
/// For a backup export the rule of reads applies: allocation is looked up in the source first, then
/// the ledger is asked, so a cluster that a guest write changed meanwhile is answered from the
/// ledger.
extension RingLoop {
    /// Values of `base:allocation` (NBD protocol, "base:allocation").
    private enum Allocation {
        static let data: UInt32 = 0
        static let holeAndZero: UInt32 = 3
    }

    mutating func startStatus(_ slot: Int, _ request: ValidRequest) {
        connections[slot].status.contextIndex = 0
        startContext(slot, request)
    }

    private mutating func startContext(_ slot: Int, _ request: ValidRequest) {
        connections[slot].status.position = request.offset
        connections[slot].status.knownEnd = request.offset
        connections[slot].status.knownIsData = true
        connections[slot].status.isGathered = false
        connections[slot].status.extents.removeAll()
    }

    mutating func continueStatus(_ slot: Int, _ request: Int) -> IssueResult {
        let valid = requests[request].valid
        while connections[slot].status.contextIndex < connections[slot].contexts.count {
            if !connections[slot].status.isGathered {
                gatherExtents(slot, valid)
                if !connections[slot].status.isGathered { return .again }
            }
            if connections[slot].path.ledger?.isClosed ?? false {
                fail(
                    request, .ioError, "the backup job is broken or has ended", at: valid.offset)
                connections[slot].current = -1
                finish(request)
                return .issued
            }
            flush(slot)
            if connections[slot].phase == .closing { return .issued }
            if connections[slot].output.unsentBytes >= Limits.unsentBytesPerConnection {
                return .blocked
            }
            emitExtents(slot, valid)
            if connections[slot].phase == .closing { return .issued }
            connections[slot].status.contextIndex += 1
            startContext(slot, valid)
        }
        connections[slot].current = -1
        discard(request)
        return .issued
    }

    // MARK: Gathering

    private mutating func gatherExtents(_ slot: Int, _ valid: ValidRequest) {
        let context = connections[slot].contexts[connections[slot].status.contextIndex]
        if context.index == 0 {
            gatherAllocation(slot, valid)
        } else if case .backup(let export) = connections[slot].target, let dirty = export.dirty {
            gatherDirty(slot, valid, dirty.bitmap, dirty.granularityShift)
        } else {
            preconditionFailure("a context that the export does not have")
        }
    }

    private mutating func gatherAllocation(_ slot: Int, _ valid: ValidRequest) {
        let end = valid.offset + valid.length
        for _ in 0..<Limits.extentsPerTurn {
            if isComplete(slot, valid, end) { return }
            let position = connections[slot].status.position
            if connections[slot].status.knownEnd <= position { look(slot, position, end) }
            addKnown(slot, position)
        }
    }

    /// A dirty bitmap is in memory: many extents a turn.
    private mutating func gatherDirty(
        _ slot: Int, _ valid: ValidRequest, _ bitmap: DirtyBitmap, _ shift: UInt64
    ) {
        let end = valid.offset + valid.length
        let position = connections[slot].status.position
        if position < end {
            connections[slot].status.position = connections[slot].status.extents.append(
                runsOf: bitmap, granularityShift: shift, from: position, to: end,
                dirtyFlags: Self.dirty,
                runs: valid.flags.contains(.reqOne) ? 1 : Limits.dirtyExtentsPerTurn)
        }
        _ = isComplete(slot, valid, end)
    }

    /// Value of `qemu:dirty-bitmap:` contexts for dirty blocks.
    private static var dirty: UInt32 { 1 }

    private mutating func isComplete(_ slot: Int, _ valid: ValidRequest, _ end: UInt64) -> Bool {
        let onlyOne = valid.flags.contains(.reqOne)
        guard
            connections[slot].status.position == end || connections[slot].status.extents.isFull
                || (onlyOne && connections[slot].status.extents.count > 1)
        else { return false }
        connections[slot].status.isGathered = true
        return true
    }

    private mutating func look(_ slot: Int, _ position: UInt64, _ end: UInt64) {
        let known: (isData: Bool, end: UInt64)
        let endsHole =
            connections[slot].status.knownEnd == position
            && !connections[slot].status.knownIsData
        switch connections[slot].target {
        case .live(let export):
            known = export.source.allocation(at: position, end: end, endsHole: endsHole)
        case .backup(let export):
            known = export.source.allocation(at: position, end: end, endsHole: endsHole)
        case nil: known = (true, end)
        }
        connections[slot].status.knownIsData = known.isData
        connections[slot].status.knownEnd = known.end
    }

    private mutating func addKnown(_ slot: Int, _ position: UInt64) {
        let knownEnd = connections[slot].status.knownEnd
        var end = knownEnd
        var flags =
            connections[slot].status.knownIsData ? Allocation.data : Allocation.holeAndZero
        if let ledger = connections[slot].path.ledger {
            let step = ledger.step(from: position, to: knownEnd)
            end = position + UInt64(step.count)
            switch step.place {
            case .source: break
            case .zero: flags = Allocation.holeAndZero
            case .slot: flags = Allocation.data
            }
        }
        connections[slot].status.extents.append(length: end - position, flags: flags)
        connections[slot].status.position = end
    }

    // MARK: Replying

    /// Writes one context's chunk whole: nothing else may come between its extents.
    ///
    /// At most 1 MiB.
    private mutating func emitExtents(_ slot: Int, _ valid: ValidRequest) {
        let extents = connections[slot].status.extents
        let total = valid.flags.contains(.reqOne) ? 1 : extents.count
        var emitted = 0
        while emitted < total {
            let header = emitted == 0 ? ReplyEncoder.blockStatusHeaderBytes : 0
            let fits = (Limits.replyBufferBytes / 2 - header) / ReplyEncoder.extentBytes
            let count = min(fits, total - emitted)
            let bytes = header + count * ReplyEncoder.extentBytes
            guard let offset = room(slot, bytes: bytes) else { return }
            if header > 0 { writeStatusHeader(slot, valid, total, at: offset) }
            var span = arena.mutableBytes(offset + header, count: bytes - header)
            extents.encode(emitted..<(emitted + count), into: &span, at: 0)
            commit(slot, bytes: bytes)
            emitted += count
        }
    }

    private mutating func writeStatusHeader(
        _ slot: Int, _ valid: ValidRequest, _ total: Int, at offset: Int
    ) {
        let index = connections[slot].status.contextIndex
        let id = connections[slot].contexts[index].id
        let isLast = index + 1 == connections[slot].contexts.count
        var span = arena.mutableBytes(offset, count: ReplyEncoder.blockStatusHeaderBytes)
        _ = ReplyEncoder.blockStatus(
            cookie: valid.cookie, contextID: id, extentCount: total, done: isLast, into: &span,
            at: 0)
    }
}
