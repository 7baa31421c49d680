import Core
import IORing
import NBDProtocol
import PointInTime
import ScratchFiles
import Synchronization
import SystemLayer
import Tables

/// Reads: of a live disk, and of a backup export by "read, then check".
extension RingLoop where IO: ~Copyable {
    // MARK: Small reads that the page cache can answer

    /// Answers a small read at once if everything it needs is in memory; false: take the long way.
    mutating func readInline(_ slot: ConnectionIndex, _ request: ValidRequest) -> Bool {
        guard request.length <= UInt64(Limits.inlineReadBytes),
            connections[slot].transmission.path?.alignment == 1
        else { return false }
        let count = Int(request.length)
        let replies = connections[slot].transmission.replies
        let header = replies.dataHeaderBytes
        guard let offset = takeRoom(slot, bytes: header + count) else { return true }
        willRead(slot, request.offset, request.length)
        guard readAtOnce(slot, request.offset, count, into: offset + header) else { return false }
        var span = arena.mutableBytes(offset, count: header)
        _ = replies.data(
            request.echo, place: request.offset, dataBytes: UInt32(count), done: true, into: &span,
            at: 0)
        commit(slot, bytes: header + count)
        noteRead(slot, request.offset, count)
        return true
    }

    /// Reads what is in memory; false when some of it is not, or cannot be handed out.
    private mutating func readAtOnce(
        _ slot: ConnectionIndex, _ offset: UInt64, _ count: Int, into target: Int
    ) -> Bool {
        guard let path = connections[slot].transmission.path else { return false }
        var read = PointInTimeRead(offset..<(offset + UInt64(count)))
        while true {
            let place = target + count - read.left
            let wanted: Int
            let got: Int
            switch read.next(path.ledger) {
            case .source(let count):
                wanted = count
                got = io.readNow(
                    path.source, into: &arena, at: place, count: count,
                    filePosition: read.position, mayWait: path.sourceNeverWaits)
            case .scratch(let position, let count):
                wanted = count
                guard let preserved = path.preserved else { return false }
                got = io.readNow(
                    preserved.scratch, into: &arena, at: place, count: count,
                    filePosition: position, mayWait: preserved.neverWaits)
            case .zeros(let count):
                wanted = count
                got = count
                arena.zero(place, count: count)
            case .askScratch:
                askScratch(slot)
                read.asked()
                continue
            case .done: return true
            case .closed, .released: return false
            }
            guard got == wanted else { return false }
            read.got(got, path.ledger)
        }
    }

    /// After a read of scratch, before anything of it is handed out: breaks the job when something
    /// that was written there has been lost.
    ///
    /// A page whose write-back failed leaves the cache like any other, and what the device has in
    /// its place reads without an error. The ledger is closed when this returns, and the reader
    /// looks at that.
    mutating func askScratch(_ slot: ConnectionIndex) {
        guard let witness = connections[slot].transmission.path?.preserved?.witness,
            let errno = io.writeError(witness),
            case .backup(let export) = connections[slot].transmission.target
        else { return }
        shared.breakNow(export, .scratchLost(errno: errno))
    }

    /// Bytes of a backup export are about to be read.
    private mutating func willRead(_ slot: ConnectionIndex, _ offset: UInt64, _ count: UInt64) {
        guard let path = connections[slot].transmission.path, path.dropsBehind,
            let windows = connections[slot].transmission.coldWindows?.enter(offset, count)
        else { return }
        for window in windows {
            guard let bytes = connections[slot].transmission.coldWindows?.unjudged(window) else {
                continue
            }
            let isCold = io.isUncached(path.source, bytes)
            connections[slot].transmission.coldWindows?.judge(window, isCold: isCold, now: now)
        }
    }

