import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Discards and zeros, and what they count as.
    @Suite struct HolesTests {
        private static let sizeBytes = 512 << 20

        private struct DiskList: Decodable {
            struct Disk: Decodable { let dirtyBytes: UInt64? }
            let disks: [Disk]
        }

        /// A server with a sparse disk and a checkpoint.
        private func fixture() throws -> (ServerUnderTest, TemporaryDirectory, NBDClient) {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.sparse(path, bytes: Self.sizeBytes)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            return (server, directory, try NBDClient(server.liveURI("vm1", "vda")))
        }

        private func dirtyBytes(_ server: ServerUnderTest) throws -> UInt64 {
            let list = try server.json(["domblklist", "vm1", "--details"], as: DiskList.self)
            return try #require(list.disks.first?.dirtyBytes)
        }

        @Test("P3: a hole that becomes a hole again is no change, data that does is one")
        func holesAgain() throws {
            let (server, directory, guest) = try fixture()
            try guest.trim(0, Self.sizeBytes)
            try guest.zero(0, Self.sizeBytes)
            try guest.zero(100 << 20, 50 << 20, .noHole)
            // Neither begins nor ends at a page.
            try guest.zero((200 << 20) + 17, 9000)
            try guest.zero(300 << 20, 100)
            #expect(try dirtyBytes(server) == 0)

            // 64 KiB of data, and a page far away.
            try guest.write([UInt8](repeating: 7, count: 65536), at: 64 << 20)
            try guest.write([UInt8](repeating: 7, count: 4096), at: 400 << 20)
            #expect(try dirtyBytes(server) == 2 << 16)
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c2"]).output()
            #expect(try dirtyBytes(server) == 0)
            try guest.trim(0, Self.sizeBytes)
            #expect(try dirtyBytes(server) == 2 << 16, "only what held data has changed")
            try guest.trim(0, Self.sizeBytes)
            #expect(try dirtyBytes(server) == 2 << 16)
            #expect(try guest.read(64 << 20, 4096) == [UInt8](repeating: 0, count: 4096))
            try server.stop()
            withExtendedLifetime(directory) {}
        }

        @Test("P1, P3: the same under a job: its bytes are the instant's, and holes are no change")
        func holesUnderJob() throws {
            let (server, directory, guest) = try fixture()
            try guest.write([UInt8](repeating: 7, count: 65536), at: 64 << 20)
            let job = try server.begin("vm1", disks: ["vda"], tag: "holes", checkpoint: "c2")
            try guest.trim(0, Self.sizeBytes)
            try guest.zero((200 << 20) + 17, 9000)
            #expect(try dirtyBytes(server) == 1 << 16)
            let copy = try NBDClient(try job.uri("vda"))
            #expect(try copy.read(64 << 20, 65536) == [UInt8](repeating: 7, count: 65536))
            #expect(try copy.read(200 << 20, 65536) == [UInt8](repeating: 0, count: 65536))
            try server.end("vm1", job)
            try server.stop()
            withExtendedLifetime(directory) {}
        }

        @Test("P6: thousands of small durable discards behind a few huge ones")
        func durableDiscards() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            // As long as a file on ext4 can be, nearly.
            try Images.sparse(path, bytes: 15 << 40)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--rings", "1"])
            var tickets: [(NBDClient, NBDTicket)] = []
            // Hundreds of the largest that 32 bits can say: the small ones wait behind them.
            let large = try (0..<12).map { _ in try NBDClient(server.liveURI("vm1", "vda")) }
            for (number, client) in large.enumerated() {
                for place in 0..<100 {
                    let offset = (number * 100 + place) << 33
                    tickets.append((client, try client.startTrim(offset, (4 << 30) - 65536)))
                }
            }
            let clients = try (0..<40).map { _ in try NBDClient(server.liveURI("vm1", "vda")) }
            for client in clients {
                for place in 0..<128 {
                    tickets.append(
                        (client, try client.startTrim(place << 20, 512, .forceUnitAccess)))
                }
            }
            let deadline = Date().addingTimeInterval(60)
            while !tickets.isEmpty, Date() < deadline {
                NBDClient.waitForActivity(large + clients, milliseconds: 20)
                try tickets.removeAll { client, ticket in
                    switch client.outcome(of: ticket) {
                    case nil: return false
                    case .done: return true
                    case .failed(let failure): throw failure
                    }
                }
            }
            #expect(tickets.isEmpty)
            try server.requireHealthy()
            try server.stop()
        }
    }
}
