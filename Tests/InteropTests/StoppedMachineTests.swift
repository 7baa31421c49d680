import Foundation
import TestSupport
import Testing
import WireClient

extension InteropSuite {
    /// Backups of disks that no guest uses, and guests that come while clients have not read what
    /// they were sent.
    @Suite struct StoppedMachineTests {
        /// Lots of time on a busy machine.
        private static let slack = Duration.seconds(3)

        /// One disk without holes, a job over it, and what it held at the instant.
        private final class Rig {
            let fixture: LiveFixture
            let job: BegunJob
            let content: [UInt8]
            let backup: BackupDescription

            init() throws {
                fixture = try LiveFixture()
                let writer = try NBDClient(fixture.uri("vda"))
                content = randomBytes(fixture.sizeBytes, seed: 77)
                for offset in stride(from: 0, to: content.count, by: 1 << 20) {
                    try writer.write(Array(content[offset..<(offset + (1 << 20))]), at: offset)
                }
                try writer.disconnect()
                backup = fixture.server.standardBackup(disks: ["vda"], tag: "stopped")
                job = try fixture.server.begin("vm1", backup)
            }

            func reader() throws -> WireConnection {
                let reader = try WireConnection(
                    socket: fixture.server.directory.file("job-stopped.sock"),
                    export: try job.export("vda").name, mode: .structured)
                // How pages are sent is settled anew with each tick of the clock.
                Thread.sleep(forTimeInterval: 0.4)
                return reader
            }

            /// Asks for neighbouring pieces of 512 KiB and reads nothing.
            func ask(_ reader: WireConnection, _ count: Int) throws {
                for index in 0..<count {
                    try reader.start(
                        WireRequest(
                            WireCommand.read, cookie: UInt64(index),
                            offset: UInt64(index << 19), length: 1 << 19))
                }
                Thread.sleep(forTimeInterval: 0.4)
            }

            /// Whether an answer is what the disk held at the instant.
            func isInstant(_ reply: WireReply) -> Bool {
                let start = Int(reply.cookie) << 19
                return reply.error == 0 && reply.data == Array(content[start..<(start + (1 << 19))])
            }

            /// Changes the disk's file as no guest can.
            func writeBehindTheServer(_ bytes: [UInt8], at offset: Int) throws {
                guard let file = FileHandle(forUpdatingAtPath: fixture.path("vda")) else {
                    throw TestFailure("no disk")
                }
                try file.seek(toOffset: UInt64(offset))
                try file.write(contentsOf: Data(bytes))
                try file.close()
            }

            /// Overwrites the whole disk, as a guest that is attached.
            func overwrite(_ guest: NBDClient) throws {
                let piece = randomBytes(1 << 20, seed: 5)
                for offset in stride(from: 0, to: fixture.sizeBytes, by: 1 << 20) {
                    try guest.write(piece, at: offset)
                }
            }

            func expectWhole() throws {
                let client = try NBDClient(try job.uri("vda"))
                let all = try client.read(0, content.count)
                let isSame = all == content
                #expect(isSame, "the job's bytes are not those of the instant")
            }

            func finish() throws {
                _ = try fixture.server.cli(["backup-end", "vm1", "--job", job.id])
                try fixture.server.stop()
            }
        }

        /// Whether what a client asked for and has not read shows later changes of the file.
        private func isByReference(_ rig: Rig) throws -> Bool {
            let reader = try rig.reader()
            try rig.ask(reader, 1)
            let old = Array(rig.content[0..<65_536])
            try rig.writeBehindTheServer([UInt8](repeating: 0xEE, count: 65_536), at: 0)
            let reply = try reader.answer()
            try rig.writeBehindTheServer(old, at: 0)
            #expect(reply.error == 0)
            let first = Array(reply.data[0..<65_536])
            if first == old { return false }
            #expect(first == [UInt8](repeating: 0xEE, count: 65_536))
            return true
        }

        @Test("P1: nothing of a disk that a guest may write goes by reference, attached or not")
        func byReference() throws {
            let rig = try Rig()
            #expect(try !isByReference(rig))
            let guest = try NBDClient(rig.fixture.uri("vda"))
            #expect(try !isByReference(rig))
            try guest.disconnect()
            #expect(try !isByReference(rig))
            try rig.expectWhole()
            try rig.finish()
        }

        @Test("P1, P4: a guest that comes waits for no client, which still gets the instant")
        func clientThatDoesNotRead() throws {
            let rig = try Rig()
            let reader = try rig.reader()
            try rig.ask(reader, 24)
            let begun = ContinuousClock.now
            let guest = try NBDClient(rig.fixture.uri("vda"))
            try guest.write([UInt8](repeating: 0xDD, count: 1 << 20), at: 0)
            let waited = ContinuousClock.now - begun
            #expect(waited < .seconds(1), "\(waited)")
            try rig.overwrite(guest)
            for _ in 0..<24 {
                let reply = try reader.answer()
                let isInstant = rig.isInstant(reply)
                #expect(isInstant, "request \(reply.cookie)")
            }
            try rig.expectWhole()
            try rig.finish()
        }

        @Test("a job ends at once although a client has bytes to read")
        func endOfJob() throws {
            let rig = try Rig()
            let reader = try rig.reader()
            try rig.ask(reader, 24)
            let begun = ContinuousClock.now
            _ = try rig.fixture.server.cli(["backup-end", "vm1", "--job", rig.job.id]).output()
            #expect(ContinuousClock.now - begun < Self.slack)
            #expect(!Files.exists(rig.backup.disks[0].scratch))
            let stop = ContinuousClock.now
            try rig.fixture.server.stop()
            #expect(ContinuousClock.now - stop < Self.slack)
            withExtendedLifetime(reader) {}
        }

        @Test("P4: a guest is attached in no time beside clients that read")
        func latency() throws {
            let rig = try Rig()
            let stop = rig.fixture.directory.file("stop")
            let uri = try rig.job.uri("vda")
            let copies = try (0..<2).map { _ throws in
                try Command(
                    "sh",
                    ["-c", "while [ ! -e '\(stop)' ]; do nbdcopy '\(uri)' null: || exit 1; done"])
            }
            var waits: [Duration] = []
            for pause in 0..<60 {
                let begun = ContinuousClock.now
                let guest = try NBDClient(rig.fixture.uri("vda"))
                _ = try guest.read(0, 4096)
                waits.append(ContinuousClock.now - begun)
                try guest.disconnect()
                Thread.sleep(forTimeInterval: 0.1 + Double(pause) / 1000)
            }
            try Files.write("", to: stop)
            for copy in copies { try copy.result(timeout: 60).output() }
            waits.sort()
            print(
                "attached \(waits.count) guests: median \(waits[waits.count / 2]), slowest",
                waits[waits.count - 1])
            #expect(waits[waits.count - 1] < .seconds(1))
            try rig.expectWhole()
            try rig.finish()
        }
    }
}
