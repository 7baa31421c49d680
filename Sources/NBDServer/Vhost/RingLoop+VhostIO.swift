import Core
import IORing
import NBDProtocol
import SystemLayer
import Tables
import VhostProtocol

/// Reads and writes between a guest's memory and its disk.
///
/// Bytes go straight from one to the other. Only where the source wants an alignment that the
/// guest's buffers do not have, they go through a buffer of the ring's.
extension RingLoop where IO: ~Copyable {
    // MARK: Small reads that the page cache can answer

    /// Answers a small read at once when the page cache has it; false: take the long way.
    mutating func readInline(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ queue: Int, _ block: BlockRequest
    ) -> Bool {
        guard block.byteCount <= UInt64(Limits.pieceBytes),
            block.segmentCount <= VectorTable.laneCapacity,
            let path = connections[slot].transmission.path, path.alignment == 1,
            let lane = vhosts[vhost].vectors.take()
        else { return false }
        let start = vhosts[vhost].cursor
        _ = vhosts[vhost].fill(lane, upTo: block.byteCount)
        let got = io.readNow(
            path.source, into: vhosts[vhost].vectors, lane: lane,
            filePosition: block.offset, mayWait: path.sourceNeverWaits)
        vhosts[vhost].vectors.giveBack(lane)
        vhosts[vhost].cursor = start
        guard got == Int(block.byteCount) else { return false }
        vhosts[vhost].answer(queue, block.answer(.ok))
        movedBytes += block.byteCount
        return true
    }

    // MARK: Cutting a request into pieces

    /// Cuts the request into pieces, as far as there is room for them.
    mutating func issueGuest(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ request: RequestIndex
    ) -> IssueResult {
        let valid = requests[request].valid
        let isRead = valid.command == .read
        let turnEnd = requests[request].issued + Limits.bytesPerTurn
        while requests[request].issued < valid.length {
            if requests[request].issued >= turnEnd { return .again }
            let offset = valid.offset + requests[request].issued
            let boundary = (offset / UInt64(Limits.pieceBytes) + 1) * UInt64(Limits.pieceBytes)
            var end = min(boundary, valid.offset + valid.length)
            if !isRead { end = disks[requests[request].homeDisk].writeEnd(from: offset, to: end) }
            guard let piece = makeGuestPiece(slot, vhost, request, offset, upTo: end) else {
                return .blocked
            }
            requests[request].issued += pieces[piece].count
            if requests[request].issued == valid.length {
                // The last piece may be complete when this returns, and the request gone with it.
                connections[slot].transmission.current = nil
                start(piece, slot, vhost)
                return .issued
            }
            start(piece, slot, vhost)
            if connections[slot].phase == .closing { return .issued }
        }
        connections[slot].transmission.current = nil
        return .issued
    }

    /// A piece of the request from `offset` on; nil when there is no room for it now.
    private mutating func makeGuestPiece(
        _ slot: ConnectionIndex, _ vhost: VhostIndex, _ request: RequestIndex, _ offset: UInt64,
        upTo end: UInt64
    ) -> PieceIndex? {
        let own = Limits.lanesPerGuest - vhosts[vhost].vectors.openLanes
        guard operationShares.allowData(pieces.count, own: own) else {
            starved.append(slot)
            return nil
        }
        guard let lane = vhosts[vhost].vectors.take() else { return nil }
        let before = vhosts[vhost].cursor
        let count = vhosts[vhost].fill(lane, upTo: end - offset)
        let isRead = requests[request].valid.command == .read
        let kind: PieceKind = isRead ? .guestRead : .write
        let alignment =
            isRead
            ? connections[slot].transmission.path?.alignment ?? 1
            : disks[requests[request].homeDisk].alignment(forWritingAt: offset)
        if alignment == 1
            || ((offset | count) & UInt64(alignment - 1) == 0
                && vhosts[vhost].vectors.isAligned(lane, to: alignment))
        {
            var piece = Piece(
                request: request, disk: requests[request].disk, kind: kind, offset: offset,
                count: count)
            piece.ioOffset = offset
            piece.ioCount = Int(count)
            piece.lane = Int32(lane)
            requests[request].piecesInFlight += 1
            return pieces.insert(piece)
        }
        guard let piece = makePiece(slot, request, kind, offset, count) else {
            vhosts[vhost].cursor = before
            vhosts[vhost].vectors.giveBack(lane)
            return nil
        }
        pieces[piece].lane = Int32(lane)
        return piece
    }

