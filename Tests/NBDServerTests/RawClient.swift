import Foundation
import Glibc
import Testing

/// A connection to a unix socket that says just enough to choose an export.
final class RawClient {
    private let descriptor: Int32

    init(_ path: String, export: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { room in
            unsafe room.copyBytes(from: path.utf8)
        }
        let connected = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(connected == 0)
        // Client flags, then NBD_OPT_EXPORT_NAME.
        var bytes: [UInt8] = [0, 0, 0, 3]
        bytes += Array("IHAVEOPT".utf8) + [0, 0, 0, 1]
        bytes += [0, 0, 0, UInt8(export.utf8.count)] + Array(export.utf8)
        let sent = unsafe bytes.withUnsafeBytes {
            unsafe write(descriptor, $0.baseAddress, $0.count)
        }
        try #require(sent == bytes.count)
    }

    func close() { _ = Glibc.close(descriptor) }
}
