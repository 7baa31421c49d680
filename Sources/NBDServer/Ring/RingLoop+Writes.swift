import Core
import Disk
import IORing
import NBDProtocol
import PointInTime
import ServerInterface
import SystemLayer
import Tables
import TrackingFiles

/// Guest writes on a disk's home ring: received, kept waiting while old data is copied, then
/// submitted.
extension RingLoop where IO: ~Copyable {
    // MARK: Cutting a write into pieces

    mutating func issueWrite(_ slot: ConnectionIndex, _ request: RequestIndex) -> IssueResult {
        if case .payload = connections[slot].inbox.receiving { return .blocked }
        let valid = requests[request].valid
        while requests[request].issued < valid.length {
            let offset = valid.offset + requests[request].issued
            // Pieces end at multiples of their size, so that each covers whole clusters where it
            // can.
            let boundary =
                (offset / UInt64(Limits.pieceBytes) + 1) * UInt64(Limits.pieceBytes)
            let end = disks[requests[request].homeDisk].writeEnd(
                from: offset, to: min(boundary, valid.offset + valid.length))
            let count = end - offset
            guard let piece = makePiece(slot, request, .write, offset, count) else {
                return .blocked
            }
            requests[request].issued += count
            let isWhole = requests[request].issued == valid.length
            if isWhole { connections[slot].transmission.current = nil }
            if !fillFromInput(slot, piece) {
                // The rest goes from the socket straight into the piece's buffer.
                if isWhole { connections[slot].transmission.current = request }
                return .blocked
            }
            startChange(piece)
            // The last piece may be complete already, and the request gone with it.
            if isWhole || connections[slot].phase == .closing { return .issued }
        }
        connections[slot].transmission.current = nil
        return .issued
    }

    /// Moves received payload into the piece; if it is not all there, receives the rest.
    ///
    /// True when complete.
    private mutating func fillFromInput(_ slot: ConnectionIndex, _ piece: PieceIndex) -> Bool {
        let wanted = Int(pieces[piece].count)
        let there = min(connections[slot].inbox.count, wanted)
        if there > 0 {
            arena.copy(
                from: connections[slot].inbox.first, to: pieces[piece].guestData, count: there)
            connections[slot].inbox.consume(there)
        }
        if there == wanted { return true }
        if connections[slot].isSecured {
            return fillFromChannel(slot, piece, there: there, wanted: wanted)
        }
        precondition(
            !connections[slot].inbox.isReceiving, "input is not received while requests wait")
        connections[slot].inbox.receiving = .payload(piece)
        io.prepareReceive(
            connections[slot].socket, into: arena,
            at: pieces[piece].guestData + there, count: wanted - there, whole: true,
            tag: Operation.receive(slot).tag)
        pieces[piece].progress = there
        return false
    }

    mutating func payloadReceived(_ slot: ConnectionIndex, _ piece: PieceIndex, result: Int32) {
        if result > 0 { connections[slot].lastProgress = now }
        let request = pieces[piece].request
        let got = pieces[piece].progress + max(0, Int(result))
        let wanted = Int(pieces[piece].count)
        guard connections[slot].phase != .closing, got == wanted else {
            // An interrupted receive goes on; everything else means that the peer is gone.
            if connections[slot].phase != .closing, result > 0 || result == -Errno.interrupted {
                return receiveRest(slot, piece, got)
            }
            connections[slot].inbox.receiving = .ended
            dropPiece(piece)
            close(slot)
            return
        }
        pieces[piece].progress = 0
        if requests[request].issued == requests[request].valid.length {
            connections[slot].transmission.current = nil
        }
        startChange(piece)
    }

    private mutating func receiveRest(_ slot: ConnectionIndex, _ piece: PieceIndex, _ got: Int) {
        pieces[piece].progress = got
        if connections[slot].isSecured { return armSealed(slot, .payload(piece)) }
        connections[slot].inbox.receiving = .payload(piece)
        io.prepareReceive(
            connections[slot].socket, into: arena, at: pieces[piece].guestData + got,
            count: Int(pieces[piece].count) - got, whole: true,
            tag: Operation.receive(slot).tag)
    }

    /// A piece that never started goes away; the connection is closing.
    private mutating func dropPiece(_ piece: PieceIndex) {
        let value = pieces.remove(piece)
        let slot = requests[value.request].connection
        if let buffer = value.buffer { giveBack(buffer, of: slot) }
        requests[value.request].piecesInFlight -= 1
        if requests[value.request].piecesInFlight == 0,
            connections[slot].transmission.current != value.request
        {
            discard(value.request)
        }
    }

