import Disk
import IORing
import NBDProtocol
import PointInTime
import Tables
import Tracking

/// Block status: which parts of a range hold data, a few lookups a turn.
///
/// For a backup export the rule of reads applies: allocation is looked up in the source first, then
/// the ledger is asked, so a cluster that a guest write changed meanwhile is answered from the
/// ledger.
extension RingLoop where IO: ~Copyable {
    mutating func startStatus(_ slot: ConnectionIndex, _ request: ValidRequest, _ asked: ContextSet)
    {
        connections[slot].transmission.status.start(request, asked: asked)
    }

    mutating func continueStatus(_ slot: ConnectionIndex, _ request: RequestIndex) -> IssueResult {
        let valid = requests[request].valid
        if connections[slot].transmission.status.pass == .measuring {
            measure(slot, valid)
            return .again
        }
        skipUnasked(slot)
        if connections[slot].transmission.status.isAsking { return .blocked }
        if !connections[slot].transmission.status.isGathered {
            gatherExtents(slot, valid)
            if askUpstream(slot, request) { return .blocked }
            if !connections[slot].transmission.status.isGathered { return .again }
        }
        if connections[slot].transmission.path?.ledger?.isClosed ?? false {
            fail(request, .ioError, "the backup job is broken or has ended", at: valid.offset)
            connections[slot].transmission.current = nil
            finish(request)
            return .issued
        }
        flush(slot)
        if connections[slot].phase == .closing { return .issued }
        if connections[slot].outbox.replies.unsentBytes >= Limits.unsentBytesPerConnection {
            return .blocked
        }
        let isLast = isLastContext(slot)
        emitExtents(slot, valid)
        if connections[slot].phase == .closing { return .issued }
        if !isLast {
            // One context a turn, as there may be many.
            connections[slot].transmission.status.contextIndex += 1
            connections[slot].transmission.status.startContext(at: valid.offset)
            return .again
        }
        connections[slot].transmission.current = nil
        discard(request)
        return .issued
    }

    /// One turn of finding out how far the bitmaps' extents fit, before anything is answered.
    private mutating func measure(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        skipUnasked(slot)
        let context = connections[slot].transmission.contexts[
            connections[slot].transmission.status.contextIndex]
        if context.index > 0 {
            gatherExtents(slot, valid)
            guard connections[slot].transmission.status.isGathered else { return }
        }
        guard !isLastContext(slot) else {
            return connections[slot].transmission.status.startAnswering(at: valid.offset)
        }
        connections[slot].transmission.status.contextIndex += 1
        connections[slot].transmission.status.startContext(at: valid.offset)
    }

    /// Goes to the next context that is asked for; there is one.
    private mutating func skipUnasked(_ slot: ConnectionIndex) {
        while !connections[slot].transmission.status.asked.contains(contextID(slot)) {
            connections[slot].transmission.status.contextIndex += 1
        }
    }

    private mutating func contextID(_ slot: ConnectionIndex) -> UInt32 {
        connections[slot].transmission.contexts[connections[slot].transmission.status.contextIndex]
            .id
    }

    private mutating func isLastContext(_ slot: ConnectionIndex) -> Bool {
        !connections[slot].transmission.status.asked.containsAny(above: contextID(slot))
    }

    // MARK: Upstreams

    /// Asks the upstream of the source what follows, where that is not known; false: nothing is
    /// asked.
    private mutating func askUpstream(_ slot: ConnectionIndex, _ request: RequestIndex) -> Bool {
        let context = connections[slot].transmission.contexts[
            connections[slot].transmission.status.contextIndex]
        guard context.index == 0, let path = connections[slot].transmission.path, path.asksUpstream,
            connections[slot].transmission.status.needsTelling
        else { return false }
        let position = connections[slot].transmission.status.position
        let count = min(
            connections[slot].transmission.status.end - position, Limits.upstreamStatusBytes)
        connections[slot].transmission.status.isAsking = true
        requests[request].piecesInFlight += 1
        let piece = pieces.insert(
            Piece(
                request: request, disk: connections[slot].transmission.disk, kind: .status,
                offset: position, count: count))
        io.prepareStatus(
            path.source, filePosition: position, count: count,
            tag: Operation.piece(piece).tag)
        return true
    }

