import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Starting, stopping, locks and sockets.
    @Suite struct LifecycleTests {
        @Test("sockets are for their owner only, and go with the server")
        func socketModes() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            #expect(try Files.mode(server.controlSocket) & 0o777 == 0o600)
            #expect(try Files.mode(server.liveSocket) & 0o777 == 0o600)
            try server.stop()
            #expect(!Files.exists(server.controlSocket))
            #expect(!Files.exists(server.liveSocket))
        }

        @Test("sockets that a killed server left behind are replaced")
        func staleSockets() throws {
            let fixture = try LiveFixture()
            fixture.server.kill()
            #expect(Files.exists(fixture.server.controlSocket))
            try fixture.server.start()
            #expect(try NBDClient(fixture.uri("vda")).sizeBytes == fixture.sizeBytes)
            try fixture.server.stop()
        }

        @Test("a second server over the same directories is refused and does no harm")
        func secondServer() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let second = try Command.run(
                try ServerUnderTest.binary(),
                ["serve", "--state-dir", server.stateDirectory, "--run-dir", server.runDirectory],
                timeout: 20)
            #expect(second.status == 1)
            #expect(second.stderr.contains("error: "))
            let third = try Command.run(
                try ServerUnderTest.binary(),
                [
                    "serve", "--state-dir", fixture.directory.file("other"), "--run-dir",
                    server.runDirectory,
                ], timeout: 20)
            #expect(third.status == 1, "a live socket must not be replaced: \(third)")
            #expect(try NBDClient(fixture.uri("vda")).sizeBytes == fixture.sizeBytes)
            #expect(try server.cli(["list"]).output().contains("vm1"))
            try server.stop()
        }

        @Test(
            "a disk that could not be opened at the start is served when it can, though nobody asks"
        )
        func comesLater() throws {
            let fixture = try LiveFixture()
            try fixture.server.stop()
            let away = fixture.directory.file("away")
            try FileManager.default.moveItem(atPath: fixture.path("vda"), toPath: away)
            try fixture.server.start()
            #expect(throws: (any Error).self) { try NBDClient(fixture.uri("vda")) }
            try FileManager.default.moveItem(atPath: away, toPath: fixture.path("vda"))
            let deadline = Date().addingTimeInterval(15)
            var size: Int?
            while size == nil, Date() < deadline {
                size = try? NBDClient(fixture.uri("vda")).sizeBytes
                Thread.sleep(forTimeInterval: 0.1)
            }
            #expect(size == fixture.sizeBytes)
            try fixture.server.stop()
        }

        @Test("domains survive a restart and a kill")
        func domainsSurvive() throws {
            let fixture = try LiveFixture()
            try fixture.server.stop()
            try fixture.server.start()
            #expect(try fixture.server.cli(["domblklist", "vm1"]).output().contains("vdb"))
            fixture.server.kill()
            try fixture.server.start()
            #expect(try fixture.server.cli(["list"]).output().contains("vm1"))
            #expect(
                try NBDClient(fixture.uri("vdb")).read(0, 9).elementsEqual(
                    try fixture.content("vdb").prefix(9)))
            try fixture.server.stop()
        }

        @Test("a guest's connection ends with the server, and its writes are on the disk")
        func stopFlushes() throws {
            let fixture = try LiveFixture()
            let client = try NBDClient(fixture.uri("vda"))
            let bytes = randomBytes(1 << 20, seed: 4)
            try client.write(bytes, at: 4096)
            try fixture.server.stop()
            #expect(
                Array(try Bytes.ofFile(fixture.path("vda"))[4096..<4096 + bytes.count]) == bytes)
        }

        @Test("a served disk is locked against other writers, and free after the stop")
        func locks() throws {
            let fixture = try LiveFixture()
            for target in ["vda", "vdb"] {
                let refused = try Command.run(
                    "qemu-io", ["-f", "raw", "-c", "write 0 4k", fixture.path(target)])
                #expect(!refused.succeeded)
                #expect(refused.stderr.contains("lock"), "\(refused)")
            }
            let export = try Command.run(
                try ServerUnderTest.binary(),
                ["export", "--socket", fixture.directory.file("e.sock"), fixture.path("vda")],
                timeout: 20)
            #expect(export.status == 1)
            #expect(export.stderr.contains(fixture.path("vda")), "\(export)")
            try fixture.server.stop()
            for target in ["vda", "vdb"] {
                try Command.run("qemu-io", ["-f", "raw", "-c", "write 0 4k", fixture.path(target)])
                    .output()
            }
        }

        @Test("a file that another program writes is refused with its name")
        func foreignLock() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let holder = try ReferenceServer(path)
            #expect(try NBDClient(holder.uri).sizeBytes == 1 << 20)
            let socket = directory.file("e.sock")
            let result = try Command.run(
                try ServerUnderTest.binary(), ["export", "--socket", socket, path], timeout: 20)
            #expect(result.status == 1)
            #expect(result.stderr.contains(path) && result.stderr.contains("error: "), "\(result)")
            #expect(!Files.exists(socket))
        }

        @Test("bad calls are refused with their own status")
        func usage() throws {
            let binary = try ServerUnderTest.binary()
            #expect(try Command.run(binary, ["nonsense"]).status == 64)
            #expect(try Command.run(binary, ["serve", "--no-such-option"]).status == 64)
            let missing = try Command.run(
                binary, ["export", "--socket", "/tmp/nbdpull-none.sock", "/no/such/file"],
                timeout: 20)
            #expect(missing.status == 1)
            #expect(missing.stderr.contains("error: ") && missing.stderr.contains("/no/such/file"))
            let alone = try Command.run(
                binary, ["list"], environment: ["NBDPULL_SOCKET": "/no/such/control.sock"])
            #expect(alone.status == 1)
            #expect(try Command.run(binary, ["--version"]).succeeded)
            #expect(try Command.run(binary, ["--help"]).succeeded)
        }
    }
}