    /// Bytes were read and are on their way to the peer.
    mutating func noteRead(_ slot: ConnectionIndex, _ offset: UInt64, _ count: Int) {
        connections[slot].transmission.unreportedBytes += UInt64(count)
        connections[slot].transmission.path?.readCells?.mark(offset, count)
        guard let path = connections[slot].transmission.path, path.dropsBehind,
            let window = connections[slot].transmission.coldWindows?.end(
                offset, UInt64(count), now: now)
        else { return }
        io.prepareAdvice(
            .drop, path.source, filePosition: window.lowerBound,
            count: UInt32(window.upperBound - window.lowerBound), tag: Operation.ignored.tag)
    }

    /// Adds what a connection has read to the job's figure: now and then, not per request.
    mutating func reportBytesRead(_ slot: ConnectionIndex) {
        guard connections[slot].transmission.unreportedBytes > 0 else { return }
        if case .backup(let export) = connections[slot].transmission.target {
            export.bytesRead.add(connections[slot].transmission.unreportedBytes, ordering: .relaxed)
        }
        connections[slot].transmission.unreportedBytes = 0
    }

    // MARK: Cutting a read into pieces

    mutating func issueRead(_ slot: ConnectionIndex, _ request: RequestIndex) -> IssueResult {
        let valid = requests[request].valid
        // A simple reply and a DF reply must be one run of bytes; if too long for one buffer they
        // go out piece by piece alone.
        let mustBeWhole =
            connections[slot].transmission.replies.mode == .simple || valid.flags.contains(.df)
        let fits = valid.length <= UInt64(Limits.contiguousReadBytes)
        let pieceMax =
            mustBeWhole && fits ? UInt64(Limits.contiguousReadBytes) : UInt64(Limits.pieceBytes)
        if mustBeWhole, !fits { requests[request].isExclusive = true }
        let turnEnd = requests[request].issued + Limits.bytesPerTurn
        while requests[request].issued < valid.length {
            if requests[request].isExclusive,
                connections[slot].transmission.requestCount > 1
                    || requests[request].piecesInFlight > 0
            {
                return .blocked
            }
            if requests[request].issued >= turnEnd { return .again }
            let offset = valid.offset + requests[request].issued
            let count = min(pieceMax, valid.length - requests[request].issued)
            willRead(slot, offset, count)
            if !sendByReference(slot, request, offset, count) {
                guard let piece = makePiece(slot, request, .read, offset, count) else {
                    return .blocked
                }
                requests[request].issued += count
                if requests[request].issued == valid.length, !requests[request].isExclusive {
                    connections[slot].transmission.current = nil
                }
                advanceRead(piece)
            }
            // Sent while it is warm in the cache, and its buffer serves the next piece.
            if connections[slot].outbox.replies.unsentBytes >= Limits.pieceBytes { flush(slot) }
            if connections[slot].phase == .closing
                || connections[slot].transmission.current != request
            {
                return .issued
            }
            if connections[slot].outbox.replies.unsentBytes >= Limits.unsentBytesPerConnection {
                return .blocked
            }
        }
        return .blocked
    }

    /// A piece with a buffer wide enough for the source's alignment; nil when the connection's
    /// share is used up.
    mutating func makePiece(
        _ slot: ConnectionIndex, _ request: RequestIndex, _ kind: PieceKind, _ offset: UInt64,
        _ count: UInt64,
        isCharged: Bool = true
    ) -> PieceIndex? {
        let disk = requests[request].disk
        let alignment = UInt64(
            kind == .write
                ? disks[requests[request].homeDisk].alignment(forWritingAt: offset)
                : connections[slot].transmission.path?.alignment ?? 1)
        let start = offset / alignment * alignment
        let end = (offset + count + alignment - 1) / alignment * alignment
        let bytes = Int(end - start)
        let pages = 1 + (bytes + BufferArena.pageBytes - 1) / BufferArena.pageBytes
        // What is not charged was admitted before and has its place.
        let own = connections[slot].transmission.requestCount
        if isCharged, !operationShares.allowData(pieces.count, own: own) {
            starved.append(slot)
            return nil
        }
        guard let buffer = allocate(pages: pages, for: slot, isCharged: isCharged) else {
            return nil
        }
        var piece = Piece(request: request, disk: disk, kind: kind, offset: offset, count: count)
        piece.ioOffset = start
        piece.ioCount = bytes
        piece.buffer = buffer
        piece.data = buffer.offset + BufferArena.pageBytes
        requests[request].piecesInFlight += 1
        return pieces.insert(piece)
    }

