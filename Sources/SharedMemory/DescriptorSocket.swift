import CLinux
import Glibc

/// Messages with descriptors on a unix socket, without waiting.
package enum DescriptorSocket {
    /// Descriptors of one message at most.
    package static let descriptorsMax = 8

    /// Receives up to `count` bytes behind those that are in `bytes`, and the descriptors that came
    /// with them behind those in `descriptors`; the caller closes those, whatever is returned.
    ///
    /// Returns the bytes, 0 at the end of the stream, or the negative errno (EAGAIN: nothing is
    /// there; EPROTO: more than `descriptorsMax` for one message; EMFILE: more than this process
    /// may open).
    package static func receive(
        _ socket: Int32, _ count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int {
        var room = [UInt8](repeating: 0, count: count)
        var found = [Int32](repeating: -1, count: Int(nbdpull_rights_max))
        while true {
            var number: Int32 = 0
            // SAFETY: both arrays are passed with their size.
            let result = unsafe nbdpull_receive(socket, &room, count, &found, &number)
            let code = errno
            descriptors.append(contentsOf: found.prefix(Int(number)))
            if result < 0 {
                if code == EINTR, number == 0 { continue }
                return -Int(code)
            }
            guard descriptors.count <= descriptorsMax else { return -Int(EPROTO) }
            bytes.append(contentsOf: room.prefix(result))
            return result
        }
    }

    /// Sends a message, with a descriptor or without; returns the bytes taken or the negative
    /// errno.
    package static func send(_ socket: Int32, _ bytes: [UInt8], descriptor: Int32?) -> Int {
        while true {
            // SAFETY: the array is passed with its size; the kernel takes a reference of its own to
            // the descriptor's file.
            let result = unsafe nbdpull_send_with(
                socket, bytes, bytes.count, descriptor ?? -1)
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }

    /// Whether a descriptor is an eventfd, which neither waits for others nor runs their code.
    package static func isEvent(_ descriptor: Int32) -> Bool {
        var text = [CChar](repeating: 0, count: 64)
        // SAFETY: the path lives through the call, the room is passed with its size.
        let count = unsafe readlink("/proc/self/fd/\(descriptor)", &text, text.count)
        guard count > 0 else { return false }
        let bytes = text.prefix(count).map { UInt8(bitPattern: $0) }
        return String(decoding: bytes, as: UTF8.self) == "anon_inode:[eventfd]"
    }

    /// Makes reads of the descriptor return instead of wait, as long as nobody who shares it takes
    /// that back; the ring's reads do not wait then either.
    package static func makeNonblocking(_ descriptor: Int32) {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
    }
}