    mutating func statusCompleted(_ piece: PieceIndex, result: Int32) {
        let extents = io.takeExtents(Operation.piece(piece).tag)
        let request = pieces.remove(piece).request
        let slot = requests[request].connection
        requests[request].piecesInFlight -= 1
        connections[slot].transmission.status.tell(result < 0 ? [] : extents)
        guard connections[slot].transmission.current == request else { return discard(request) }
        markReady(slot)
    }

    // MARK: Gathering

    private mutating func gatherExtents(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        let context = connections[slot].transmission.contexts[
            connections[slot].transmission.status.contextIndex]
        if context.index == 0 {
            gatherAllocation(slot, valid)
        } else if case .backup(let export) = connections[slot].transmission.target {
            let dirty = export.bitmaps[context.index - 1]
            gatherDirty(slot, valid, dirty.bitmap, dirty.granularityShift)
        } else {
            preconditionFailure("a context that the export does not have")
        }
    }

    private mutating func gatherAllocation(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        let source: RawSource
        var changes: [FrozenBitmap] = []
        switch connections[slot].transmission.target {
        case .live(let export): source = export.source
        case .backup(let export):
            source = export.source
            changes = export.bitmaps
        case nil: preconditionFailure("a request without an export")
        }
        connections[slot].transmission.status.gatherAllocation(
            valid, of: source, asking: &io, under: connections[slot].transmission.path?.ledger,
            changes: changes, hasLongExtents: connections[slot].transmission.replies.hasLongExtents)
    }

    /// A dirty bitmap is in memory: many extents a turn.
    private mutating func gatherDirty(
        _ slot: ConnectionIndex, _ valid: ValidRequest, _ bitmap: DirtyBitmap, _ shift: UInt64
    ) {
        let end = connections[slot].transmission.status.end
        let position = connections[slot].transmission.status.position
        if position < end {
            connections[slot].transmission.status.position = connections[slot].transmission.status
                .extents.append(
                    runsOf: bitmap, granularityShift: shift, from: position, to: end,
                    dirtyFlags: Self.dirty,
                    runs: valid.flags.contains(.reqOne) ? 1 : Limits.dirtyExtentsPerTurn)
        }
        connections[slot].transmission.status.endIfComplete(
            valid, hasLongExtents: connections[slot].transmission.replies.hasLongExtents)
    }

    /// Value of `qemu:dirty-bitmap:` contexts for dirty blocks.
    private static var dirty: UInt32 { 1 }

    // MARK: Replying

    /// Writes one context's chunk whole: nothing else may come between its extents.
    ///
    /// At most 1 MiB, with 64-bit lengths 2 MiB.
    private mutating func emitExtents(_ slot: ConnectionIndex, _ valid: ValidRequest) {
        let extents = connections[slot].transmission.status.extents
        let replies = connections[slot].transmission.replies
        let total =
            valid.flags.contains(.reqOne) ? 1 : extents.count(isLong: replies.hasLongExtents)
        var emitted = 0
        var next = 0
        while emitted < total {
            let header = emitted == 0 ? replies.statusHeaderBytes : 0
            let fits = (Limits.replyBufferBytes / 2 - header) / replies.extentBytes
            let count = min(fits, total - emitted)
            let bytes = header + count * replies.extentBytes
            guard let offset = takeRoom(slot, bytes: bytes) else { return }
            if header > 0 { writeStatusHeader(slot, valid, total, at: offset) }
            var span = arena.mutableBytes(offset + header, count: bytes - header)
            extents.encode(count, from: &next, by: replies, into: &span)
            commit(slot, bytes: bytes)
            emitted += count
        }
    }

    private mutating func writeStatusHeader(
        _ slot: ConnectionIndex, _ valid: ValidRequest, _ total: Int, at offset: Int
    ) {
        let id = contextID(slot)
        let isLast = isLastContext(slot)
        let replies = connections[slot].transmission.replies
        var span = arena.mutableBytes(offset, count: replies.statusHeaderBytes)
        _ = replies.status(
            valid.echo, contextID: id, extentCount: total, done: isLast, into: &span, at: 0)
    }
}
