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
        connections[slot].status.position = request.offset
        connections[slot].status.knownEnd = request.offset
        connections[slot].status.isGathered = false
        connections[slot].status.extents.removeAll()
        connections[slot].status.emitted = 0
        connections[slot].status.contextIndex = 0
    }

    mutating func continueStatus(_ slot: Int, _ request: Int) -> IssueResult {
        let valid = requests[request].valid
        if !connections[slot].status.isGathered {
            gatherExtents(slot, valid)
            if !connections[slot].status.isGathered { return .again }
        }
        if connections[slot].path.ledger?.isClosed ?? false {
            fail(request, .ioError, "the backup job is broken or has ended", at: valid.offset)
        }
        // An error can only be told before the first extent is out.
        if requests[request].error != nil, connections[slot].status.contextIndex == 0 {
            connections[slot].current = -1
            finish(request)
            return .issued
        }
        while connections[slot].status.contextIndex < connections[slot].contexts.count {
            flush(slot)
            if connections[slot].phase == .closing { return .issued }
            if connections[slot].output.unsentBytes >= Limits.unsentBytesPerConnection {
                return .blocked
            }
            emitExtents(slot, valid)
            if connections[slot].phase == .closing { return .issued }
        }
        connections[slot].current = -1
        discard(request)
        return .issued
    }

    // MARK: Gathering

    private mutating func gatherExtents(_ slot: Int, _ valid: ValidRequest) {
        let end = valid.offset + valid.length
        let onlyOne = valid.flags.contains(.reqOne)
        for _ in 0..<Limits.extentsPerTurn {
            let position = connections[slot].status.position
            if position == end || (connections[slot].status.extents.isFull)
                || (onlyOne && connections[slot].status.extents.count > 1)
            {
                connections[slot].status.isGathered = true
                return
            }
            if connections[slot].status.knownEnd <= position { look(slot, position, end) }
            addKnown(slot, position)
        }
    }

    private mutating func look(_ slot: Int, _ position: UInt64, _ end: UInt64) {
        let known: (isData: Bool, end: UInt64)
        switch connections[slot].target {
        case .live(let export): known = export.source.allocation(at: position, end: end)
        case .backup(let export): known = export.source.allocation(at: position, end: end)
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
        let total =
            valid.flags.contains(.reqOne) ? 1 : connections[slot].status.extents.count
        connections[slot].status.emitted = 0
        while connections[slot].status.emitted < total {
            let isFirst = connections[slot].status.emitted == 0
            let header = isFirst ? ReplyEncoder.blockStatusHeaderBytes : 0
            let fits = (Limits.replyBufferBytes / 2 - header) / ReplyEncoder.extentBytes
            let count = min(fits, total - connections[slot].status.emitted)
            let bytes = header + count * ReplyEncoder.extentBytes
            guard let offset = room(slot, bytes: bytes) else { return }
            writeExtents(slot, valid, total: total, count: count, at: offset, bytes: bytes)
            commit(slot, bytes: bytes)
            connections[slot].status.emitted += count
        }
        connections[slot].status.contextIndex += 1
    }

    private mutating func writeExtents(
        _ slot: Int, _ valid: ValidRequest, total: Int, count: Int, at offset: Int, bytes: Int
    ) {
        let emitted = connections[slot].status.emitted
        let context = connections[slot].contexts[connections[slot].status.contextIndex]
        let isLast =
            connections[slot].status.contextIndex + 1 == connections[slot].contexts.count
        let extents = connections[slot].status.extents
        var span = arena.mutableBytes(offset, count: bytes)
        var position = 0
        if emitted == 0 {
            position += ReplyEncoder.blockStatus(
                cookie: valid.cookie, contextID: context.id, extentCount: total, done: isLast,
                into: &span, at: 0)
        }
        for index in emitted..<(emitted + count) {
            let extent = extents[index]
            position += ReplyEncoder.extent(
                length: extent.length, flags: extent.flags, into: &span, at: position)
        }
    }
}