    // MARK: Carrying a piece out

    /// Goes on with a read as far as memory allows, then leaves it to the kernel.
    private mutating func advanceRead(_ piece: PieceIndex) {
        let request = pieces[piece].request
        let slot = requests[request].connection
        guard let path = connections[slot].transmission.path else {
            preconditionFailure("a read without an export")
        }
        while true {
            let target = pieces[piece].readTarget
            switch pieces[piece].read.next(path.ledger) {
            case .source(let count):
                if !readSource(piece, path, count, target) { return }
            case .scratch(let position, let count):
                if !readScratch(piece, path, position, count, target) { return }
            case .zeros(let count):
                arena.zero(target, count: count)
                pieces[piece].read.got(count, path.ledger)
            case .askScratch:
                askScratch(slot)
                pieces[piece].read.asked()
            case .done: return endRead(piece)
            case .closed:
                fail(request, .ioError, closedText(slot), at: pieces[piece].offset)
                return endRead(piece)
            case .released:
                fail(
                    request, .ioError, "a client of the job has released this range",
                    at: pieces[piece].read.position)
                return endRead(piece)
            }
        }
    }

    private mutating func readScratch(
        _ piece: PieceIndex, _ path: ReadPath, _ position: UInt64, _ count: Int, _ target: Int
    ) -> Bool {
        guard let preserved = path.preserved else {
            preconditionFailure("only a ledger sends a read to scratch")
        }
        let got = io.readNow(
            preserved.scratch, into: &arena, at: target, count: count,
            filePosition: position, mayWait: preserved.neverWaits)
        if got > 0 {
            pieces[piece].read.got(got, path.ledger)
            return true
        }
        pieces[piece].handedOverAt = now
        io.prepareRead(
            preserved.scratch, into: arena, at: target, count: count,
            filePosition: position, tag: Operation.piece(piece).tag)
        return false
    }

    private mutating func readSource(
        _ piece: PieceIndex, _ path: ReadPath, _ count: Int, _ target: Int
    ) -> Bool {
        let position = pieces[piece].read.position
        if !path.isDirect {
            let got = io.readNow(
                path.source, into: &arena, at: target, count: count,
                filePosition: position, mayWait: path.sourceNeverWaits)
            if got > 0 {
                pieces[piece].read.got(got, path.ledger)
                return true
            }
        }
        // Widened to the alignment; what is read too much lies inside the piece's own buffer.
        let alignment = UInt64(path.alignment)
        let start = position / alignment * alignment
        let end = position + UInt64(count)
        let wideEnd = (end + alignment - 1) / alignment * alignment
        pieces[piece].handedOverAt = now
        io.prepareRead(
            path.source, into: arena,
            at: pieces[piece].data + Int(start - pieces[piece].ioOffset),
            count: Int(wideEnd - start), filePosition: start,
            tag: Operation.piece(piece).tag)
        return false
    }

    mutating func readCompleted(_ piece: PieceIndex, result: Int32) {
        let request = pieces[piece].request
        let slot = requests[request].connection
        guard let path = connections[slot].transmission.path else {
            preconditionFailure("a read without an export")
        }
        let isOfScratch = pieces[piece].read.isOfScratch
        let position = pieces[piece].read.position
        if result <= 0 {
            if result == -Errno.interrupted || result == -Errno.again {
                return advanceRead(piece)
            }
            let errno = result == 0 ? Errno.io : -result
            // A slot whose cluster was released meanwhile may hold another one's content.
            if errno == Errno.badMessage, pieces[piece].read.isOvertaken(path.ledger) {
                return advanceRead(piece)
            }
            if isOfScratch { scratchReadFailed(slot, errno) }
            fail(request, .ioError, "the data could not be read", at: position)
            return endRead(piece)
        }
        let got =
            isOfScratch
            ? Int(result)
            : Self.wantedBytes(result, at: position, left: pieces[piece].read.left, path)
        guard got > 0 else {
            fail(request, .ioError, "the source ended before the disk", at: position)
            return endRead(piece)
        }
        pieces[piece].read.got(got, path.ledger)
        advanceRead(piece)
    }