    // MARK: Admission

    /// A change of the disk is ready to go: submits it when it has passed the disk's gates.
    mutating func startChange(_ piece: PieceIndex) {
        let disk = pieces[piece].homeDisk
        switch disks[disk].changes.admit(change(piece), now: now) {
        case .go: submitChange(piece)
        case .waits:
            if disks[disk].waitsForCopy(pieces[piece].change(piece, isStep: false).id) {
                pieces[piece].copyWaitSince = now
            }
            perform(disk)
        }
    }

    private mutating func change(_ piece: PieceIndex) -> Change {
        pieces[piece].change(piece, isStep: requests[pieces[piece].request].zeroing != nil)
    }

    /// The change has passed all gates: its blocks are marked, and it goes to the source.
    mutating func submitChange(_ piece: PieceIndex) {
        if pieces[piece].copyWaitSince > 0 { noteCopyWait(piece) }
        switch pieces[piece].kind {
        case .write:
            record(pieces[piece].homeDisk, pieces[piece].offset..<pieces[piece].end)
            startWrite(piece)
        case .zero, .discard:
            if !pieces[piece].changesNothing { recordAllocation(piece) }
            submitAllocation(piece)
        case .read, .sync, .prefetch, .status, .guestRead:
            preconditionFailure("only changes are submitted here")
        }
    }

    // MARK: Writing

    private mutating func startWrite(_ piece: PieceIndex) {
        if !pieces[piece].isWidened { return submitWrite(piece) }
        // Read-modify-write: the bytes around the guest's in the first and the last block are kept.
        readEdge(piece, .head)
    }

    private mutating func readEdge(_ piece: PieceIndex, _ edge: PieceEdge) {
        let disk = pieces[piece].homeDisk
        let alignment = disks[disk].alignment
        let value = pieces[piece]
        let block =
            edge == .head
            ? value.ioOffset : value.ioOffset + UInt64(value.ioCount - alignment)
        pieces[piece].edge = edge
        pieces[piece].handedOverAt = now
        // The page in front of the data, which only replies to reads use.
        io.prepareRead(
            disks[disk].file, into: arena, at: value.margin, count: alignment,
            filePosition: block, tag: Operation.piece(piece).tag)
    }

    private mutating func edgeRead(_ piece: PieceIndex, _ edge: PieceEdge, result: Int32) {
        let disk = pieces[piece].homeDisk
        let alignment = disks[disk].alignment
        if result == -Errno.interrupted || result == -Errno.again {
            return readEdge(piece, edge)
        }
        guard Int(result) == alignment else {
            return endChange(piece, errno: result < 0 ? -result : Errno.io)
        }
        let value = pieces[piece]
        let lead = Int(value.offset - value.ioOffset)
        if edge == .head {
            arena.copy(from: value.margin, to: value.data, count: lead)
            let tail = value.ioCount - lead - Int(value.count)
            if tail > 0 { return readEdge(piece, .tail) }
        } else {
            let tail = value.ioCount - lead - Int(value.count)
            arena.copy(
                from: value.margin + alignment - tail, to: value.data + value.ioCount - tail,
                count: tail)
        }
        pieces[piece].edge = nil
        submitWrite(piece)
    }

    private mutating func submitWrite(_ piece: PieceIndex) {
        let value = pieces[piece]
        if mayWriteInline(value), writeInline(piece) { return }
        pieces[piece].handedOverAt = now
        if let lane = value.lane { return submitWrite(piece, from: Int(lane)) }
        pieces[piece].keepsWorker = io.prepareWrite(
            disks[value.homeDisk].file(forWritingAt: value.offset), from: arena,
            at: value.data + value.progress,
            count: value.ioCount - value.progress,
            filePosition: value.ioOffset + UInt64(value.progress),
            durable: requests[value.request].valid.flags.contains(.fua),
            tag: Operation.piece(piece).tag)
    }

    private mutating func mayWriteInline(_ piece: Piece) -> Bool {
        guard disks[piece.homeDisk].alignment == 1, piece.progress == 0,
            !requests[piece.request].valid.flags.contains(.fua),
            !disks[piece.homeDisk].isStalled, shared.places.areOne
        else { return false }
        let mask = UInt64(BufferArena.pageBytes - 1)
        let isWholePages = (piece.offset | piece.count) & mask == 0
        if isWholePages, piece.ioCount <= FolioSplits.bytesMax { splitFolio(piece) }
        let writes = disks[piece.homeDisk].inlineWrites
        if writes.allows(bytes: piece.ioCount, isWholePages: isWholePages, now: now) { return true }
        // What comes after another in a turn was not alone.
        return !hasWrittenInline
            && writes.allowsAlone(bytes: piece.ioCount, isWholePages: isWholePages, now: now)
            && isAlone(requests[piece.request].connection)
    }

