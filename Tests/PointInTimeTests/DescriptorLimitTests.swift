import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// A server that has no descriptors left (EMFILE), at a define, a begin and the start.
    @Suite struct DescriptorLimitTests {
        private static let blockBytes = 65_536

        private struct JobList: Decodable {
            struct Job: Decodable { let id: String }
            let jobs: [Job]
        }

        /// Lets a running server open so many descriptors more.
        private func allow(_ more: Int, _ server: ServerUnderTest) throws {
            let limit = server.descriptorCount + more
            try Command.run(
                "prlimit", ["--pid", "\(server.processID)", "--nofile=\(limit):"]
            ).output()
        }

        private func unlimit(_ server: ServerUnderTest) throws {
            try Command.run(
                "prlimit", ["--pid", "\(server.processID)", "--nofile=1024:"]
            ).output()
        }

        /// Fails unless a command has done its work, or says that descriptors were short.
        private func expectAnswer(_ result: CommandResult) {
            guard !result.succeeded else { return }
            #expect(
                result.status == 1 && result.stderr.contains("Too many open files"), "\(result)")
        }

        /// What there is but for what the test writes and the history of jobs.
        private func listing(_ server: ServerUnderTest) -> Set<String> {
            Set(
                server.directory.listing().filter {
                    !$0.hasPrefix("begin-") && !$0.hasPrefix("state/history/")
                })
        }

        @Test("P2: without descriptors a define and a begin are refused, and leave nothing behind")
        func refused() throws {
            let server = try ServerUnderTest(options: ["--rings", "1", "--max-connections", "20"])
            for name in ["vm1", "vm2"] {
                let path = server.directory.file(name)
                try Images.sparse(path, bytes: 8 << 20)
                try Files.write(
                    DomainDescription(name, [DiskDescription("vda", path)]).xml, to: path + ".xml")
            }
            try server.cli(["define", server.directory.file("vm1.xml")]).output()
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            // A call of the control socket takes its own.
            Thread.sleep(forTimeInterval: 0.2)
            let (files, descriptors) = (server.directory.listing(), server.descriptorCount)
            var counts = (refusedDefines: 0, refusedBegins: 0, begun: 0)
            let backup = server.standardBackup(disks: ["vda"], tag: "job")
            for more in 1...24 {
                let begin = try server.beginArguments("vm1", backup) + ["--json"]
                let kept = listing(server)
                try allow(more, server)
                let define = try server.cli(["define", server.directory.file("vm2.xml")])
                expectAnswer(define)
                let begun = try server.cli(begin)
                expectAnswer(begun)
                // The machine goes on, changes of new regions included.
                try guest.write([UInt8(more)], at: more * Self.blockBytes)
                try guest.flush()
                try unlimit(server)
                if begun.succeeded {
                    counts.begun += 1
                    try server.end("vm1", try BegunJob(json: begun.stdout))
                } else {
                    counts.refusedBegins += 1
                    #expect(try server.json(["backup-list"], as: JobList.self).jobs.isEmpty)
                }
                if define.succeeded {
                    // Untracked, it says so.
                    let details = try server.cli(["domblklist", "vm2", "--details"]).output()
                    let isTracked = !details.contains("Tracking Problem")
                    let checkpoint = try server.cli(["checkpoint-create-as", "vm2", "c1"])
                    #expect(checkpoint.succeeded == isTracked, "\(details) \(checkpoint)")
                    try server.cli(["undefine", "vm2", "--checkpoints-metadata"]).output()
                } else {
                    counts.refusedDefines += 1
                    #expect(!(try server.cli(["list"]).output()).contains("vm2"))
                }
                let left = listing(server).subtracting(kept)
                #expect(left.isEmpty, "\(more) more: \(left) left behind")
            }
            #expect(counts.refusedDefines > 0 && counts.refusedBegins > 0 && counts.begun > 0)
            #expect(Set(files).subtracting(server.directory.listing()).isEmpty)
            try guest.disconnect()
            Thread.sleep(forTimeInterval: 0.2)
            #expect(server.descriptorCount <= descriptors + 2)
            try expectDirty(Array(1...24), "vda", server)
            try server.stop()
        }

        @Test("P3: marks leave the write-intent log although no descriptor is left")
        func clearing() throws {
            let server = try ServerUnderTest(options: ["--rings", "1"])
            let path = server.directory.file("vm1")
            try Images.sparse(path, bytes: 8 << 20)
            try Files.write(
                DomainDescription("vm1", [DiskDescription("vda", path)]).xml, to: path + ".xml")
            try server.cli(["define", path + ".xml"]).output()
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            let name = try #require(
                server.directory.listing().first { $0.hasSuffix("/vda/intent") })
            let log = server.directory.file(name)
            let before = FileManager.default.contents(atPath: log)
            // A call of the control socket gives its own back in a moment.
            Thread.sleep(forTimeInterval: 0.2)
            try allow(0, server)
            let end = Date().addingTimeInterval(30)
            while FileManager.default.contents(atPath: log) == before, Date() < end {
                Thread.sleep(forTimeInterval: 0.2)
            }
            #expect(FileManager.default.contents(atPath: log) != before)
            try unlimit(server)
            #expect(try !server.cli(["event"]).output().contains("tracking-problem"))
            try server.stop()
        }

        /// Fails if a backup since `c1` can be had that calls one of the blocks clean.
        private func expectDirty(
            _ blocks: [Int], _ disk: String, _ server: ServerUnderTest
        ) throws {
            var backup = server.standardBackup(disks: [disk], tag: "inc-" + disk)
            backup.incremental = "c1"
            let begun = try server.cli(try server.beginArguments("vm1", backup) + ["--json"])
            guard begun.succeeded else {
                #expect(begun.stderr.contains("c1"), "\(begun)")
                return
            }
            let job = try BegunJob(json: begun.stdout)
            let context = "qemu:dirty-bitmap:" + (try job.export(disk).bitmap ?? "")
            let client = try NBDClient(try job.uri(disk), .contexts(context))
            let dirty = try client.map(context).filter(\.isDirty)
            for block in blocks {
                let offset = block * Self.blockBytes
                #expect(
                    dirty.contains { $0.offset <= offset && offset < $0.end },
                    "\(disk): block \(block) was written and is clean")
            }
            try client.disconnect()
            try server.end("vm1", job)
        }

        @Test(
            "P3: a disk that finds no descriptor for its tracking at a start is not believed later",
            arguments: [1, 1000])
        func start(failing count: Int) throws {
            let stride = RunSettings.isFullWalk ? 1 : 3
            var (step, untracked) = (1, 0)
            while step < 60 {
                let directory = try TemporaryDirectory()
                let path = directory.file("vda")
                try Images.sparse(path, bytes: 8 << 20)
                let plan = try FaultPlan(under: directory.path + "/state/disks")
                let server = try ServerUnderTest(
                    [DomainDescription("vm1", [DiskDescription("vda", path)])],
                    options: ["--rings", "1"], in: directory, environment: plan.environment)
                try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
                try server.stop()
                try plan.arm(.fails(errno: EMFILE, count: count), at: step)
                try server.start()
                let told = server.stderr
                // The machine is served, tracked or not.
                let guest = try NBDClient(server.liveURI("vm1", "vda"))
                try guest.write([1], at: 3 * Self.blockBytes)
                try guest.disconnect()
                if told.contains("Too many open files") {
                    untracked += 1
                    let details = try server.cli(["domblklist", "vm1", "--details"]).output()
                    #expect(details.contains("Tracking Problem"), "\(details)")
                }
                let steps = plan.disarm()
                if step % 2 == 0 { try server.stop() } else { server.kill() }
                try server.start()
                try expectDirty([3], "vda", server)
                try server.stop()
                if steps < step { break }
                step += stride
            }
            #expect(untracked > 0 && step > 3)
        }
    }
}
