import Core
import IORing
import NBDProtocol
import SystemLayer
import Tables

/// Replies leave.
extension RingLoop where IO: ~Copyable {
    // MARK: Memory

    /// Takes pages for a request of the connection, within its share; nil: try again when some are
    /// given back.
    mutating func allocate(pages: Int, for slot: ConnectionIndex, isCharged: Bool = true)
        -> ArenaRun?
    {
        guard
            !isCharged || budget.allows(pages, besides: connections[slot].transmission.bufferPages)
        else { return nil }
        guard let offset = arena.allocate(pages: pages) else {
            starved.append(slot)
            return nil
        }
        connections[slot].transmission.bufferPages += pages
        return ArenaRun(offset: offset, pages: pages)
    }

    mutating func giveBack(_ buffer: ArenaRun, of slot: ConnectionIndex) {
        arena.free(buffer.offset, pages: buffer.pages)
        connections[slot].transmission.bufferPages -= buffer.pages
        wakeStarved()
    }

    /// Frees a reply's memory when its connection no longer counts it.
    mutating func free(_ segment: OutputSegment) {
        arena.free(segment.buffer.offset, pages: segment.buffer.pages)
        if let pages = segment.filePages { io.endPages(pages, unsent: segment.filePageBytes) }
    }

    // MARK: Small replies

    /// Takes room for `bytes` at the end of the replies, or closes the connection (nil) when memory
    /// is out.
    ///
    /// Nothing is sent until `commit` says how much of the room was used.
    mutating func takeRoom(_ slot: ConnectionIndex, bytes: Int) -> Int? {
        if let last = connections[slot].outbox.replies.last, last.isOpen,
            last.end + bytes <= last.buffer.end
        {
            return last.end
        }
        let size =
            bytes <= Limits.smallReplyBytes
            ? Limits.smallReplyBufferBytes : Limits.replyBufferBytes
        let pages = size / BufferArena.pageBytes
        guard let buffer = arena.allocate(pages: pages) else {
            close(slot)
            return nil
        }
        // Small replies are not charged: limits on requests and unsent bytes bound them.
        connections[slot].outbox.replies.append(
            OutputSegment(
                start: buffer, end: buffer, buffer: ArenaRun(offset: buffer, pages: pages),
                isOpen: true))
        return buffer
    }

    mutating func commit(_ slot: ConnectionIndex, bytes: Int) {
        connections[slot].outbox.replies.extendLast(by: bytes)
    }

    /// Sends bytes as they are; for the handshake.
    mutating func send(_ bytes: [UInt8], to slot: ConnectionIndex) {
        var sent = 0
        while sent < bytes.count {
            let count = min(bytes.count - sent, Limits.replyBufferBytes / 4)
            guard let offset = takeRoom(slot, bytes: count) else { return }
            var span = arena.mutableBytes(offset, count: count)
            for index in 0..<count {
                span.storeBytes(of: bytes[sent + index], toByteOffset: index, as: UInt8.self)
            }
            commit(slot, bytes: count)
            sent += count
        }
    }

    /// Answers success to a request whose reply has no data.
    mutating func replySuccess(_ slot: ConnectionIndex, _ echo: RequestEcho, isRead: Bool = false) {
        let replies = connections[slot].transmission.replies
        guard let offset = takeRoom(slot, bytes: replies.headerBytes) else { return }
        var span = arena.mutableBytes(offset, count: replies.headerBytes)
        commit(slot, bytes: replies.success(echo, isRead: isRead, into: &span, at: 0))
    }

    /// Answers an error; the text reaches clients whose replies are chunks.
    mutating func replyError(
        _ slot: ConnectionIndex, _ echo: RequestEcho, _ error: WireError, _ text: String,
        at place: UInt64? = nil
    ) {
        let replies = connections[slot].transmission.replies
        guard let offset = takeRoom(slot, bytes: ReplyEncoder.errorBytesMax) else { return }
        var span = arena.mutableBytes(offset, count: ReplyEncoder.errorBytesMax)
        let count = replies.error(
            error, echo, text: text, place: place, into: &span, at: 0)
        commit(slot, bytes: count)
    }

    // MARK: Sending

    /// Sends as much as the socket takes; arranges to go on when it takes more.
    mutating func flush(_ slot: ConnectionIndex) {
        guard connections[slot].phase != .closing else { return }
        if connections[slot].isSecured { return flushSealed(slot) }
        while !connections[slot].outbox.replies.isEmpty, !connections[slot].outbox.waitsForWritable
        {
            let sent = sendFront(slot)
            guard sent >= 0 else { return notSent(slot, -sent) }
            connections[slot].lastProgress = now
            took(slot, sent)
        }
    }

    /// Sends the first replies: those in memory with one call, or pages of a file.
    private mutating func sendFront(_ slot: ConnectionIndex) -> Int {
        let socket = connections[slot].socket
        let first = connections[slot].outbox.replies[0]
        if first.start == first.end, let pages = first.filePages {
            return io.sendPages(
                pages, to: socket, count: first.filePageBytes,
                more: connections[slot].outbox.replies.count > 1)
        }
        io.beginGather()
        var pagesFollow = false
        let count = min(connections[slot].outbox.replies.count, GatherList.capacity)
        for position in 0..<count where !pagesFollow {
            let segment = connections[slot].outbox.replies[position]
            io.gather(arena, at: segment.start, count: segment.end - segment.start)
            pagesFollow = segment.filePages != nil
        }
        return io.sendGathered(to: socket, more: pagesFollow)
    }

    /// The socket took nothing: waits until it does, or closes.
    mutating func notSent(_ slot: ConnectionIndex, _ errno: Int) {
        guard errno == Int(Errno.again) else { return close(slot) }
        connections[slot].outbox.waitsForWritable = true
        io.prepareEvent(
            .writable(connections[slot].socket), tag: Operation.writable(slot).tag)
    }

    /// Replies of that many bytes are on their way: their memory is given back.
    mutating func took(_ slot: ConnectionIndex, _ bytes: Int) {
        var left = bytes
        while !connections[slot].outbox.replies.isEmpty {
            let size = connections[slot].outbox.replies[0].unsentBytes
            if left < size {
                connections[slot].outbox.replies.advance(left)
                return
            }
            left -= size
            let done = connections[slot].outbox.replies.removeFirst()
            if let pages = done.filePages { io.endPages(pages, unsent: 0) }
            if done.isOpen {
                arena.free(done.buffer.offset, pages: done.buffer.pages)
            } else {
                giveBack(done.buffer, of: slot)
            }
        }
    }
}