    /// Whether the one piece in flight is all that the ring has to do, as far as this connection
    /// shows.
    private mutating func isAlone(_ slot: ConnectionIndex) -> Bool {
        guard pieces.count == 1 else { return false }
        guard let vhost = connections[slot].vhost else { return connections[slot].inbox.count == 0 }
        return vhosts[vhost].chainsLeft == 0
    }

    /// Has the folio that a small write goes to split, where that promises something.
    private mutating func splitFolio(_ piece: Piece) {
        let disk = piece.homeDisk
        guard splitsInTurn < Limits.splitsPerTurn, !disks[disk].inlineWrites.areSlow(now: now),
            disks[disk].folioSplits?.wantsSplit(at: piece.ioOffset, now: now) ?? false
        else { return }
        splitsInTurn += 1
        let start = io.now()
        let isPossible = io.splitFolio(disks[disk].file, at: piece.ioOffset)
        let end = io.now()
        guard isPossible else { return disks[disk].folioSplits = nil }
        if disks[disk].folioSplits?.split(took: end - start, now: end) ?? false {
            disks[disk].inlineWrites.lookAgain()
        }
    }

    /// False: nothing has happened, and the kernel's workers are to do it.
    private mutating func writeInline(_ piece: PieceIndex) -> Bool {
        let value = pieces[piece]
        hasWrittenInline = true
        let start = io.now()
        let result =
            if let lane = value.lane {
                writeNow(piece, from: Int(lane))
            } else {
                io.writeNow(
                    disks[value.homeDisk].file, from: arena, at: value.data, count: value.ioCount,
                    filePosition: value.ioOffset)
            }
        let end = io.now()
        disks[value.homeDisk].inlineWrites.took(end - start, now: end)
        if value.ioCount <= FolioSplits.bytesMax {
            disks[value.homeDisk].folioSplits?.wrote(
                at: value.ioOffset, took: end - start, now: end)
        }
        if result == -Int(Errno.again) { return false }
        if result > 0 { movedBytes += UInt64(result) }
        writeCompleted(piece, result: Int32(result))
        return true
    }

    mutating func writeCompleted(_ piece: PieceIndex, result: Int32) {
        if let edge = pieces[piece].edge { return edgeRead(piece, edge, result: result) }
        if result == -Errno.interrupted || result == -Errno.again { return submitWrite(piece) }
        if Self.lacksRoom(result), reclaimRoom(piece) { return }
        if result <= 0 { return writeFailed(piece, errno: result == 0 ? Errno.io : -result) }
        pieces[piece].progress += Int(result)
        if pieces[piece].progress < pieces[piece].ioCount {
            if let lane = pieces[piece].lane { advance(piece, Int(lane), by: Int(result)) }
            return submitWrite(piece)
        }
        endChange(piece, errno: isDurable(piece) ? lossErrno(pieces[piece].homeDisk) : nil)
    }

    /// A durable write is a write and a sync: which of them has failed is not said, and what the
    /// sync had to tell is not told again.
    private mutating func writeFailed(_ piece: PieceIndex, errno: Int32) {
        let disk = pieces[piece].homeDisk
        // Memory that has gone is the guest's, not the disk's.
        let mayBeLoss = isDurable(piece) && !Self.lacksRoom(-errno) && errno != Errno.badAddress
        if mayBeLoss { noteFailedSync(disk, SystemFault(call: "write", errno: errno)) }
        endChange(piece, errno: errno)
        if mayBeLoss { noticeLoss(disk) }
    }

    private mutating func isDurable(_ piece: PieceIndex) -> Bool {
        requests[pieces[piece].request].valid.flags.contains(.fua)
    }

    // MARK: Room for the guest

    /// Whether a change has found its file system full.
    static func lacksRoom(_ result: Int32) -> Bool {
        result == -Errno.noSpace || result == -Errno.quota
    }

    /// Has jobs give room back, for which the change waits; false when there is nothing to give
    /// back.
    mutating func reclaimRoom(_ piece: PieceIndex) -> Bool {
        guard let fileSystem = disks[pieces[piece].homeDisk].export.fileSystem else { return false }
        let isFirst = pieces[piece].roomAttempts < 2
        if isFirst { pieces[piece].roomAttempts += 1 }
        return io.start(.reclaim(fileSystem: fileSystem, piece: piece, isFirst: isFirst))
    }