    private mutating func start(
        _ piece: PieceIndex, _ slot: ConnectionIndex, _ vhost: VhostIndex
    ) {
        guard pieces[piece].kind == .write else { return readGuest(piece) }
        if pieces[piece].buffer != nil, let lane = pieces[piece].lane {
            // From here on it is a write like one that came over NBD.
            let value = pieces[piece]
            let got = io.copy(
                from: vhosts[vhost].vectors, lane: Int(lane), to: &arena, at: value.guestData,
                count: Int(value.count))
            vhosts[vhost].vectors.giveBack(Int(lane))
            pieces[piece].lane = nil
            guard got == Int(value.count) else { return dropGuestWrite(piece) }
        }
        startChange(piece)
    }

    /// The guest's memory has gone before anything was written: the request fails.
    private mutating func dropGuestWrite(_ piece: PieceIndex) {
        let value = pieces.remove(piece)
        let slot = requests[value.request].connection
        if let buffer = value.buffer { giveBack(buffer, of: slot) }
        fail(value.request, .ioError, "the guest's memory is gone", at: value.offset)
        endGuestPiece(value.request, slot)
    }

    private mutating func endGuestPiece(_ request: RequestIndex, _ slot: ConnectionIndex) {
        requests[request].piecesInFlight -= 1
        let isLast =
            requests[request].piecesInFlight == 0
            && connections[slot].transmission.current != request
            && requests[request].issued == requests[request].valid.length
        if isLast { finish(request) } else { markReady(slot) }
    }

    // MARK: Reading

    /// Goes on with a read: what the page cache has, then what the kernel brings.
    private mutating func readGuest(_ piece: PieceIndex) {
        let value = pieces[piece]
        let slot = requests[value.request].connection
        guard let vhost = connections[slot].vhost, let lane = value.lane else {
            preconditionFailure("a guest's read has a lane")
        }
        guard let path = connections[slot].transmission.path else {
            preconditionFailure("a guest's read without an export")
        }
        pieces[piece].handedOverAt = now
        if path.isDirect, !path.source.isUpstream { preparedForDisk += 1 }
        if value.buffer != nil {
            let start = value.progress / path.alignment * path.alignment
            return io.prepareRead(
                path.source, into: arena, at: value.data + start, count: value.ioCount - start,
                filePosition: value.ioOffset + UInt64(start), tag: Operation.piece(piece).tag)
        }
        if !path.isDirect {
            let got = io.readNow(
                path.source, into: vhosts[vhost].vectors, lane: Int(lane),
                filePosition: value.offset + UInt64(value.progress),
                mayWait: path.sourceNeverWaits)
            if got > 0 {
                movedBytes += UInt64(got)
                vhosts[vhost].vectors.advance(Int(lane), by: got)
                pieces[piece].progress += got
                if pieces[piece].progress == Int(value.count) { return endGuestRead(piece) }
            }
        }
        io.prepareRead(
            path.source, into: vhosts[vhost].vectors, lane: Int(lane),
            filePosition: value.offset + UInt64(pieces[piece].progress),
            tag: Operation.piece(piece).tag)
    }

