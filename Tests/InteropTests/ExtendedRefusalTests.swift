import Glibc
import TestSupport
import Testing
import WireClient

extension InteropSuite {
    /// What a client with extended headers may not do, over a real socket.
    @Suite struct ExtendedRefusalTests {
        private func connect(_ fixture: LiveFixture, _ target: String = "vda") throws
            -> WireConnection
        {
            try WireConnection(
                socket: fixture.server.liveSocket, export: "vm1/" + target,
                contexts: ["base:allocation"])
        }

        @Test("a refused payload is skipped, and the connection stays")
        func skipped() throws {
            let fixture = try LiveFixture()
            let client = try connect(fixture)
            let readOnly = try connect(fixture, "vdc")
            let size = UInt64(fixture.sizeBytes)
            let content = try fixture.content("vda")
            func expect(
                _ error: Int32, _ client: WireConnection, _ request: WireRequest, text: String
            ) throws {
                let reply = try client.ask(request)
                #expect(reply.error == UInt32(error) && reply.text.contains(text), "\(reply)")
                #expect(try client.read(0, 512).count == 512)
            }
            func stray(_ command: UInt16, _ count: Int) -> WireRequest {
                WireRequest(
                    command, flags: WireFlag.payloadLength, length: UInt64(count),
                    payload: [UInt8](repeating: 0x25, count: count))
            }
            for command in [
                WireCommand.read, WireCommand.flush, WireCommand.trim, WireCommand.cache,
                WireCommand.writeZeroes, 8, 999,
            ] {
                for count in [0, 1, 31, 32, 33, 70_000, 3_000_000] {
                    let text = command > 7 ? "unknown command" : "flag"
                    try expect(EINVAL, client, stray(command, count), text: text)
                }
            }
            let two = [UInt8](repeating: 1, count: 2)
            try expect(
                ENOSPC, client, .write(two, at: size - 1, mode: .extended), text: "past the end")
            try expect(
                EPERM, readOnly, .write(two, at: 0, mode: .extended), text: "read-only")
            try expect(
                EINVAL, client,
                .write([UInt8](repeating: 7, count: 64 << 20 | 1), at: 0, mode: .extended),
                text: "64 MiB")
            #expect(try client.read(0, content.count) == content)
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("a list of contexts that is none is refused, and the connection stays")
        func badLists() throws {
            let fixture = try LiveFixture()
            let client = try connect(fixture)
            let size = client.agreement.sizeBytes
            for ids: [UInt32] in [
                [], [1], [0, 0], [.max], [256], Array(repeating: 0, count: 1000),
            ] {
                let reply = try client.ask(.status(of: ids, offset: 0, effect: size))
                #expect(reply.error == UInt32(EINVAL) && reply.extents.isEmpty)
            }
            for count in [0, 1, 7, 8, 9, 11, 13, 15, 16, 70_000] {
                let reply = try client.ask(
                    WireRequest(
                        WireCommand.blockStatus, flags: WireFlag.payloadLength,
                        length: UInt64(count), payload: [UInt8](repeating: 0, count: count)))
                #expect(reply.error == UInt32(EINVAL), "\(count)")
            }
            for effect in [0, size + 1, .max] {
                let reply = try client.ask(.status(of: [0], offset: 0, effect: effect))
                #expect(reply.error == UInt32(EINVAL))
            }
            #expect(try client.status(0, size, of: ["base:allocation"]).count == 1)
            try fixture.server.stop()
        }

        @Test("64-bit ranges outside the export are refused, whatever they add up to")
        func ranges() throws {
            let fixture = try LiveFixture()
            let client = try connect(fixture)
            let size = client.agreement.sizeBytes
            let commands: [(UInt16, Int32)] = [
                (WireCommand.read, EINVAL), (WireCommand.trim, EINVAL),
                (WireCommand.cache, EINVAL), (WireCommand.writeZeroes, ENOSPC),
                (WireCommand.blockStatus, EINVAL),
            ]
            for (command, error) in commands {
                for (offset, length): (UInt64, UInt64) in [
                    (0, size + 1), (size, 1), (1, .max), (.max, .max), (1 << 63, 1 << 63),
                    (size, .max - size + 1), (0, 1 << 32 | size),
                ] {
                    let reply = try client.ask(
                        WireRequest(command, offset: offset, length: length))
                    #expect(reply.error == UInt32(error), "\(command) \(offset)+\(length)")
                }
            }
            #expect(try client.read(0, fixture.sizeBytes) == (try fixture.content("vda")))
            try fixture.server.stop()
        }

        @Test("what makes the stream meaningless ends the connection, and no other")
        func hangUps() throws {
            let fixture = try LiveFixture()
            let bystander = try connect(fixture)
            func header(_ request: WireRequest) -> [UInt8] { request.bytes(.extended) }
            let flag = WireFlag.payloadLength
            let answered: [WireRequest] = [
                WireRequest(WireCommand.write, length: 128 << 20 | 1),
                WireRequest(WireCommand.write, length: .max),
                WireRequest(WireCommand.write, flags: flag, length: 128 << 20 | 1),
                WireRequest(WireCommand.write, flags: flag, length: .max),
                WireRequest(WireCommand.read, flags: flag, length: 64 << 20 | 1),
                WireRequest(WireCommand.blockStatus, flags: flag, length: 1 << 40),
                WireRequest(99, flags: flag, length: .max),
            ]
            for request in answered {
                let client = try connect(fixture)
                let reply = try client.ask(request)
                #expect(reply.error == UInt32(EINVAL), "\(request)")
                #expect(try client.isHungUp())
            }
            // A compact header, an unknown one, and half of one.
            for bytes in [
                WireRequest(WireCommand.flush).bytes(.structured),
                [UInt8](repeating: 0, count: 32),
            ] {
                let client = try connect(fixture)
                try client.send(raw: bytes)
                #expect(try client.isHungUp())
            }
            let compact = try WireConnection(
                socket: fixture.server.liveSocket, export: "vm1/vda", mode: .structured)
            try compact.send(raw: header(WireRequest(WireCommand.flush)))
            #expect(try compact.isHungUp())
            #expect(
                try bystander.read(0, fixture.sizeBytes) == (try fixture.content("vda")))
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("an ended job takes its extended connections along")
        func endedJob() throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin()
            let client = try WireConnection(
                socket: fixture.socket(of: job), export: "vda", contexts: ["base:allocation"])
            #expect(try client.status(0, 4096).count == 1)
            try fixture.server.end("vm1", job)
            #expect(try client.isHungUp())
            try fixture.server.stop()
        }
    }
}

extension LiveFixture {
    /// The socket of a job that was begun on a unix socket.
    func socket(of job: BegunJob) throws -> String {
        guard let path = try job.uri("vda").split(separator: "socket=").last else {
            throw TestFailure("no socket in the job's URI")
        }
        return String(path)
    }
}