    /// A change that found no room goes to the source once more.
    mutating func resubmit(_ piece: PieceIndex) {
        switch pieces[piece].kind {
        case .write: submitWrite(piece)
        case .zero, .discard: submitAllocation(piece)
        case .read, .sync, .prefetch, .status, .guestRead:
            preconditionFailure("only changes need room")
        }
    }

    /// A change is complete or has failed.
    mutating func endChange(_ piece: PieceIndex, errno: Int32?) {
        let change = change(piece)
        let value = pieces.remove(piece)
        let disk = value.homeDisk
        let request = value.request
        let slot = requests[request].connection
        if let buffer = value.buffer { giveBack(buffer, of: slot) }
        if let lane = value.lane { giveBack(lane: Int(lane), of: slot) }
        if let errno {
            fail(request, Self.wireError(errno), "the disk could not be written", at: value.offset)
        }
        disks[disk].changes.finished(change)
        perform(disk)
        requests[request].piecesInFlight -= 1
        if requests[request].valid.command != .write { return continueZeroing(request) }
        let isLast =
            requests[request].piecesInFlight == 0
            && connections[slot].transmission.current != request
            && requests[request].issued == requests[request].valid.length
        if isLast { finish(request) } else { markReady(slot) }
    }

    // MARK: Flush

    mutating func submitSync(_ request: RequestIndex) {
        let disk = requests[request].homeDisk
        var piece = Piece(request: request, disk: disk, kind: .sync, offset: 0, count: 0)
        piece.handedOverAt = now
        requests[request].piecesInFlight += 1
        prepareSync(pieces.insert(piece))
    }

    private mutating func prepareSync(_ piece: PieceIndex) {
        io.prepareSync(disks[pieces[piece].homeDisk].file, tag: Operation.piece(piece).tag)
    }

    mutating func syncCompleted(_ piece: PieceIndex, result: Int32) {
        if result == -Errno.interrupted, pieces[piece].progress < Limits.interruptionsMax {
            pieces[piece].progress += 1
            return prepareSync(piece)
        }
        let value = pieces.remove(piece)
        let request = value.request
        requests[request].piecesInFlight -= 1
        if let errno = syncFault(value.homeDisk, result: result) {
            fail(request, Self.wireError(errno), "the disk could not be made durable", at: 0)
            noticeLoss(value.homeDisk)
        }
        if requests[request].valid.command == .flush {
            finish(request)
        } else {
            continueZeroing(request)
        }
    }

    /// The errno of a sync that has not made everything durable, or that cannot be believed.
    private mutating func syncFault(_ disk: DiskIndex, result: Int32) -> Int32? {
        if result < 0 { noteFailedSync(disk, SystemFault(call: "fdatasync", errno: -result)) }
        return lossErrno(disk) ?? (result < 0 ? -result : nil)
    }

    /// A guest's sync has failed: behind the page cache none is believed from now on.
    private mutating func noteFailedSync(_ disk: DiskIndex, _ fault: SystemFault) {
        guard !fault.saysNothing else { return }
        disks[disk].export.source.noteFailedSync(fault, isHeard: true)
        if disks[disk].alignment == 1 { believeNoSync(disk, fault.errno) }
    }

    /// The errno of writes of the disk that had succeeded and are lost, as far as is known.
    ///
    /// The kernel tells each descriptor once, and may tell whichever call comes first: a durable
    /// write, a resize, a sync that a signal interrupts, one of the server's own. The source is
    /// told for certain, and a sync that succeeds after a loss means nothing.
    private mutating func lossErrno(_ disk: DiskIndex) -> Int32? {
        if disks[disk].syncErrno == nil, let errno = disks[disk].export.source.unheardLoss {
            believeNoSync(disk, errno)
        }
        return disks[disk].syncErrno
    }

    private mutating func believeNoSync(_ disk: DiskIndex, _ errno: Int32) {
        guard disks[disk].syncErrno == nil else { return }
        disks[disk].syncErrno = errno
        // The request that this fails tells the guest.
        disks[disk].tracking?.doubt.say(isUnheard: false)
        shared.emit(
            .diskProblem(
                disk: disks[disk].export.disk,
                detail: "writes to it may be lost that had succeeded"
                    + " (\(SystemFault.text(for: errno))): every flush of its machine fails from now on."
                    + " Stop the machine, check the storage, then attach the disk again"))
    }
}
