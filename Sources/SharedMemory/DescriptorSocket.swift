import CLinux
import Glibc
import SystemLayer

/// Messages with descriptors on a unix socket, without waiting.
package enum DescriptorSocket {
    /// Descriptors of one message at most.
    package static let descriptorsMax = 8

    /// Receives up to `count` bytes behind those that are in `bytes`, and the descriptors that came with
    /// them behind those in `descriptors`; the caller closes those.
    ///
    /// Returns the bytes, 0 at the end of the stream, or the negative errno (EAGAIN: nothing is there;
    /// EPROTO: too many descriptors, all of which are closed).
    package static func receive(
        _ socket: Int32, _ count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int {
        var room = [UInt8](repeating: 0, count: count)
        var found = [Int32](repeating: -1, count: descriptorsMax)
        while true {
            var number = Int32(descriptorsMax - min(descriptors.count, descriptorsMax))
            // SAFETY: both arrays are passed with their size.
            let result = unsafe nbdpull_receive(socket, &room, count, &found, &number)
            if result < 0 {
                if errno == EINTR { continue }
                return -Int(errno)
            }
            bytes.append(contentsOf: room.prefix(result))
            descriptors.append(contentsOf: found.prefix(Int(number)))
            return result
        }
    }

    /// Sends a message, with a descriptor or without; returns the bytes taken or the negative errno.
    package static func send(_ socket: Int32, _ bytes: [UInt8], descriptor: Int32?) -> Int {
        while true {
            // SAFETY: the array is passed with its size; the kernel takes a reference of its own to the
            // descriptor's file.
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

    /// Closes a descriptor that a peer has sent, whatever it is.
    ///
    /// The last close of a socket may wait for its peer, and that of a file for its file system: only an
    /// event is closed here and now.
    package static func close(_ descriptor: Int32) {
        if isEvent(descriptor) {
            _ = Glibc.close(descriptor)
        } else {
            // Without a thread it stays open, which costs a number and keeps nobody waiting.
            _ = DetachedThread.run(name: "nbdpull-close") { _ = Glibc.close(descriptor) }
        }
    }

    /// Makes calls on the descriptor return instead of wait, as long as nobody who shares it takes that
    /// back.
    package static func makeNonblocking(_ descriptor: Int32) {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
    }
}
