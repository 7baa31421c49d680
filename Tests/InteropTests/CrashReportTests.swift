import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// A server that crashed is reported by the next one, and what crashes it again and again is
    /// set aside.
    @Suite struct CrashReportTests {
        /// Two machines, and a library that crashes the server when it opens a chosen file.
        private final class Rig {
            let directory: TemporaryDirectory
            let plan: FaultPlan
            let server: ServerUnderTest
            let bad: String

            /// `poison`: the file's name in the directory; the server itself has the library, or
            /// only those that are started with it.
            init(_ poison: String, isServersOwn: Bool = true) throws {
                directory = try TemporaryDirectory()
                bad = directory.file(poison)
                plan = try FaultPlan(under: bad)
                var domains: [DomainDescription] = []
                for name in ["good", "bad"] {
                    let path = directory.file(name + ".img")
                    _ = try Images.random(path, bytes: 1 << 20, seed: 4)
                    domains.append(DomainDescription(name, [DiskDescription("vda", path)]))
                }
                server = try ServerUnderTest(
                    domains, in: directory, environment: isServersOwn ? plan.environment : [:])
            }

            /// Starts the server, which crashes, a number of times.
            func crash(times: Int) throws {
                try plan.arm(.crashes, at: 1)
                for _ in 0..<times {
                    #expect(throws: (any Error).self) { try server.start() }
                    server.kill()
                }
            }

            var reports: [String] {
                Files.listing(server.stateDirectory + "/crashes").filter { $0.hasSuffix(".txt") }
            }
        }

        @Test("a crash is reported by the next server: the thread, and the request that it was at")
        func report() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            _ = try Images.random(path, bytes: 1 << 20, seed: 4)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--rings", "1"], in: directory)
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 7, count: 4096), at: 65536)
            try crash(server)
            try server.start()
            let said = server.stderr
            #expect(said.contains("the last server crashed: SIGILL"), "\(said)")
            #expect(said.contains("nbdpull-ring-0"), "\(said)")
            let place = server.stateDirectory + "/crashes"
            let name = try #require(Files.listing(place).first { $0.hasSuffix(".txt") })
            let text = Files.read(place + "/" + name)
            for part in ["SIGILL", "thread: nbdpull-ring-0", "nbdpull \(Self.version)"] {
                #expect(text.contains(part), "\(text)")
            }
            // The clock may have ticked since the request was done.
            #expect(text.contains("disk vm1/vda") || text.contains("tick"), "\(text)")
            #expect(Files.listing(place).filter { $0.hasSuffix(".txt") }.count == 1)
            // A kill is no crash, and an orderly end neither.
            server.kill()
            try server.start()
            #expect(!server.stderr.contains("crashed"), "\(server.stderr)")
            try server.stop()
            try server.start()
            #expect(!server.stderr.contains("crashed"), "\(server.stderr)")
            try server.stop()
        }

        private static let version = "0.1.0"

        /// The ring for machines executes what is no instruction.
        private func crash(_ server: ServerUnderTest) throws {
            let ring = try #require(server.threads.first { $0.name == "nbdpull-ring-0" })
            let call = "ctypes.CDLL(None).syscall(234, \(server.processID), \(ring.id), 4)"
            try Command.run("python3", ["-c", "import ctypes; " + call]).output()
            let end = Date(timeIntervalSinceNow: 10)
            while server.isRunning, Date() < end { Thread.sleep(forTimeInterval: 0.01) }
            #expect(!server.isRunning)
            server.kill()
        }

        @Test("a newcomer that was refused has taken nothing from the report of a later crash")
        func refusedNewcomer() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            _ = try Images.random(path, bytes: 1 << 20, seed: 4)
            let plan = try FaultPlan(under: "/dev/shm/nbdpull-\(geteuid())")
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--rings", "1"], in: directory, environment: plan.environment)
            // Nothing of this job is in memory, so it would not outlive the server.
            try plan.arm(.fails(errno: ENOSPC, count: 1000), at: 1)
            let job = try server.begin("vm1", disks: ["vda"], tag: "r")
            plan.disarm()
            let refused = try server.startNewcomer().result(timeout: 30)
            #expect(refused.status == 1, "\(refused)")
            #expect(refused.stderr.contains("'\(job.id)' cannot outlive"), "\(refused)")
            try crash(server)
            try server.start()
            #expect(server.stderr.contains("the last server crashed: SIGILL"), "\(server.stderr)")
            try server.stop()
        }

        @Test("P2: newcomers that crash over a disk set nothing aside, and all is served on")
        func newcomers() throws {
            let rig = try Rig("bad.img", isServersOwn: false)
            try rig.plan.arm(.crashes, at: 1)
            let said = "the last server crashed"
            for time in 1...3 {
                let newcomer = try rig.server.startNewcomer(environment: rig.plan.environment)
                let result = try newcomer.result(timeout: 30)
                #expect(!result.succeeded, "\(result)")
                // Told by the server that goes on.
                let end = Date(timeIntervalSinceNow: 20)
                while rig.server.stderr.components(separatedBy: said).count <= time, Date() < end {
                    Thread.sleep(forTimeInterval: 0.02)
                }
            }
            #expect(rig.server.stderr.components(separatedBy: said).count == 4)
            let list = try rig.server.cli(["domblklist", "bad"]).output()
            #expect(!list.contains("set aside"), "\(list)")
            for name in ["good", "bad"] {
                _ = try NBDClient(rig.server.liveURI(name, "vda")).read(0, 4096)
            }
            #expect(!rig.reports.isEmpty)
            try rig.server.stop()
        }

        @Test("P2: a disk that crashes the server three times is set aside, others are served")
        func disk() throws {
            let rig = try Rig("bad.img")
            rig.server.kill()
            try rig.crash(times: 2)
            // A start without a crash begins anew.
            rig.plan.disarm()
            try rig.server.start()
            rig.server.kill()
            try rig.crash(times: 3)
            try rig.server.start()
            #expect(rig.server.stderr.contains("set aside"), "\(rig.server.stderr)")
            let list = try rig.server.cli(["domblklist", "bad"]).output()
            #expect(list.contains("set aside: the server crashed 3 times in a row"), "\(list)")
            _ = try NBDClient(rig.server.liveURI("good", "vda")).read(0, 4096)
            #expect(throws: NBDFailure.self) { try NBDClient(rig.server.liveURI("bad", "vda")) }
            let events = try rig.server.cli(["event"]).output()
            #expect(events.contains("set-aside") && events.contains("export=bad/vda"), "\(events)")
            #expect(rig.reports.count == 5)
            // It stays so, and the text says how it comes back.
            try rig.server.stop()
            try rig.server.start()
            let again = try rig.server.cli(["domblklist", "bad"]).output()
            let file = try #require(
                again.split(separator: "'").map(String.init).first { $0.hasSuffix(".state") })
            try rig.server.stop()
            rig.plan.disarm()
            Files.remove(file)
            try rig.server.start()
            _ = try NBDClient(rig.server.liveURI("bad", "vda")).read(0, 4096)
            try rig.server.stop()
        }

        @Test("P2: a job that crashes the server three times in a row fails, its disk is served")
        func job() throws {
            let rig = try Rig("scratch-r-vda")
            let job = try rig.server.begin("bad", disks: ["vda"], tag: "r", checkpoint: "c1")
            rig.server.kill()
            try rig.crash(times: 3)
            try rig.server.start()
            let ended = try rig.server.cli(
                ["domjobinfo", "bad", "--completed", "--job", job.id]
            ).output()
            #expect(
                ended.contains("Failed") && ended.contains("crashed 3 times in a row"), "\(ended)")
            #expect(!Files.exists(rig.bad))
            for name in ["good", "bad"] {
                _ = try NBDClient(rig.server.liveURI(name, "vda")).read(0, 4096)
            }
            let checkpoints = try rig.server.cli(["checkpoint-list", "bad", "--name"]).output()
            #expect(!checkpoints.contains("c1"))
            rig.plan.disarm()
            try rig.server.stop()
        }
    }
}
