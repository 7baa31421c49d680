import Foundation
import Glibc
import ServerInterface
import Synchronization
import SystemLayer
import UnitSupport

@testable import Upstream

/// An NBD server that has one writable export and takes requests when it is let.
final class StandInServer {
    private final class Connections: Sendable {
        let count = Atomic<Int>(0)
    }

    let address: UpstreamAddress
    private let directory: TemporaryDirectory
    private let gate = DispatchSemaphore(value: 0)
    private let taken = Connections()
    private let listener: Int32

    init() throws {
        directory = try TemporaryDirectory()
        let path = directory.path("s")
        address = try UpstreamAddress(place: .unix(path: path), name: "")
        listener = Self.listen(path)
        // It ends with the listener.
        _ = DetachedThread.run(name: "stand-in") { [listener, gate, taken] in
            while true {
                let connection = Glibc.accept(listener, nil, nil)
                guard connection >= 0 else { return }
                taken.count.add(1, ordering: .relaxed)
                Peer(connection).serve(gate)
                close(connection)
            }
        }
    }

    deinit {
        gate.signal()
        SocketCalls.shutdown(listener)
        close(listener)
    }

    /// Connections that have come.
    var connections: Int { taken.count.load(ordering: .relaxed) }

    /// From now on it reads what was sent and answers.
    func goOn() { gate.signal() }

    static func listen(_ path: String) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY (all of this file): addresses and buffers are live for the calls.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) {
            unsafe $0.copyBytes(from: path.utf8)
        }
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        _ = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        _ = Glibc.listen(descriptor, 8)
        return descriptor
    }
}

/// The server's end of a connection.
private struct Peer {
    let socket: Int32
    static let sizeBytes: UInt64 = 64 << 20

    init(_ socket: Int32) { self.socket = socket }

    func serve(_ gate: DispatchSemaphore) {
        guard negotiate() else { return }
        gate.wait()
        while let request = read(28) {
            let kind = request[7]
            let length = Self.number(request[24..<28])
            if kind == 1, read(Int(length)) == nil { return }
            if kind == 2 { return }
            var reply: [UInt8] = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] + request[8..<16]
            if kind == 0 { reply += [UInt8](repeating: 0, count: Int(length)) }
            write(reply)
        }
    }

    /// Every option is refused but the last one.
    private func negotiate() -> Bool {
        write(Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
        guard read(4) != nil else { return false }
        while let option = read(16) {
            guard read(Int(Self.number(option[12..<16]))) != nil else { return false }
            if option[11] == 7 {
                // Flags, and flushes.
                reply(to: option, 3, [0, 0] + Self.bytes(Self.sizeBytes, 8) + [0, 5])
                reply(to: option, 1, [])
                return true
            }
            reply(to: option, 0x8000_0001, [])
        }
        return false
    }

    private func reply(to option: [UInt8], _ kind: UInt64, _ payload: [UInt8]) {
        write(
            Self.bytes(0x3_e889_0455_65a9, 8) + option[8..<12] + Self.bytes(kind, 4)
                + Self.bytes(UInt64(payload.count), 4) + payload)
    }

    private static func bytes(_ number: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).reversed().map { UInt8(truncatingIfNeeded: number >> UInt64(8 * $0)) }
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        bytes.reduce(0) { $0 << 8 | UInt64($1) }
    }

    private func read(_ count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        var got = 0
        while got < count {
            let more = unsafe bytes.withUnsafeMutableBytes { room in
                unsafe Glibc.read(socket, room.baseAddress.map { unsafe $0 + got }, count - got)
            }
            guard more > 0 else { return nil }
            got += more
        }
        return bytes
    }

    private func write(_ bytes: [UInt8]) {
        _ = unsafe bytes.withUnsafeBytes {
            // A client may be gone, which is no reason to end the tests.
            unsafe Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
    }
}
