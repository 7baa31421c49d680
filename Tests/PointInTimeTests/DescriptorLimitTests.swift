import Foundation
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
                let kept = server.directory.listing().filter { !$0.hasPrefix("begin-") }
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
                let left = server.directory.listing().filter { !$0.hasPrefix("begin-") }
                #expect(Set(left).subtracting(kept).isEmpty, "\(more) more: left behind")
            }
            #expect(counts.refusedDefines > 0 && counts.refusedBegins > 0 && counts.begun > 0)
            #expect(Set(files).subtracting(server.directory.listing()).isEmpty)
            try guest.disconnect()
            Thread.sleep(forTimeInterval: 0.2)
            #expect(server.descriptorCount <= descriptors + 2)
            try expectDirty(Array(1...24), "vda", server)
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
            "P3: disks that find no descriptors for their tracking at a start are not believed later"
        )
        func start() throws {
            let letters = Array("abcdefghij")
            let targets = (0..<40).map { "vd\(letters[$0 / 10])\(letters[$0 % 10])" }
            let directory = try TemporaryDirectory()
            var disks: [DiskDescription] = []
            for target in targets {
                try Images.sparse(directory.file(target), bytes: 8 << 20)
                disks.append(DiskDescription(target, directory.file(target)))
            }
            let server = try ServerUnderTest(
                [DomainDescription("vm1", disks)],
                options: ["--rings", "1", "--max-connections", "1"], in: directory)
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            let full = server.descriptorCount
            var untracked = 0
            for limit in stride(from: full - 90, through: full + 10, by: 25) {
                try server.stop()
                server.launcher = ["prlimit", "--nofile=\(limit):\(limit)"]
                do {
                    try server.start()
                } catch {
                    // So few that it does not even start, and says so.
                    #expect("\(error)".contains("descriptors"), "\(error)")
                    server.launcher = []
                    try server.start()
                    continue
                }
                for target in targets {
                    // One that could not even be opened has no export.
                    guard let guest = try? NBDClient(server.liveURI("vm1", target)) else {
                        continue
                    }
                    try guest.write([1], at: 3 * Self.blockBytes)
                    try guest.disconnect()
                }
                let events = try server.cli(["event"]).output()
                untracked += events.components(separatedBy: "Too many open files").count - 1
                try server.stop()
                server.launcher = []
                try server.start()
                for target in targets.prefix(30).shuffled().prefix(6) + targets.suffix(10) {
                    try expectDirty([3], target, server)
                }
                _ = try server.cli(["checkpoint-delete", "vm1", "c1"])
                try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            }
            #expect(untracked > 0)
            try server.stop()
        }
    }
}
