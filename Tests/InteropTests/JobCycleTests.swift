import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// What a server holds after very many jobs is what it holds after a few.
    @Suite struct JobCycleTests {
        /// What a process holds of everything that runs out.
        private struct Holdings: CustomStringConvertible {
            let mappings: Int
            let threads: Int
            let descriptors: Int
            let addressBytes: Int
            let memoryBytes: Int

            init(of server: ServerUnderTest) {
                let process = "/proc/\(server.processID)"
                mappings = Files.read(process + "/maps").split(separator: "\n").count
                threads = server.threads.count
                descriptors = server.descriptorCount
                let pages = Files.read(process + "/statm").split(separator: " ").first
                addressBytes = (pages.flatMap { Int($0) } ?? 0) << 12
                memoryBytes = server.memoryBytes
            }

            var description: String {
                "\(mappings) mappings, \(threads) threads, \(descriptors) descriptors,"
                    + " \(addressBytes >> 20) MiB of addresses, \(memoryBytes >> 20) MiB of memory"
            }
        }

        private func run(_ server: ServerUnderTest, _ jobs: Int, _ mode: [String] = []) throws {
            let script = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().appending(path: "clients/job-cycles").path
            try Command.run(
                "python3", [script, server.controlSocket, "vm1", "\(jobs)"] + mode, timeout: 300
            ).output()
        }

        private func settled(_ server: ServerUnderTest) -> Holdings {
            Thread.sleep(forTimeInterval: 0.5)
            return Holdings(of: server)
        }

        @Test("P6: a begin that is refused at its last step leaves no thread and no scratch behind")
        func refused() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            var jobs = 0
            while try server.cli(["backup-begin", "vm1"]).succeeded, jobs < 64 { jobs += 1 }
            let before = settled(server)
            for _ in 0..<30 {
                let result = try server.cli(["backup-begin", "vm1"])
                #expect(result.stderr.contains("jobs at once on a disk"), "\(result)")
            }
            let after = settled(server)
            let text = "before: \(before)\nafter: \(after)"
            #expect(after.threads < before.threads + 12, "\(text)")
            #expect(after.descriptors < before.descriptors + 12, "\(text)")
            try server.stop()
        }

        @Test(
            "P6: a thousand jobs leave no mapping, thread, descriptor or memory behind",
            arguments: [(1000, []), (200, ["checkpoint"])])
        func jobs(count: Int, mode: [String]) throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            try run(server, count / 5, mode)
            let before = settled(server)
            try run(server, count, mode)
            let after = settled(server)
            let text = "before: \(before)\nafter: \(after)"
            #expect(after.mappings < before.mappings + 40, "\(text)")
            #expect(after.threads < before.threads + 8, "\(text)")
            #expect(after.descriptors < before.descriptors + 8, "\(text)")
            #expect(after.addressBytes < before.addressBytes + (256 << 20), "\(text)")
            #expect(after.memoryBytes < before.memoryBytes + (12 << 20), "\(text)")
            try server.stop()
        }
    }
}
