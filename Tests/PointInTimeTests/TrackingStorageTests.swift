import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// The state directory lies on storage that is full, read-only, frozen or lies: the guest goes
    /// on, and no change is missed afterwards.
    @Suite struct TrackingStorageTests {
        private static let blockBytes = 65_536
        private static let diskBytes = 8 << 30

        /// A server whose state directory is on a file system of its own, with one disk and
        /// checkpoint `c1`.
        private final class Rig {
            let disk: TemporaryDirectory
            let device: LoopDevice?
            let server: ServerUnderTest

            init(state: String, asDevice: Bool, options: [String] = []) throws {
                disk = try TemporaryDirectory()
                let image = disk.file("disk.img")
                try Images.sparse(image, bytes: TrackingStorageTests.diskBytes)
                device = asDevice ? try LoopDevice(over: image) : nil
                var description = DiskDescription("vda", device?.path ?? image)
                description.isBlockDevice = asDevice
                server = try ServerUnderTest(
                    [DomainDescription("vm1", [description])],
                    options: ["--state-dir", state] + options)
                try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            }

            func write(_ block: Int) throws {
                try NBDClient(server.liveURI("vm1", "vda"))
                    .write([1, 2, 3], at: block * TrackingStorageTests.blockBytes)
            }

            /// Fails if a backup since `c1` can be had that calls one of the blocks clean.
            func expectNotMissed(_ blocks: [Int]) throws {
                let backup = server.standardBackup(disks: ["vda"], tag: "inc")
                var incremental = backup
                incremental.incremental = "c1"
                let began = try server.cli(
                    try server.beginArguments("vm1", incremental) + ["--json"])
                guard began.succeeded else {
                    #expect(began.stderr.contains("c1"), "\(began)")
                    return
                }
                let job = try BegunJob(json: began.stdout)
                let context = "qemu:dirty-bitmap:" + (try job.export("vda").bitmap ?? "")
                let client = try NBDClient(try job.uri("vda"), .contexts(context))
                let dirty = try client.map(context).filter(\.isDirty)
                for block in blocks {
                    let offset = block * TrackingStorageTests.blockBytes
                    #expect(
                        dirty.contains { $0.offset <= offset && offset < $0.end },
                        "block \(block) was written and is clean")
                }
                try server.end("vm1", job)
            }

            /// Removes what the server keeps in memory that outlives it, which the machine's
            /// restart would; returns how many disks that was.
            func forgetMemory() -> Int {
                let place = "/dev/shm/nbdpull-\(geteuid())"
                let state = Data((server.options[1] + "/disks/").utf8)
                let ours = Files.listing(place).filter { name in
                    guard name.hasSuffix("/session"),
                        let text = FileManager.default.contents(atPath: place + "/" + name)
                    else { return false }
                    return text.range(of: state) != nil
                }
                for name in ours {
                    Files.remove(
                        (place as NSString).appendingPathComponent(name)
                            .replacing("/session", with: ""))
                }
                return ours.count
            }

            func problem() throws -> String {
                try server.cli(["domblklist", "vm1", "--details"]).output()
            }
        }

        /// Leaves no room in a file system; returns the files that take it.
        private func fill(_ path: String) throws -> [String] {
            let files = [path + "/filler-1", path + "/filler-2"]
            _ = try Command.run("dd", ["if=/dev/zero", "of=" + files[0], "bs=4k"])
            _ = try Command.run("dd", ["if=/dev/zero", "of=" + files[1], "bs=512"])
            return files
        }

        @Test(
            "P3: a session without tracking, the state directory being full, is not believed later",
            arguments: [false, true], [false, true])
        func untrackedSession(asDevice: Bool, cleanly: Bool) throws {
            let system = try TinyFileSystem(mebibytes: 16)
            let rig = try Rig(state: system.path + "/state", asDevice: asDevice)
            try rig.write(1)
            if cleanly { try rig.server.stop() } else { rig.server.kill() }
            let fillers = try fill(system.path)
            try rig.server.start()
            #expect(try rig.problem().contains("changes are not recorded"))
            try rig.write(5)
            try rig.server.stop()
            for file in fillers { Files.remove(file) }
            try rig.server.start()
            try rig.expectNotMissed([1, 5])
            // From here on it is as if nothing had been.
            try rig.server.cli(["checkpoint-create-as", "vm1", "--name", "c2"]).output()
            try rig.server.stop()
        }

        @Test(
            "P3: giving up that fails, the state directory being read-only, is not forgotten",
            arguments: [false, true])
        func readOnly(asDevice: Bool) throws {
            let system = try TinyFileSystem(mebibytes: 16)
            let rig = try Rig(state: system.path + "/state", asDevice: asDevice)
            // Only a log that follows a clean stop begins without marks.
            try rig.server.stop()
            try rig.server.start()
            try rig.write(1)
            try system.breakReadOnly()
            // In other regions: the log has to be written.
            try rig.write(5000)
            try rig.write(9000)
            #expect(try rig.problem().contains("given up"))
            try rig.server.stop()
            try system.repair()
            try rig.server.start()
            try rig.expectNotMissed([1, 5000, 9000])
            try rig.server.stop()
        }

        @Test("P3: bits that cannot be saved are told of once, and nothing is missed afterwards")
        func unsaved() throws {
            let system = try TinyFileSystem(mebibytes: 16)
            let rig = try Rig(state: system.path + "/state", asDevice: false)
            // In a region whose mark the log already has: nothing else is written from here on.
            try rig.write(1)
            try system.breakReadOnly()
            try rig.write(2)
            var told = ""
            let deadline = Date().addingTimeInterval(40)
            while !told.contains("cannot be made durable"), Date() < deadline {
                told = try rig.server.cli(["event", "--domain", "vm1"]).output()
                Thread.sleep(forTimeInterval: 0.2)
            }
            #expect(
                told.contains("tracking-problem domain=vm1 disk=vda")
                    && told.contains("its bits cannot be made durable"), "\(told)")
            // The guest goes on, and the event is not made again with every try.
            try rig.write(3)
            Thread.sleep(forTimeInterval: 11)
            told = try rig.server.cli(["event", "--domain", "vm1"]).output()
            #expect(told.components(separatedBy: "cannot be made durable").count == 2, "\(told)")
            rig.server.kill()
            try system.repair()
            // As after a loss of power: the bits in memory are gone.
            #expect(rig.forgetMemory() > 0)
            try rig.server.start()
            try rig.expectNotMissed([1, 2, 3])
            try rig.server.stop()
        }

        @Test("P2: a frozen state directory holds a guest write no longer than --tracking-timeout")
        func frozen() throws {
            let system = try TinyFileSystem(mebibytes: 16)
            let rig = try Rig(
                state: system.path + "/state", asDevice: false,
                options: ["--tracking-timeout", "1"])
            // Only a log that follows a clean stop begins without marks.
            try rig.server.stop()
            try rig.server.start()
            try rig.write(1)
            try system.freeze()
            let begin = Date()
            // The first waits for the log; those to its region and to others do not any more.
            for block in [2, 5000, 5001, 9000] { try rig.write(block) }
            try NBDClient(rig.server.liveURI("vm1", "vda")).flush()
            #expect(Date().timeIntervalSince(begin) < 6)
            #expect(try rig.problem().contains("given up"))
            // A process with a call that hangs is only gone when the call is over.
            try Command.run("kill", ["-9", "\(rig.server.processID)"]).output()
            try system.thaw()
            rig.server.kill()
            try rig.server.start()
            try rig.expectNotMissed([1, 2, 5000, 5001, 9000])
            try rig.server.stop()
        }

        @Test("P3: bits that were lost on the way to the disk are dirty when it was mounted anew")
        func losesLater() throws {
            let system = try LyingFileSystem(mebibytes: 64, roomMebibytes: 8)
            let rig = try Rig(state: system.path + "/state", asDevice: false)
            try rig.write(1)
            try system.use()
            // Each in a page of bits of its own, for which there is no room.
            for block in [3, 40_000, 70_000, 100_000] { try rig.write(block) }
            rig.server.kill()
            try system.mountAnew()
            try rig.server.start()
            try rig.expectNotMissed([1, 3, 40_000, 70_000, 100_000])
            try rig.server.stop()
        }

        @Test("a disk of 600 TiB is tracked; one too large for its granularity says which would do")
        func sizes() throws {
            // Only tmpfs has files of this size everywhere.
            let path = "/dev/shm/nbdpull-test-" + UUID().uuidString
            defer { Files.remove(path) }
            try Images.sparse(path, bytes: 600 << 40)
            let server = try ServerUnderTest()
            let file = server.directory.file("vm1.xml")
            try Files.write(
                DomainDescription("vm1", [DiskDescription("vda", path)]).xml, to: file)
            let refused = try server.cli(["define", file, "--granularity", "4096"])
            #expect(!refused.succeeded)
            #expect(
                refused.stderr.contains("use a granularity of 32768 bytes or more"), "\(refused)")
            try server.cli(["define", file]).output()
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            try NBDClient(server.liveURI("vm1", "vda")).write([1], at: (600 << 40) - 1)
            try server.stop()
            try server.start()
            let size = try server.cli(["checkpoint-dumpxml", "vm1", "c1", "--size"]).output()
            #expect(size.contains("size='65536'"), "\(size)")
            try server.stop()
        }
    }
}
