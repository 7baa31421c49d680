import CFrontEnd
import Glibc
package import VhostClient

/// A front-end's connection: messages out, replies in.
package final class MessageSocket {
    package let descriptor: Descriptor

    /// How long a reply may take, in seconds.
    private static let replySeconds = 20

    package init(_ path: String) throws {
        // SAFETY: the string outlives the call.
        descriptor = try Descriptor(unsafe front_end_connect(path), from: "connect to \(path)")
        var limit = timeval(tv_sec: Self.replySeconds, tv_usec: 0)
        // SAFETY: the value is a local variable of that size.
        unsafe setsockopt(
            descriptor.number, SOL_SOCKET, SO_RCVTIMEO, &limit,
            socklen_t(MemoryLayout<timeval>.size))
    }

    /// Sends bytes as they are.
    package func send(_ bytes: [UInt8], _ descriptors: [Int32] = []) throws {
        var done = 0
        while done < bytes.count {
            // Descriptors travel with the first byte.
            let passed = done == 0 ? descriptors : []
            // SAFETY: both arrays outlive the call, which has their counts.
            let sent = unsafe bytes.withUnsafeBytes { room in
                unsafe passed.withUnsafeBufferPointer { numbers in
                    unsafe front_end_send(
                        descriptor.number, room.baseAddress.map { unsafe $0 + done },
                        bytes.count - done, numbers.baseAddress, Int32(numbers.count))
                }
            }
            guard sent > 0 else { throw ClientViolation("sendmsg: errno \(errno)") }
            done += sent
        }
    }

    package func send(_ message: ClientMessage, _ descriptors: [Descriptor] = []) throws {
        try send(message.bytes, descriptors.map(\.number))
    }

    /// Reads exactly that many bytes, and the descriptor that came with them.
    private func receive(_ count: Int) throws -> ([UInt8], Descriptor?) {
        var bytes = [UInt8](repeating: 0, count: count)
        var passed: Descriptor?
        var done = 0
        while done < count {
            var number: Int32 = -1
            // SAFETY: the array outlives the call, which has its count.
            let got = unsafe bytes.withUnsafeMutableBytes { room in
                unsafe front_end_receive(
                    descriptor.number, room.baseAddress.map { unsafe $0 + done }, count - done,
                    &number)
            }
            if number >= 0 { passed = try Descriptor(number, from: "recvmsg") }
            guard got > 0 else {
                throw ClientViolation(
                    got == 0 ? "the back-end has closed the connection" : "recvmsg: errno \(errno)")
            }
            done += got
        }
        return (bytes, passed)
    }

    /// The reply to a request, and its descriptor.
    package func reply(to request: UInt32) throws -> (reply: ClientReply, passed: Descriptor?) {
        let (header, first) = try receive(12)
        let count = Int(number(header, 8, as: UInt32.self))
        guard count <= 4096 else { throw ClientViolation("a reply of \(count) bytes") }
        let (payload, second) = count > 0 ? try receive(count) : ([], nil)
        return (try ClientReply(header + payload, to: request), first ?? second)
    }

    /// Sends a message and takes the reply that it always has.
    package func ask(_ message: ClientMessage) throws -> ClientReply {
        try send(message)
        return try reply(to: message.request).reply
    }

    /// Sends a message and fails unless the back-end says that it was carried out.
    package func command(_ message: ClientMessage, _ descriptors: [Descriptor] = []) throws {
        try send(message.acknowledged, descriptors)
        let result = try reply(to: message.request).reply.word
        guard result == 0 else {
            throw ClientViolation("request \(message.request) is refused with \(result)")
        }
    }

    /// The number of the next answer that is there already; whether the connection is over.
    package func pendingAnswer() -> (word: UInt64?, isOver: Bool) {
        var entry = pollfd(fd: descriptor.number, events: Int16(POLLIN), revents: 0)
        // SAFETY: one entry, which is a local variable.
        guard unsafe poll(&entry, 1, 0) > 0 else { return (nil, false) }
        guard let (header, _) = try? receive(12) else { return (nil, true) }
        let count = Int(number(header, 8, as: UInt32.self))
        guard count <= 4096, let (payload, _) = try? receive(count) else { return (nil, true) }
        return (count == 8 ? number(payload, 0, as: UInt64.self) : nil, false)
    }

    /// Whether the back-end has closed the connection, waiting up to so many milliseconds for it.
    ///
    /// Replies that come meanwhile are dropped.
    package func isClosed(within milliseconds: Int32 = 0) -> Bool {
        var left = milliseconds
        repeat {
            var entry = pollfd(fd: descriptor.number, events: Int16(POLLIN), revents: 0)
            // SAFETY: one entry, which is a local variable.
            guard unsafe poll(&entry, 1, min(left, 50)) > 0 else {
                left -= 50
                continue
            }
            if entry.revents & Int16(POLLERR) != 0 { return true }
            var number: Int32 = -1
            var bytes = [UInt8](repeating: 0, count: 512)
            // SAFETY: the array outlives the call, which has its count.
            let got = unsafe bytes.withUnsafeMutableBytes { room in
                unsafe front_end_receive(descriptor.number, room.baseAddress, room.count, &number)
            }
            if number >= 0 { close(number) }
            if got <= 0 { return true }
        } while left > 0
        return false
    }
}