    /// How many of the bytes that a widened read of the source has brought are wanted, from
    /// `position` on.
    ///
    /// Bytes in front of the wanted ones were read for alignment only; so may be some behind. A
    /// short read goes on at a block, so that no block that was checked is read again; at the
    /// source's end there is none, as a file may end within a block.
    private static func wantedBytes(
        _ result: Int32, at position: UInt64, left: Int, _ path: ReadPath
    ) -> Int {
        let lead = Int(position % UInt64(path.alignment))
        let isAtEnd = position - UInt64(lead) + UInt64(result) >= path.sizeBytes
        let blocks = isAtEnd ? Int(result) : Int(result) / path.alignment * path.alignment
        return min(blocks - lead, left)
    }

    private mutating func closedText(_ slot: ConnectionIndex) -> String {
        guard case .backup(let export) = connections[slot].transmission.target else {
            return "closed"
        }
        return "the backup job is broken: \(export.brokenReason?.text ?? "the job has ended")"
    }

    private mutating func scratchReadFailed(_ slot: ConnectionIndex, _ errno: Int32) {
        // Scratch of a job that is over is let go of while it is read.
        guard case .backup(let export) = connections[slot].transmission.target,
            !export.ledger.view.isClosed
        else { return }
        shared.breakNow(export, .scratchRead(errno: errno))
    }

    // MARK: Replying

    /// The piece is read or has failed: its part of the reply goes out, and with the last one the
    /// request ends.
    private mutating func endRead(_ piece: PieceIndex) {
        let value = pieces.remove(piece)
        let request = value.request
        let slot = requests[request].connection
        requests[request].piecesInFlight -= 1
        let isLast =
            requests[request].piecesInFlight == 0
            && requests[request].issued == requests[request].valid.length
        let failed = requests[request].failure != nil
        if connections[slot].phase == .closing || failed {
            if let buffer = value.buffer { giveBack(buffer, of: slot) }
        } else {
            emit(value, slot, isLast: isLast)
            noteRead(slot, value.offset, Int(value.count))
        }
        if failed, requests[request].isExclusive { return failExclusive(slot, request) }
        if isLast { endReadRequest(slot, request) } else { markReady(slot) }
    }

    private mutating func emit(_ piece: Piece, _ slot: ConnectionIndex, isLast: Bool) {
        let dataStart = piece.guestData
        let header =
            needsDataHeader(piece.request)
            ? connections[slot].transmission.replies.dataHeaderBytes : 0
        _ = writeDataHeader(
            piece.request, offset: piece.offset, count: piece.count, isLast: isLast,
            at: dataStart - header)
        connections[slot].outbox.replies.append(
            OutputSegment(
                start: dataStart - header, end: dataStart + Int(piece.count),
                buffer: piece.ownBuffer, isOpen: false))
    }

    mutating func endReadRequest(_ slot: ConnectionIndex, _ request: RequestIndex) {
        if connections[slot].transmission.current == request {
            connections[slot].transmission.current = nil
        }
        if connections[slot].phase != .closing, let failure = requests[request].failure {
            replyError(
                slot, requests[request].valid.echo, failure.error, failure.text,
                at: failure.offset)
        }
        discard(request)
    }

    /// A reply that may not be cut has begun and cannot be finished: its length is announced, so
    /// nothing is left but to hang up.
    private mutating func failExclusive(_ slot: ConnectionIndex, _ request: RequestIndex) {
        if requests[request].headerSent {
            close(slot)
            if requests.contains(request) { discard(request) }
            return
        }
        requests[request].issued = requests[request].valid.length
        endReadRequest(slot, request)
    }
}
