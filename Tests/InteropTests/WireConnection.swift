import Glibc
import TestSupport
import WireClient

/// A connection to a unix socket that speaks by the tests' own client.
///
/// Blocking, with a limit on every wait.
@safe final class WireConnection {
    private static let waitSeconds = 30

    private let descriptor: Int32
    private(set) var transmission: WireTransmission
    var agreement: WireAgreement { transmission.agreement }
    var mode: WireMode { agreement.mode }

    /// Connects and negotiates an export.
    init(
        socket path: String, export: String, mode: WireMode = .extended, contexts: [String] = []
    ) throws {
        let descriptor = try Self.connect(path)
        self.descriptor = descriptor
        var handshake = WireHandshake(export: export, mode: mode, contexts: contexts)
        do {
            while true {
                guard let bytes = try Self.receive(descriptor) else {
                    throw TestFailure("the server hung up during the handshake")
                }
                let step = try handshake.receive(bytes)
                try Self.send(step.send, to: descriptor)
                if let agreement = step.agreement {
                    transmission = WireTransmission(agreement, received: handshake.rest)
                    return
                }
            }
        } catch {
            _ = Glibc.close(descriptor)
            throw error
        }
    }

    deinit { _ = close(descriptor) }

    private static func connect(_ path: String) throws -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { throw TestFailure("no socket: errno \(errno)") }
        var wait = timeval(tv_sec: waitSeconds, tv_usec: 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY: both structures live through the calls, and the path is cut to the field's size.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { field in
            for (index, byte) in path.utf8.prefix(field.count - 1).enumerated() {
                unsafe field[index] = byte
            }
        }
        let status = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard
            unsafe setsockopt(
                descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, socklen_t(MemoryLayout<timeval>.size))
                == 0, status == 0
        else {
            _ = close(descriptor)
            throw TestFailure("cannot connect to \(path): errno \(errno)")
        }
        return descriptor
    }

    private static func send(_ bytes: [UInt8], to descriptor: Int32) throws {
        var sent = 0
        while sent < bytes.count {
            // SAFETY: the pointer covers what is left of the array for the call.
            let count = unsafe bytes[sent...].withUnsafeBytes {
                unsafe Glibc.send(
                    descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw TestFailure("cannot send: errno \(errno)") }
            sent += count
        }
    }

    /// What has come, or nil at the stream's end.
    private static func receive(_ descriptor: Int32) throws -> [UInt8]? {
        var buffer = [UInt8](repeating: 0, count: 1 << 18)
        // SAFETY: the pointer covers the whole array for the call.
        let count = unsafe buffer.withUnsafeMutableBytes {
            unsafe recv(descriptor, $0.baseAddress, $0.count, 0)
        }
        if count < 0, errno == ECONNRESET { return nil }
        guard count >= 0 else { throw TestFailure("nothing came: errno \(errno)") }
        return count == 0 ? nil : Array(buffer.prefix(count))
    }

    /// Sends a request and returns its answer.
    func ask(_ request: WireRequest) throws -> WireReply {
        try Self.send(transmission.send(request), to: descriptor)
        return try answer()
    }

    /// Sends a request and leaves its answer for later.
    func start(_ request: WireRequest) throws {
        try Self.send(transmission.send(request), to: descriptor)
    }

    /// Sends requests at once and returns their answers by cookie.
    func ask(_ requests: [WireRequest]) throws -> [UInt64: WireReply] {
        for request in requests { try Self.send(transmission.send(request), to: descriptor) }
        var replies: [UInt64: WireReply] = [:]
        for _ in requests {
            let reply = try answer()
            replies[reply.cookie] = reply
        }
        return replies
    }

    /// The next answer.
    func answer() throws -> WireReply {
        while true {
            if let reply = try transmission.next() { return reply }
            guard let bytes = try Self.receive(descriptor) else {
                throw TestFailure("the server hung up")
            }
            transmission.receive(bytes)
        }
    }

    /// Sends bytes that are no whole request.
    func send(raw bytes: [UInt8]) throws { try Self.send(bytes, to: descriptor) }

    /// Whether the server closes the connection, whatever it says before.
    func isHungUp() throws -> Bool {
        while let bytes = try Self.receive(descriptor) { transmission.receive(bytes) }
        return true
    }
}

// The usual requests, which succeed or throw.
extension WireConnection {
    private func succeed(_ request: WireRequest) throws -> WireReply {
        let reply = try ask(request)
        guard reply.error == 0 else {
            throw TestFailure("command \(request.command): error \(reply.error), \(reply.text)")
        }
        return reply
    }

    func read(_ offset: UInt64, _ count: Int, flags: UInt16 = 0) throws -> [UInt8] {
        try succeed(
            WireRequest(WireCommand.read, flags: flags, offset: offset, length: UInt64(count))
        ).data
    }

    func write(_ bytes: [UInt8], at offset: UInt64, flags: UInt16 = 0) throws {
        _ = try succeed(.write(bytes, at: offset, flags: flags, mode: mode))
    }

    /// A command that has neither payload nor data.
    func perform(
        _ command: UInt16, _ offset: UInt64 = 0, _ length: UInt64 = 0, flags: UInt16 = 0
    ) throws {
        _ = try succeed(WireRequest(command, flags: flags, offset: offset, length: length))
    }

    /// The extents of a range by context, of those named or of all.
    func status(
        _ offset: UInt64, _ length: UInt64, flags: UInt16 = 0, of names: [String]? = nil
    ) throws -> [String: [WireExtent]] {
        let request =
            try names.map { names in
                WireRequest.status(
                    of: try names.map { try agreement.id($0) }, offset: offset, effect: length,
                    flags: flags)
            }
            ?? WireRequest(WireCommand.blockStatus, flags: flags, offset: offset, length: length)
        let extents = try succeed(request).extents
        return Dictionary(
            uniqueKeysWithValues: agreement.contexts.compactMap { context in
                extents[context.id].map { (context.name, $0) }
            })
    }

    /// The extents of the whole export in one context.
    func map(_ name: String) throws -> [WireExtent] {
        var extents: [WireExtent] = []
        var position: UInt64 = 0
        while position < agreement.sizeBytes {
            for extent in try status(position, agreement.sizeBytes - position, of: [name])[name]
                ?? []
            {
                if let last = extents.last, last.flags == extent.flags {
                    extents[extents.count - 1] = WireExtent(
                        last.length + extent.length, last.flags)
                } else {
                    extents.append(extent)
                }
                position += extent.length
            }
        }
        return extents
    }
}
