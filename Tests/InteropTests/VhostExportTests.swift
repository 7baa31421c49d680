import Foundation
import TestSupport
import Testing
import VhostClient
import VhostFrontEnd

extension InteropSuite {
    /// `export --vhost`, and who may use a disk beside whom.
    @Suite struct VhostExportTests {
        /// One file behind a vhost-user-blk socket, served by us or by others.
        private final class Export {
            let directory: TemporaryDirectory
            let file: String
            let socket: String
            let process: Command

            /// `arguments` makes the server's words from file and socket.
            init(
                bytes: Int = 32 << 20, _ program: String? = nil,
                _ arguments: (_ file: String, _ socket: String) -> [String]
            ) throws {
                directory = try TemporaryDirectory()
                file = directory.file("disk")
                socket = directory.file("vhost.sock")
                try Images.mixed(file, bytes: bytes, seed: 3)
                process = try Command(
                    program ?? ServerUnderTest.binary(), arguments(file, socket))
                let path = socket
                try process.wait(for: "socket") { _ in Files.exists(path) }
            }

            static func ours(_ options: String...) throws -> Export {
                try Export { ["export", "--vhost", $1] + options + [$0] }
            }

            func stop() throws {
                process.terminate()
                try process.result(timeout: 20).output()
            }
        }

        private static func load(_ arguments: [String]) throws -> CommandResult {
            let folder = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().deletingLastPathComponent()
            return try Command.run(
                folder.path + "/.build/debug/nbdpull-vhost-load", arguments, timeout: 60)
        }

        @Test("P5: the load generator finds what it wrote, at another's back end")
        func reference() throws {
            let export = try Export("qemu-storage-daemon") {
                [
                    "--blockdev", "driver=file,node-name=d,filename=\($0),discard=unmap",
                    "--export",
                    "type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2,"
                        + "addr.type=unix,addr.path=\($1)",
                ]
            }
            let result = try Self.load([export.socket, "--verify", "--queues", "2"])
            #expect(try result.output().contains(#""verified":true"#))
        }

        @Test(
            "P5: reads, writes, zeroes, discards and refusals through the page cache and past it",
            arguments: [[], ["--cache", "none"]])
        func verified(options: [String]) throws {
            let export = try Export {
                ["export", "--vhost", $1] + options + [$0]
            }
            for more in [[], ["--queues", "3"], ["--no-event-index"]] {
                let result = try Self.load([export.socket, "--verify"] + more)
                #expect(try result.output().contains(#""verified":true"#), "\(more)")
            }
            let loads = [
                ["--depth", "8", "--read", "50"], ["--queues", "2", "--depth", "4", "--indirect"],
                ["--block", "65536", "--read", "0", "--order", "sequential", "--wait", "poll"],
                ["--order", "touch", "--read", "0", "--no-event-index", "--depth", "3"],
            ]
            for more in loads {
                try Self.load([export.socket, "--seconds", "0.2"] + more).output()
            }
            try export.stop()
        }

        @Test("P2: a read-only disk says so, and takes no write")
        func readOnly() throws {
            let export = try Export.ours("--read-only")
            let disk = try VhostDisk(export.socket)
            #expect(disk.isReadOnly)
            #expect(throws: ClientViolation.self) {
                try disk.perform(.write([UInt8](repeating: 1, count: 512)), 0, 512)
            }
            let content = try Bytes.ofFile(export.file)
            #expect(try disk.perform(.read, 0, 1 << 20) == Array(content[..<(1 << 20)]))
            disk.frontEnd.vanish()
            try export.stop()
        }

        @Test("P2: the second front-end waits until the first has gone")
        func one() throws {
            let export = try Export.ours()
            let first = try VhostDisk(export.socket)
            try first.perform(.write([UInt8](repeating: 9, count: 4096)), 0, 4096)
            let second = try FrontEnd(connecting: export.socket)
            try second.socket.send(.getFeatures)
            Thread.sleep(forTimeInterval: 0.2)
            let early = second.socket.pendingAnswer()
            #expect(early.word == nil && !early.isOver)
            #expect(try first.perform(.read, 0, 512) == [UInt8](repeating: 9, count: 512))
            first.frontEnd.vanish()
            #expect(try second.socket.reply(to: 1).reply.word != 0)
            try export.stop()
        }

        @Test("P2: a disk has one kind of writing guest at a time")
        func oneKind() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.mixed(path, bytes: 4 << 20, seed: 5)
            let folder = directory.file("vhost")
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--vhost-dir", folder])
            let socket = server.vhostSocket(folder, "vm1", "vda")

            let guest = try VhostDisk(socket)
            try guest.perform(.write([UInt8](repeating: 1, count: 512)), 0, 512)
            let reader = try NBDClient(server.liveURI("vm1", "vda"))
            #expect(reader.isReadOnly)
            #expect(try reader.read(0, 512) == [UInt8](repeating: 1, count: 512))
            guest.frontEnd.vanish()
            try reader.disconnect()

            // The other way round: a machine over NBD has it.
            var writer: NBDClient?
            for _ in 0..<100 {
                writer = try NBDClient(server.liveURI("vm1", "vda"))
                guard writer?.isReadOnly == true else { break }
                Thread.sleep(forTimeInterval: 0.05)
            }
            try writer?.write([2], at: 0)
            #expect(throws: ClientViolation.self) {
                let late = try VhostDisk(socket)
                try late.perform(.write([UInt8](repeating: 3, count: 512)), 0, 512)
            }
            #expect(try writer?.read(0, 1) == [2])
            try server.stop()
        }
    }
}
