import CLibNBD
import Glibc

/// Names one command in flight on one connection.
package struct NBDTicket: Hashable, Sendable {
    let cookie: Int64
}

/// How a command in flight ended.
package enum NBDOutcome: Sendable {
    /// Success, with the bytes of a read.
    case done([UInt8])
    case failed(NBDFailure)
}

// Many commands in flight from one thread: start them, wait for activity, collect the finished.
extension NBDClient {
    package func startRead(_ offset: Int, _ count: Int) throws(NBDFailure) -> NBDTicket {
        // SAFETY: the buffer stays in `buffers` until the command has ended.
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
        let cookie = unsafe nbd_aio_pread(
            handle, buffer.baseAddress, count, UInt64(offset), nbd_completion_callback(), 0)
        return unsafe try keep(buffer, cookie)
    }

    package func startWrite(_ bytes: [UInt8], at offset: Int, _ flags: NBDFlags = [])
        throws(NBDFailure) -> NBDTicket
    {
        // SAFETY: as in `startRead`; the copy has the array's length.
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: bytes.count, alignment: 16)
        unsafe buffer.copyBytes(from: bytes)
        let cookie = unsafe nbd_aio_pwrite(
            handle, buffer.baseAddress, bytes.count, UInt64(offset), nbd_completion_callback(),
            flags.rawValue)
        return unsafe try keep(buffer, cookie)
    }

    package func startZero(_ offset: Int, _ count: Int, _ flags: NBDFlags = [])
        throws(NBDFailure) -> NBDTicket
    {
        // SAFETY: no buffer, no callback.
        try ticket(
            unsafe nbd_aio_zero(
                handle, UInt64(count), UInt64(offset), nbd_completion_callback(), flags.rawValue))
    }

    package func startTrim(_ offset: Int, _ count: Int, _ flags: NBDFlags = [])
        throws(NBDFailure) -> NBDTicket
    {
        // SAFETY: no buffer, no callback.
        try ticket(
            unsafe nbd_aio_trim(
                handle, UInt64(count), UInt64(offset), nbd_completion_callback(), flags.rawValue))
    }

    package func startFlush() throws(NBDFailure) -> NBDTicket {
        // SAFETY: no buffer, no callback.
        try ticket(unsafe nbd_aio_flush(handle, nbd_completion_callback(), 0))
    }

    /// The outcome of a command that has ended, or nil while it is in flight.
    ///
    /// To be asked for until it is there, and not again.
    package func outcome(of ticket: NBDTicket) -> NBDOutcome? {
        // SAFETY: the handle is open; an ended command no longer uses its buffer.
        let result = unsafe nbd_aio_command_completed(handle, UInt64(ticket.cookie))
        if result == 0 { return nil }
        let failure = result < 0 ? Self.lastFailure() : nil
        let buffer = unsafe buffers.removeValue(forKey: ticket.cookie)
        defer { unsafe buffer?.deallocate() }
        if let failure { return .failed(failure) }
        return .done(unsafe buffer.map { unsafe [UInt8]($0) } ?? [])
    }

    /// What the connection waits for.
    var activity: pollfd {
        // SAFETY: descriptor and direction are read from an open handle.
        let direction = unsafe nbd_aio_get_direction(handle)
        var events: Int16 = 0
        if direction & 1 != 0 { events |= Int16(POLLIN) }
        if direction & 2 != 0 { events |= Int16(POLLOUT) }
        return unsafe pollfd(fd: nbd_aio_get_fd(handle), events: events, revents: 0)
    }

    /// Waits until one of the connections can go on, lets it, and returns.
    package static func waitForActivity(_ clients: [NBDClient], milliseconds: Int32) {
        // SAFETY: the array outlives poll.
        var waiting = clients.map(\.activity)
        guard unsafe poll(&waiting, nfds_t(waiting.count), milliseconds) > 0 else { return }
        for (client, ready) in zip(clients, waiting) {
            // SAFETY: the handle is open. A failure here shows as the commands' outcome.
            let readable = ready.revents & Int16(POLLIN | POLLHUP | POLLERR) != 0
            if readable, unsafe nbd_aio_get_direction(client.handle) & 1 != 0 {
                _ = unsafe nbd_aio_notify_read(client.handle)
            } else if ready.revents & Int16(POLLOUT) != 0,
                unsafe nbd_aio_get_direction(client.handle) & 2 != 0
            {
                _ = unsafe nbd_aio_notify_write(client.handle)
            }
        }
    }

    private func keep(_ buffer: UnsafeMutableRawBufferPointer, _ cookie: Int64)
        throws(NBDFailure) -> NBDTicket
    {
        guard cookie >= 0 else {
            // SAFETY: a refused command never took the buffer.
            unsafe buffer.deallocate()
            throw Self.lastFailure()
        }
        unsafe buffers[cookie] = unsafe buffer
        return NBDTicket(cookie: cookie)
    }

    private func ticket(_ cookie: Int64) throws(NBDFailure) -> NBDTicket {
        guard cookie >= 0 else { throw Self.lastFailure() }
        return NBDTicket(cookie: cookie)
    }
}