    mutating func guestReadCompleted(_ piece: PieceIndex, result: Int32) {
        if result == -Errno.interrupted || result == -Errno.again { return readGuest(piece) }
        let value = pieces[piece]
        guard result > 0 else {
            fail(value.request, .ioError, "the data could not be read", at: value.offset)
            return endGuestRead(piece)
        }
        let slot = requests[value.request].connection
        guard let vhost = connections[slot].vhost, let lane = value.lane else {
            preconditionFailure("a guest's read has a lane")
        }
        guard value.buffer != nil else {
            vhosts[vhost].vectors.advance(Int(lane), by: Int(result))
            pieces[piece].progress += Int(result)
            if pieces[piece].progress < Int(value.count) { return readGuest(piece) }
            return endGuestRead(piece)
        }
        let alignment = connections[slot].transmission.path?.alignment ?? 1
        let start = value.progress / alignment * alignment
        pieces[piece].progress = start + Int(result)
        let wanted = Int(value.offset - value.ioOffset) + Int(value.count)
        if pieces[piece].progress < wanted {
            // No more has come than was there: the source has ended.
            guard pieces[piece].progress > value.progress else {
                fail(value.request, .ioError, "the source ended before the disk", at: value.offset)
                return endGuestRead(piece)
            }
            return readGuest(piece)
        }
        let got = io.copy(
            from: arena, at: value.guestData, count: Int(value.count), to: vhosts[vhost].vectors,
            lane: Int(lane))
        if got != Int(value.count) {
            fail(value.request, .ioError, "the guest's memory is gone", at: value.offset)
        }
        endGuestRead(piece)
    }

    private mutating func endGuestRead(_ piece: PieceIndex) {
        let value = pieces.remove(piece)
        let slot = requests[value.request].connection
        if let buffer = value.buffer { giveBack(buffer, of: slot) }
        if let lane = value.lane { giveBack(lane: Int(lane), of: slot) }
        endGuestPiece(value.request, slot)
    }

    // MARK: Writing

    /// Writes a change straight from the guest's memory; it has passed the disk's gates.
    mutating func submitWrite(_ piece: PieceIndex, from lane: Int) {
        let value = pieces[piece]
        guard let vhost = connections[requests[value.request].connection].vhost else {
            preconditionFailure("a lane is a front-end's")
        }
        // Zeros stand where the guest's bytes were.
        if vhosts[vhost].isMemoryGone() {
            return writeCompleted(piece, result: -Errno.badAddress)
        }
        let file = disks[value.homeDisk].file(forWritingAt: value.offset)
        if disks[value.homeDisk].alignment(forWritingAt: value.offset) > 1, !file.isUpstream {
            preparedForDisk += 1
        }
        pieces[piece].keepsWorker = io.prepareWrite(
            file, from: vhosts[vhost].vectors,
            lane: lane, filePosition: value.ioOffset + UInt64(value.progress),
            durable: requests[value.request].valid.flags.contains(.fua),
            tag: Operation.piece(piece).tag)
    }

    /// Writes it into the page cache at once; returns bytes or the negative errno.
    mutating func writeNow(_ piece: PieceIndex, from lane: Int) -> Int {
        let value = pieces[piece]
        guard let vhost = connections[requests[value.request].connection].vhost else {
            preconditionFailure("a lane is a front-end's")
        }
        if vhosts[vhost].isMemoryGone() { return -Int(Errno.badAddress) }
        return io.writeNow(
            disks[value.homeDisk].file, from: vhosts[vhost].vectors, lane: lane,
            filePosition: value.ioOffset)
    }

    /// Bytes of the piece were written.
    mutating func advance(_ piece: PieceIndex, _ lane: Int, by byteCount: Int) {
        guard let vhost = connections[requests[pieces[piece].request].connection].vhost else {
            return
        }
        vhosts[vhost].vectors.advance(lane, by: byteCount)
    }

    mutating func giveBack(lane: Int, of slot: ConnectionIndex) {
        guard let vhost = connections[slot].vhost else { return }
        vhosts[vhost].vectors.giveBack(lane)
    }
}
