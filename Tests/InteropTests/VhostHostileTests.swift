import Foundation
import TestSupport
import Testing
import VhostClient
import VhostFrontEnd

extension InteropSuite {
    /// Front-ends and guests that break every rule: they lose their disk, and nobody else anything.
    @Suite struct VhostHostileTests {
        /// A server with a disk that is attacked and two that work, one over each door.
        private final class Fixture {
            let directory: TemporaryDirectory
            let server: ServerUnderTest
            let doomed: String
            let writer: StressWriter

            init() throws {
                directory = try TemporaryDirectory()
                let folder = directory.file("vhost")
                var disks: [DiskDescription] = []
                var contents: [[UInt8]] = []
                for target in ["vda", "vdb", "vdc"] {
                    let path = directory.file(target)
                    contents.append(try Images.mixed(path, bytes: 8 << 20, seed: 7))
                    disks.append(DiskDescription(target, path))
                }
                server = try ServerUnderTest(
                    [DomainDescription("vm1", disks)],
                    // All on one ring: what holds it up holds up everybody.
                    options: ["--vhost-dir", folder, "--rings", "1"])
                doomed = server.vhostSocket(folder, "vm1", "vda")
                var plan = StressPlan(seed: 7)
                plan.largestBytes = 1 << 16
                plan.inFlight = 8
                writer = try StressWriter(
                    disks: [
                        server.guestDisk("vm1", "vdb", .vhost, vhostFolder: folder),
                        server.guestDisk("vm1", "vdc", .nbd, vhostFolder: folder),
                    ], contents: Array(contents.dropFirst()), plan: plan)
            }

            /// Whether a condition holds before long; the other guests work meanwhile.
            func eventually(_ seconds: Double, _ condition: () -> Bool) throws -> Bool {
                let end = Date(timeIntervalSinceNow: seconds)
                while Date() < end {
                    if condition() { return true }
                    try writer.run(seconds: 0.01)
                }
                return condition()
            }
        }

        @Test("P2: a hostile guest loses its disk; the others, over both doors, notice nothing")
        func attacks() throws {
            let fixture = try Fixture()
            for attack in VhostAttack.all {
                do { try run(attack, fixture) } catch {
                    throw TestFailure("\(attack): \(error)\n\(fixture.server.stderr.suffix(2000))")
                }
            }
            try fixture.writer.drain()
            try fixture.server.stop()
        }

        private func run(_ attack: VhostAttack, _ fixture: Fixture) throws {
            var options = attack.options
            options.dataBytes = 4 << 20
            let frontEnd = try FrontEnd(connecting: fixture.doomed, options)
            if attack.isRunning { try frontEnd.begin() }
            try attack.act(frontEnd)
            try fixture.writer.run(seconds: 0.03)
            switch attack.answer {
            case .any: break
            case .broken:
                let isBroken = try fixture.eventually(5) {
                    frontEnd.queues[0].failure.take() > 0 || frontEnd.socket.isClosed()
                }
                #expect(isBroken, "\(attack): the queue goes on")
            case .refused:
                let isRefused = try fixture.eventually(5) { frontEnd.saysNo }
                #expect(isRefused, "\(attack): is not refused")
            }
            frontEnd.vanish()
            try fixture.server.requireHealthy()
            // The disk is there for the next one.
            let next = try VhostDisk(fixture.doomed, largest: 1 << 16, depth: 4)
            let content = [UInt8](repeating: 0x5a, count: 8192)
            try next.perform(.write(content), 4096, content.count)
            #expect(try next.perform(.read, 4096, content.count) == content, "\(attack)")
            next.frontEnd.vanish()
        }

