import Glibc
import NBDServer
import ServerInterface
import Synchronization

/// A whole server in this process: a live disk, a job with a dirty bitmap over it, and a job whose
/// clients let go of clusters.
///
/// Whatever one peer sends, the server hangs up on it in time, and lives on.
package final class FuzzServer: Sendable {
    private let server: NBDServer
    /// Where its files are.
    package let directory: String
    private let sockets: [String]

    /// A peer that has said all it has to say is let go within this time, in milliseconds.
    private static let patience: Int32 = 20_000
    private static let diskBytes = 1 << 20

    private init(server: NBDServer, directory: String, sockets: [String]) {
        self.server = server
        self.directory = directory
        self.sockets = sockets
    }

    /// Starts the server on files of its own.
    package static func start() async throws -> FuzzServer {
        let directory = try makeDirectory()
        let disk = directory + "/disk"
        try makeDisk(disk)
        let server = try NBDServer(
            configuration: ServerConfiguration(rings: 2, maxConnections: 64))
        let id = try await server.attachDisk(
            DiskConfiguration(
                exportName: "vda", path: disk, kind: .file, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap,
                tracking: TrackingConfiguration(
                    directory: directory + "/tracking", granularityBytes: 4096)))
        let live = directory + "/live"
        _ = try await server.listenLive(
            .unix(path: live, mode: 0o600), security: .plaintext)
        try await server.createCheckpoint(CheckpointConfiguration(name: "c1", disks: [id]))
        var sockets = [live]
        for name in ["job", "releasing"] {
            let socket = directory + "/" + name
            _ = try await server.beginJob(job(name, disk: id, directory, socket: socket))
            sockets.append(socket)
        }
        return FuzzServer(server: server, directory: directory, sockets: sockets)
    }

    private static func job(
        _ name: String, disk: DiskID, _ directory: String, socket: String
    ) -> JobConfiguration {
        let scratch = ScratchConfiguration(
            kind: .file, path: "\(directory)/scratch-\(name)", reuseExternal: false)
        return JobConfiguration(
            id: name,
            disks: [
                JobDiskConfiguration(
                    disk: disk, target: "vda", exportName: "vda", scratch: scratch,
                    incremental: IncrementalConfiguration(checkpoint: "c1", bitmap: "b"))
            ], endpoint: .unix(path: socket, mode: 0o600), clientRelease: name == "releasing")
    }

    /// Stops the server; whoever started it removes `directory`.
    package func stop() async { await server.shutdown() }

    /// Connects, sends the bytes, hangs up, and waits until the server has hung up as well.
    ///
    /// The first byte chooses the socket; the rest is the client's stream.
    package func feed(_ bytes: [UInt8]) {
        guard let choice = bytes.first else { return }
        let peer = Self.connect(sockets[Int(choice) % sockets.count])
        defer { close(peer) }
        var rest = bytes.dropFirst()
        var room = [UInt8](repeating: 0, count: 64 << 10)
        var hasSpoken = false
        while true {
            if rest.isEmpty, !hasSpoken {
                _ = shutdown(peer, Int32(SHUT_WR))
                hasSpoken = true
            }
            let events = rest.isEmpty ? POLLIN : POLLIN | POLLOUT
            var state = pollfd(fd: peer, events: Int16(events), revents: 0)
            // SAFETY: one pollfd is passed as one.
            let count = unsafe poll(&state, 1, Self.patience)
            // The fuzzer's own alarm interrupts.
            if count < 0, errno == EINTR { continue }
            precondition(count > 0, "the server does not hang up")
            if Int32(state.revents) & POLLOUT != 0, !rest.isEmpty {
                let sent = Array(rest)
                // SAFETY: the array lives through the call, which reads no more than its count.
                let taken = unsafe send(peer, sent, sent.count, Int32(MSG_NOSIGNAL))
                if taken <= 0 { return }
                rest = rest.dropFirst(taken)
            }
            if Int32(state.revents) & ~POLLOUT != 0 {
                // SAFETY: the buffer is as long as the call is told.
                if unsafe recv(peer, &room, room.count, 0) <= 0 { return }
            }
        }
    }

    private static func connect(_ path: String) -> Int32 {
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        let number = socket(AF_UNIX, type, 0)
        precondition(number >= 0, "no socket: errno \(errno)")
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // SAFETY: the path is shorter than the field, whose remaining bytes are zero.
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { field in
            for (index, byte) in path.utf8.enumerated() { unsafe field[index] = byte }
        }
        // SAFETY: a sockaddr_un is passed with its size.
        let result = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe Glibc.connect(number, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        precondition(result == 0, "the server does not listen: errno \(errno)")
        _ = fcntl(number, F_SETFL, O_NONBLOCK)
        return number
    }

    private static func makeDirectory() throws -> String {
        // In memory where there is such a place: a fuzzer runs this thousands of times a second.
        // SAFETY: the text is copied before any other call.
        let given = unsafe getenv("NBDPULL_FUZZ_DIRECTORY").map { unsafe String(cString: $0) }
        let hasMemory = unsafe access("/dev/shm", W_OK) == 0
        let base = given ?? (hasMemory ? "/dev/shm" : "/tmp")
        let path = "\(base)/nbdpull-fuzz-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        // SAFETY: the path is passed for the time of the call.
        guard unsafe mkdir(path, 0o700) == 0 else { throw FuzzFailure(what: path) }
        return path
    }

    /// Half data, half hole.
    private static func makeDisk(_ path: String) throws {
        let number = unsafe open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard number >= 0 else { throw FuzzFailure(what: path) }
        defer { close(number) }
        let bytes = (0..<(diskBytes / 2)).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        // SAFETY: the array lives through the call, which reads no more than its count.
        guard ftruncate(number, diskBytes) == 0,
            unsafe write(number, bytes, bytes.count) == bytes.count
        else { throw FuzzFailure(what: path) }
    }
}

/// Something that the entries need cannot be made.
struct FuzzFailure: Error {
    let what: String
}
