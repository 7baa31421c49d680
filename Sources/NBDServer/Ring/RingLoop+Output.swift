import IORing
import NBDProtocol
import System
import Tables

/// Replies leave.
extension RingLoop where IO: ~Copyable {
    // MARK: Memory

    /// Takes pages for a request of the connection, within its share; nil: try again when some are
    /// given back.
    mutating func allocate(pages: Int, for slot: ConnectionIndex, isCharged: Bool = true) -> Int? {
        let share = Limits.bufferBytesPerConnection / BufferArena.pageBytes
        guard !isCharged || connections[slot].bufferPages + pages <= share else { return nil }
        guard let offset = arena.allocate(pages: pages) else {
            starved.append(slot)
            return nil
        }
        connections[slot].bufferPages += pages
        return offset
    }

    mutating func release(_ buffer: Int, pages: Int, of slot: ConnectionIndex) {
        arena.free(buffer, pages: pages)
        connections[slot].bufferPages -= pages
        wakeStarved()
    }

    /// Frees a reply's memory when its connection no longer counts it.
    mutating func free(_ segment: OutputSegment) {
        arena.free(segment.buffer, pages: segment.pages)
        if let pages = segment.filePages { io.endPages(pages, unsent: segment.filePageBytes) }
    }

    // MARK: Small replies

    /// Room for `bytes` at the end of the replies; nil when memory is out, which closes the
    /// connection.
    ///
    /// Nothing is sent until `commit` says how much of the room was used.
    mutating func room(_ slot: ConnectionIndex, bytes: Int) -> Int? {
        if let last = connections[slot].output.last, last.isOpen,
            last.end + bytes <= last.buffer + last.pages * BufferArena.pageBytes
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
        connections[slot].output.append(
            OutputSegment(
                start: buffer, end: buffer, buffer: buffer, pages: pages, isOpen: true))
        return buffer
    }

    mutating func commit(_ slot: ConnectionIndex, bytes: Int) {
        connections[slot].output.extendLast(by: bytes)
    }

    /// Sends bytes as they are; for the handshake.
    mutating func send(_ bytes: [UInt8], to slot: ConnectionIndex) {
        var sent = 0
        while sent < bytes.count {
            let count = min(bytes.count - sent, Limits.replyBufferBytes / 4)
            guard let offset = room(slot, bytes: count) else { return }
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
        let replies = connections[slot].replies
        guard let offset = room(slot, bytes: replies.headerBytes) else { return }
        var span = arena.mutableBytes(offset, count: replies.headerBytes)
        commit(slot, bytes: replies.success(echo, isRead: isRead, into: &span, at: 0))
    }

    /// Answers an error; the text reaches clients whose replies are chunks.
    mutating func replyError(
        _ slot: ConnectionIndex, _ echo: RequestEcho, _ error: WireError, _ text: String,
        at place: UInt64? = nil
    ) {
        let replies = connections[slot].replies
        guard let offset = room(slot, bytes: ReplyEncoder.errorBytesMax) else { return }
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
        while !connections[slot].output.isEmpty, !connections[slot].waitsForWritable {
            let sent = sendFront(slot)
            guard sent >= 0 else { return notSent(slot, -sent) }
            connections[slot].lastProgress = now
            took(slot, sent)
        }
    }

    /// Sends the first replies: those in memory with one call, or pages of a file.
    private mutating func sendFront(_ slot: ConnectionIndex) -> Int {
        let socket = connections[slot].socket
        let first = connections[slot].output[0]
        if first.start == first.end, let pages = first.filePages {
            return io.sendPages(
                pages, to: socket, count: first.filePageBytes,
                more: connections[slot].output.count > 1)
        }
        io.beginGather()
        var pagesFollow = false
        let count = min(connections[slot].output.count, GatherList.capacity)
        for position in 0..<count where !pagesFollow {
            let segment = connections[slot].output[position]
            io.gather(arena, at: segment.start, count: segment.end - segment.start)
            pagesFollow = segment.filePages != nil
        }
        return io.sendGathered(to: socket, more: pagesFollow)
    }

    /// The socket took nothing: waits until it does, or closes.
    mutating func notSent(_ slot: ConnectionIndex, _ errno: Int) {
        guard errno == Int(Errno.again) else { return close(slot) }
        connections[slot].waitsForWritable = true
        io.prepareEvent(
            .writable(connections[slot].socket), tag: Operation.writable(slot).tag)
    }

    /// Replies of that many bytes are on their way: their memory is given back.
    mutating func took(_ slot: ConnectionIndex, _ bytes: Int) {
        var left = bytes
        while !connections[slot].output.isEmpty {
            let size = connections[slot].output[0].unsentBytes
            if left < size {
                connections[slot].output.advance(left)
                return
            }
            left -= size
            let done = connections[slot].output.removeFirst()
            if let pages = done.filePages { io.endPages(pages, unsent: 0) }
            if done.isOpen {
                arena.free(done.buffer, pages: done.pages)
            } else {
                release(done.buffer, pages: done.pages, of: slot)
            }
        }
    }
}