        @Test("P2: descriptors whose close hangs hold up nobody, received or not")
        func lingering() throws {
            let fixture = try Fixture()
            let before = fixture.server.descriptorCount
            fixture.writer.resetSlowest()
            var peers: [Descriptor] = []
            for round in 0..<4 {
                let first = try FrontEnd(connecting: fixture.doomed)
                try fixture.writer.run(seconds: 0.05)
                // What the second one says waits in its socket until the first has gone.
                let second = try FrontEnd(connecting: fixture.doomed)
                if round % 2 == 0 { try second.socket.send(ClientMessage(4711)) }
                for _ in 0..<3 {
                    let (connection, peer) = try Descriptor.lingering(seconds: 60)
                    peers.append(peer)
                    try second.socket.send(.setKick(0), [connection])
                }
                first.vanish()
                let isOver = try fixture.eventually(10) { second.socket.isClosed() }
                #expect(isOver, "round \(round)")
            }
            try fixture.writer.run(seconds: 1)
            // The disk is there for the next one, and the others have not noticed.
            let next = try VhostDisk(fixture.doomed)
            #expect(try next.perform(.read, 0, 4096).count == 4096)
            next.frontEnd.vanish()
            #expect(
                fixture.writer.slowest < .seconds(20), "\(fixture.writer.slowestSummary)")
            peers = []
            let isFreed = try fixture.eventually(20) {
                fixture.server.descriptorCount < before + 10
            }
            #expect(isFreed, "\(fixture.server.descriptorCount) descriptors, \(before) before")
            try fixture.writer.drain()
            try fixture.server.stop()
        }

        @Test("P2: memory in a file whose file system hangs is refused at once")
        func hungMemory() throws {
            let fixture = try Fixture()
            let hung = try OneFileSystem(bytes: 8 << 20)
            let file = try Descriptor.openBoth(hung.path)
            let frontEnd = try FrontEnd(connecting: fixture.doomed)
            try frontEnd.agree()
            hung.hang()
            fixture.writer.resetSlowest()
            try frontEnd.socket.send(
                ClientMessage.setMemory([ClientRegion(guest: 0, size: 1 << 20, user: 0)])
                    .acknowledged, [file])
            let isRefused = try fixture.eventually(10) { frontEnd.saysNo }
            hung.answer()
            #expect(isRefused)
            #expect(
                fixture.writer.slowest < .seconds(8), "\(fixture.writer.slowestSummary)")
            frontEnd.vanish()
            let reasons = try fixture.server.cli(["event"]).output()
            #expect(
                reasons.contains("SET_MEM_TABLE: memory at 0x0 of 1048576 bytes: its descriptor"),
                "\(reasons)")
            try fixture.writer.drain()
            try fixture.server.stop()
        }

        @Test("P6: machines map no more than --vhost-memory together, and are told so")
        func memoryLimit() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda")
            try Images.sparse(path, bytes: 1 << 20)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--vhost-dir", directory.file("vhost"), "--vhost-memory", "64M"])
            let socket = server.vhostSocket(directory.file("vhost"), "vm1", "vda")
            #expect(throws: ClientViolation.self) {
                _ = try VhostDisk(socket, largest: 1 << 20, depth: 40)
            }
            #expect(
                try server.cli(["event"]).output().contains("of 67108864 bytes (--vhost-memory)"))
            let small = try VhostDisk(socket, largest: 1 << 16, depth: 4)
            #expect(try small.perform(.read, 0, 512).count == 512)
            small.frontEnd.vanish()
            let refused = try server.cli(["domblklist", "vm1", "--details"]).output()
            #expect(refused.contains("Vhost Socket:  \(socket)"), "\(refused)")
            try server.stop()
        }

        @Test("P2: guests that come, work and vanish in flight, fifty times")
        func vanishing() throws {
            let fixture = try Fixture()
            let before = fixture.server.descriptorCount
            for round in 0..<50 {
                var options = FrontEndOptions()
                options.queues = 1 + round % 3
                options.remembersInFlight = round.isMultiple(of: 2)
                let disk = try VhostDisk(fixture.doomed, options, largest: 1 << 18, depth: 16)
                for index in 0..<16 {
                    let content = [UInt8](repeating: UInt8(round), count: 1 << 18)
                    _ = try disk.start(.write(content), index << 18, content.count)
                }
                disk.frontEnd.vanish()
            }
            try fixture.writer.run(seconds: 0.2)
            let disk = try VhostDisk(fixture.doomed)
            #expect(try disk.perform(.read, 0, 4096).count == 4096)
            disk.frontEnd.vanish()
            // What those held that are gone was given back; the others may have opened a pipe or
            // two.
            let isFreed = try fixture.eventually(10) {
                fixture.server.descriptorCount < before + 16
            }
            #expect(isFreed, "\(fixture.server.descriptorCount) descriptors, \(before) before")
            try fixture.writer.drain()
            try fixture.server.stop()
        }
    }
}

extension FrontEnd {
    /// Whether the back-end has closed the connection, or answered that it will not.
    fileprivate var saysNo: Bool {
        let (answer, isOver) = socket.pendingAnswer()
        return isOver || (answer.map { $0 != 0 } ?? false)
    }
}
