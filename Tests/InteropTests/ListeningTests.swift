import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Where and for whom the server listens.
    @Suite struct ListeningTests {
        private struct Access: Equatable {
            let mode: Int
            let group: Int
        }

        private func access(_ path: String) throws -> Access {
            let facts = try FileManager.default.attributesOfItem(atPath: path)
            return Access(
                mode: (facts[.posixPermissions] as? Int) ?? -1,
                group: (facts[.groupOwnerAccountID] as? Int) ?? -1)
        }

        @Test("sockets are the user's own, or what --socket-mode and --socket-group say")
        func permissions() throws {
            let own = try LiveFixture()
            _ = try own.begin()
            let ownGroup = try access(own.server.runDirectory).group
            for path in [own.server.liveSocket, own.server.directory.file("job-job.sock")] {
                #expect(try access(path) == Access(mode: 0o600, group: ownGroup), "\(path)")
            }
            try own.server.stop()

            let shared = try LiveFixture(
                options: ["--socket-mode", "0660", "--socket-group", "nogroup"])
            _ = try shared.begin()
            for path in [shared.server.liveSocket, shared.server.directory.file("job-job.sock")] {
                #expect(try access(path) == Access(mode: 0o660, group: 65534), "\(path)")
            }
            // The group gets to the sockets, but not to the control socket.
            #expect(try access(shared.server.runDirectory) == Access(mode: 0o710, group: 65534))
            #expect(try access(shared.server.controlSocket).mode == 0o600)
            try shared.server.stop()
        }

        @Test("permissions that make no sense are refused before anything starts")
        func refusedPermissions() throws {
            for options in [
                ["--socket-mode", "0888"], ["--socket-mode", "0060"], ["--socket-mode", "4755"],
                ["--socket-group", "no such group"], ["--max-connections-per-job", "101"],
            ] {
                let result = try Command.run(
                    try ServerUnderTest.binary(),
                    ["serve", "--state-dir", "/nonexistent", "--run-dir", "/nonexistent"] + options)
                #expect(result.status == 1, "\(result)")
                #expect(result.stderr.contains(options[1]), "\(result)")
            }
        }

        @Test("live exports are served on IPv4 and IPv6", arguments: ["127.0.0.1", "[::1]"])
        func addressFamilies(host: String) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let address = "\(host):\(Ports.free())"
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--live-tcp", address])
            #expect(try NBDClient("nbd://\(address)/vm1/vda").sizeBytes == 1 << 20)
            try server.stop()
        }

        @Test("an export takes the socket that its service manager passes")
        func activatedExport() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            let content = try Images.mixed(path, bytes: 1 << 20, seed: 4)
            let script = """
                h.connect_systemd_socket_activation(["\(try ServerUnderTest.binary())", "export", \
                "\(path)"])
                import hashlib
                print(hashlib.sha256(h.pread(h.get_size(), 0)).hexdigest())
                h.shutdown()
                """
            let found = try Command.run("/usr/bin/python3", ["-m", "nbd", "-c", script]).output()
            let expected = try Command.run("sha256sum", [path]).output().prefix(64)
            #expect(found.trimmingCharacters(in: .whitespacesAndNewlines) == expected)
            #expect(content.count == 1 << 20)
        }

        /// Starts a server as a service manager does, with listening sockets from descriptor 3 on.
        private func activate(_ sockets: [String], names: String, _ arguments: [String]) throws
            -> Command
        {
            let script = """
                import os, socket, sys
                kept = []
                for index, address in enumerate(\(sockets)):
                    if address.startswith("/"):
                        s = socket.socket(socket.AF_UNIX); s.bind(address)
                    else:
                        s = socket.socket(); s.bind(("0.0.0.0", int(address)))
                    s.listen()
                    kept.append(os.dup(s.fileno()) if s.fileno() < 10 else s.fileno())
                    os.dup2(s.fileno(), 20 + index)
                for index in range(len(kept)):
                    os.dup2(20 + index, 3 + index, inheritable=True)
                os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)),
                                  LISTEN_FDNAMES="\(names)")
                os.execv(sys.argv[1], sys.argv[1:])
                """
            return try Command(
                "/usr/bin/python3", ["-c", script, try ServerUnderTest.binary()] + arguments)
        }

        @Test("a server serves live exports on sockets that are passed to it, by its own rules")
        func activatedServer() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let serve = [
                "serve", "--state-dir", directory.file("state"), "--run-dir",
                directory.file("run"), "--disk", "vda=\(path)",
            ]
            let socket = directory.file("passed.sock")
            let server = try activate([socket], names: "live", serve)
            try server.wait(for: "ready line") { $0.stderr.contains("nbdpull: ready") }
            for socket in [socket, directory.file("run/live.sock")] {
                let uri = "nbd+unix:///default/vda?socket=\(socket)"
                #expect(try NBDClient(uri).sizeBytes == 1 << 20)
            }
            server.terminate()
            #expect(try server.result().succeeded)
            // The file is the service manager's.
            #expect(Files.exists(socket))

            let control = try activate([directory.file("c.sock")], names: "control", serve)
                .result()
            #expect(control.status == 1 && control.stderr.contains("'control'"), "\(control)")
            let port = "\(Ports.free())"
            let plain = try activate([port], names: "live", serve).result()
            #expect(plain.status == 1 && plain.stderr.contains("--allow-plaintext"), "\(plain)")
        }
    }
}
