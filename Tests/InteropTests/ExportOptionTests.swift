import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// What `export` says and shows, and whom it outlives.
    @Suite struct ExportOptionTests {
        @Test("a description is shown to clients that ask, and one that is too long is refused")
        func description() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            try Images.sparse(path, bytes: 1 << 20)
            let export = try ExportUnderTest(path, options: ["--description", "Büro, vda"])
            for arguments in [[export.uri], ["--list", export.uri]] {
                let info = try Command.run("nbdinfo", arguments).output()
                #expect(info.contains("description: Büro, vda"), "\(info)")
            }
            try export.stop()
            let long = try Command.run(
                try ServerUnderTest.binary(),
                ["export", "-D", String(repeating: "x", count: 4097), path])
            #expect(long.status == 64 && long.stderr.contains("4097 bytes"), "\(long)")
        }

        @Test("--quiet says nothing but what was asked for")
        func quiet() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            try Images.sparse(path, bytes: 1 << 20)
            let socket = directory.file("export.sock")
            for options in [["--quiet"], ["-q", "--print-uri"]] {
                let export = try Command(
                    try ServerUnderTest.binary(),
                    ["export", "--socket", socket] + options + [path])
                try export.wait(for: "socket") { _ in
                    (try? NBDClient("nbd+unix:///?socket=" + socket)) != nil
                }
                export.terminate()
                let result = try export.result()
                try result.output()
                #expect(result.stderr.isEmpty, "\(result)")
                let uri = options.count > 1 ? "nbd+unix:///?socket=\(socket)\n" : ""
                #expect(result.stdout == uri)
            }
        }

        @Test("clients that leave while pages are sent by reference end no export")
        func brokenPipes() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            let content = try Images.random(path, bytes: 64 << 20, seed: 4)
            let socket = directory.file("export.sock")
            // The signal's disposition must be the usual one, whatever runs the tests.
            let export = try Command(
                "env",
                [
                    "--default-signal=PIPE", try ServerUnderTest.binary(), "export", "--socket",
                    socket, "--read-only", path,
                ])
            try export.wait(for: "ready line") { $0.stderr.contains("ready") }
            try Command.run(
                "/usr/bin/python3", ["-c", Self.leaver, socket], timeout: 120
            ).output()
            #expect(export.isRunning)
            let client = try NBDClient("nbd+unix:///?socket=" + socket)
            #expect(try client.read(1 << 20, 1 << 20) == Array(content[(1 << 20)..<(2 << 20)]))
            export.terminate()
            try export.result().output()
        }

        /// Asks for 40 MiB, takes a part of it and hangs up, again and again.
        private static let leaver = """
            import random, socket, struct, sys
            random.seed(5)
            for _ in range(150):
                s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
                def need(n):
                    while n > 0:
                        got = len(s.recv(min(n, 65536)))
                        assert got, "hung up"
                        n -= got
                need(18); s.sendall(struct.pack(">I", 3))
                s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 0)); need(10)
                for i in range(40):
                    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, i << 20, 1 << 20))
                need(random.randrange(1, 20 << 20))
                s.close()
            """

        @Test("a command whose reader has gone ends without a word")
        func readerGone() throws {
            let server = try ServerUnderTest()
            let script = """
                "$1" list --socket "$2" | true
                echo "${PIPESTATUS[0]}"
                """
            for _ in 0..<5 {
                let result = try Command.run(
                    "bash", ["-c", script, "-", try ServerUnderTest.binary(), server.controlSocket])
                #expect(result.stderr.isEmpty, "\(result)")
                let status = result.stdout.trimmingCharacters(in: .newlines)
                #expect(["0", "1", "141"].contains(status), "\(result)")
            }
            try server.stop()
        }
    }
}
