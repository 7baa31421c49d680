import Disk
import Foundation
import IORing
import SystemLayer
import Testing
import UnitSupport

@Suite("Sockets")
struct SocketTests {
    /// Connects with a client of its own.
    private func connect(_ path: String) throws -> Process {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/python3")
        let script = """
            import socket, sys
            s = socket.socket(socket.AF_UNIX)
            s.connect(sys.argv[1])
            sys.stdin.buffer.read(1)
            left = b''
            while True:
                part = s.recv(65536)
                if not part: break
                left += part
            sys.stdout.buffer.write(left)
            """
        process.arguments = ["-c", script, path]
        process.standardInput = Pipe()
        process.standardOutput = Pipe()
        try process.run()
        return process
    }

    private func accept(_ listener: borrowing Listener) throws -> OwnedDescriptor {
        var ring = try Ring(entries: 4, completionEntries: 64)
        while true {
            if let connection = try SocketCalls.accept(listener.raw) { return connection }
            ring.preparePoll(listener.raw, writable: false, tag: 1)
            _ = ring.results(1)
        }
    }

    private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test("permission bits are those asked for", arguments: [UInt32(0o600), 0o660, 0o666])
    func mode(bits: UInt32) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("socket")
        let listener = try Listener.unix(path: path, mode: bits)
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions]
        #expect(mode as? Int == Int(bits))
        let isUnix = listener.isUnix
        #expect(isUnix)
        listener.close()
        #expect(!exists(path))
    }

    @Test("a live server's socket is refused and stays; a dead one's is replaced")
    func stale() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("socket")
        do {
            let first = try Listener.unix(path: path, mode: 0o600)
            #expect(throws: SystemFault(call: "bind", errno: Errno.addressInUse)) {
                try Listener.unix(path: path, mode: 0o600).close()
            }
            #expect(first.raw >= 0)
            // Goes away without removing its file, as a killed server does.
        }
        #expect(exists(path))
        let second = try Listener.unix(path: path, mode: 0o600)
        second.close()
    }

    @Test("a file that is no socket is refused and kept")
    func noSocket() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [1])
        #expect(throws: SystemFault(call: "bind", errno: Errno.exists)) {
            try Listener.unix(path: path, mode: 0o600).close()
        }
        #expect(exists(path))
    }

    @Test("a path too long for a socket is refused")
    func longPath() throws {
        #expect(throws: SystemFault.self) {
            try Listener.unix(path: "/" + String(repeating: "x", count: 107), mode: 0o600).close()
        }
    }

    @Test("TCP port 0 takes a free port and tells which")
    func tcp() throws {
        let listener = try Listener.tcp(host: "127.0.0.1", port: 0)
        let port = listener.port
        #expect(port > 0)
        #expect(throws: SystemFault(call: "bind", errno: Errno.addressInUse)) {
            try Listener.tcp(host: "127.0.0.1", port: port).close()
        }
        #expect(throws: SystemFault.self) {
            try Listener.tcp(host: "no such host", port: 0).close()
        }
        let nobody = try SocketCalls.accept(listener.raw)
        let isNobody = nobody == nil
        #expect(isNobody)
    }

    @Test(
        "a TCP peer is on this machine if it has the address that it connected to",
        arguments: [("127.0.0.1", true), ("127.0.0.2", false)])
    func sameMachine(source: String, isHere: Bool) throws {
        let listener = try Listener.tcp(host: "127.0.0.1", port: 0)
        let client = Process()
        client.executableURL = URL(filePath: "/usr/bin/python3")
        let script = """
            import socket, sys
            s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10, (sys.argv[2], 0))
            s.recv(1)
            """
        client.arguments = ["-c", script, String(listener.port), source]
        try client.run()
        let connection = try accept(listener)
        SocketCalls.tune(connection.raw, isUnix: false)
        #expect(SocketCalls.isOnThisMachine(connection.raw) == isHere)
        // By whichever of its addresses.
        #expect(SocketCalls.isOfThisMachine(connection.raw))
        SocketCalls.shutdown(connection.raw)
        client.waitUntilExit()
        #expect(client.terminationStatus == 0)
    }

    @Test("a gather list stops when the socket is full and goes on where it stopped")
    func partialSends() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("socket")
        let listener = try Listener.unix(path: path, mode: 0o600)
        let client = try connect(path)
        let connection = try accept(listener)
        let total = 8 << 20
        var arena = try BufferArena(capacityBytes: total)
        arena.fill(0, count: total, salt: 1)
        var ring = try Ring(entries: 4, completionEntries: 64)
        var list = GatherList()
        var position = 0
        var fullCount = 0
        while position < total {
            list.removeAll()
            for index in 0..<GatherList.capacity where position + index * 100_003 < total {
                let start = position + index * 100_003
                list.append(arena, at: start, count: min(100_003, total - start))
            }
            let sent = list.send(connection.raw)
            if sent > 0 {
                position += sent
            } else {
                try #require(sent == -Int(Errno.again))
                fullCount += 1
                // The client reads only from now on.
                if fullCount == 1, let input = client.standardInput as? Pipe {
                    try input.fileHandleForWriting.write(contentsOf: Data([1]))
                }
                ring.preparePoll(connection.raw, writable: true, tag: 1)
                _ = ring.results(1)
            }
        }
        SocketCalls.shutdown(connection.raw)
        let output = try #require(client.standardOutput as? Pipe)
        let received = try output.fileHandleForReading.readToEnd() ?? Data()
        client.waitUntilExit()
        let expected = arena.contents(0, count: total)
        #expect(fullCount > 0)
        #expect(received.elementsEqual(expected))
        listener.close()
    }

    @Test("sending to a client that is gone is an errno, not a signal")
    func goneClient() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("socket")
        let listener = try Listener.unix(path: path, mode: 0o600)
        let client = try connect(path)
        let connection = try accept(listener)
        client.killAndWait()
        let arena = try BufferArena(capacityBytes: 4096)
        var list = GatherList()
        list.append(arena, at: 0, count: 100)
        let sent = list.send(connection.raw)
        #expect(sent < 0)
        listener.close()
    }
}
