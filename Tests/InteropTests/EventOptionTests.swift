import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// `nbdpull event` as its users call it.
    @Suite struct EventOptionTests {
        private struct Events: Decodable {
            struct Event: Decodable {
                let event: String
                let domain: String?
            }
            let events: [Event]
        }

        private func makeServer() throws -> ServerUnderTest {
            let server = try ServerUnderTest()
            for name in ["vm1", "vm2"] {
                let path = server.directory.file(name)
                try Images.sparse(path, bytes: 1 << 20)
                let file = server.directory.file(name + ".xml")
                try Files.write(
                    DomainDescription(name, [DiskDescription("vda", path)]).xml, to: file)
                try server.cli(["define", file]).output()
            }
            return server
        }

        /// Has something happen until a command that waits has seen it.
        private func untilEnded(
            _ command: Command, seconds: Double = 20, _ happen: (Int) throws -> Void
        ) throws -> CommandResult {
            let deadline = Date().addingTimeInterval(seconds)
            var round = 0
            while command.isRunning, Date() < deadline {
                round += 1
                try happen(round)
            }
            return try command.result(timeout: 5)
        }

        private func makeCheckpoint(_ server: ServerUnderTest, of domain: String, _ round: Int)
            throws
        {
            try server.cli(["checkpoint-create-as", domain, "c\(round)"]).output()
        }

        @Test("past events are shown whole, by domain, by uuid, and as JSON")
        func past() throws {
            let server = try makeServer()
            let all = try server.cli(["event"]).output()
            #expect(all.contains("domain=vm1") && all.contains("domain=vm2"))
            let one = try server.cli(["event", "--domain", "vm2"]).output()
            #expect(one.contains("domain=vm2") && !one.contains("domain=vm1"))
            struct Domains: Decodable {
                struct Domain: Decodable {
                    let domain: String
                    let uuid: String
                }
                let domains: [Domain]
            }
            let known = try server.json(["list"], as: Domains.self).domains
            let uuid = try #require(known.first { $0.domain == "vm2" }).uuid
            #expect(try server.cli(["event", "--domain", uuid]).output() == one)
            let events = try server.json(["event", "--domain", "vm2"], as: Events.self).events
            #expect(events.map(\.event) == ["domain-defined", "disk-attached"])
            #expect(events.allSatisfy { $0.domain == "vm2" })
            // A domain that is gone had events, too.
            try server.cli(["undefine", "vm2"]).output()
            #expect(
                try server.cli(["event", "--domain", "vm2"]).output().contains("domain-undefined"))
            try server.stop()
        }

        @Test("the kinds are listed; one that there is not is refused with what is like it")
        func kinds() throws {
            let server = try makeServer()
            let kinds = try server.cli(["event", "--list"]).output().split(separator: "\n")
            #expect(kinds.contains("job-end") && kinds.contains("tracking-problem"))
            #expect(kinds == kinds.sorted())
            let refused = try server.cli(["event", "--event", "job-ended"])
            #expect(
                refused.status == 64 && refused.stderr.contains("Unknown event 'job-ended'")
                    && refused.stderr.contains("job-end"), "\(refused)")
            let both = try server.cli(["event", "--all", "--event", "job-end"])
            #expect(both.status == 64 && both.stderr.contains("exclude each other"), "\(both)")
            for kind in kinds {
                let waits = try server.cli(["event", "--event", String(kind), "--timeout", "0"])
                #expect(waits.succeeded && waits.stdout.isEmpty, "\(waits)")
            }
            try server.stop()
        }

        @Test("--event waits for one of its kind, --all for any; neither shows what was before")
        func waits() throws {
            let server = try makeServer()
            let one = try untilEnded(
                try server.startCLI(
                    ["event", "--domain", "vm1", "--event", "checkpoint-created", "--timestamp"])
            ) { round in
                try makeCheckpoint(server, of: "vm2", round)
                try makeCheckpoint(server, of: "vm1", round)
            }
            let lines = try one.output().split(separator: "\n")
            #expect(
                lines.count == 1 && lines[0].contains("checkpoint-created domain=vm1"), "\(one)")
            let any = try untilEnded(try server.startCLI(["event", "--all", "--json"])) { round in
                try makeCheckpoint(server, of: "vm2", 1000 + round)
            }
            let event = try JSONDecoder().decode(
                Events.Event.self, from: Data(try any.output().utf8))
            #expect(event.event == "checkpoint-created" && event.domain == "vm2")
            // virsh's name of what happens at a job's end.
            let job = try untilEnded(
                try server.startCLI(["event", "--event", "job-completed"])
            ) { round in
                let begun = try server.begin("vm1", disks: ["vda"], tag: "j\(round)")
                try server.end("vm1", begun)
            }
            #expect(try job.output().contains("job-end domain=vm1"), "\(job)")
            try server.stop()
        }

        @Test("--follow shows what was and goes on, --loop goes on, --timeout ends both")
        func goesOn() throws {
            let server = try makeServer()
            let follow = try server.startCLI(["event", "--follow"])
            let loop = try server.startCLI(["event", "--loop", "--timeout", "3"])
            try follow.wait(for: "past events") { $0.stdout.contains("domain-defined domain=vm2") }
            let result = try untilEnded(loop) { round in
                try makeCheckpoint(server, of: "vm1", round)
                Thread.sleep(forTimeInterval: 0.2)
            }
            let shown = try result.output()
            #expect(!shown.contains("domain-defined"))
            #expect(shown.split(separator: "\n").count > 1, "\(shown)")
            try follow.wait(for: "new events") { $0.stdout.contains("checkpoint c1") }
            #expect(follow.isRunning)
            let short = try server.cli(["event", "--event", "job-end", "--timeout", "1"])
            #expect(short.succeeded && short.stdout.isEmpty)
            // A server that goes ends those who follow it.
            try server.stop()
            #expect(try follow.result(timeout: 10).status != 128 + 9)
        }

        @Test("a standard error that nobody reads does not keep the server from its end")
        func unreadLog() throws {
            let server = try makeServer()
            try server.stop()
            let pipe = server.directory.file("pipe")
            try Command.run("mkfifo", [pipe]).output()
            // Somebody has it open, and never reads.
            let holder = try Command("bash", ["-c", "exec 3<>'\(pipe)'; echo open; sleep 600"])
            try holder.wait(for: "pipe") { $0.stdout.contains("open") }
            let process = try Command(
                "bash",
                [
                    "-c", "exec \"$@\" 2>'\(pipe)'", "bash", try ServerUnderTest.binary(), "serve",
                    "--state-dir", server.stateDirectory, "--run-dir", server.runDirectory,
                ])
            try process.wait(for: "socket") { _ in Files.exists(server.controlSocket) }
            // Names make the lines long: a pipe holds 64 KiB.
            for round in 0..<160 {
                let name = "c\(round)-" + String(repeating: "x", count: 200)
                try server.cli(["checkpoint-create-as", "vm1", name]).output()
                try server.cli(["checkpoint-delete", "vm1", name]).output()
            }
            try NBDClient(server.liveURI("vm1", "vda")).write([1], at: 0)
            process.terminate()
            let result = try process.result(timeout: 30)
            #expect(result.succeeded, "\(result)")
            holder.kill()
        }
    }
}
