import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// What somebody sees who types commands, writes a configuration or speaks HTTP.
    @Suite struct CommandLineTests {
        private struct Failure: Decodable {
            struct Detail: Decodable {
                let code: String
                let libvirtCode: Int
                let message: String
            }
            let error: Detail
        }

        private struct Ended: Decodable {
            struct Job: Decodable {
                let outcome: String
                let checkpointKept: Bool?
            }
            let jobs: [Job]
        }

        private func failure(_ result: CommandResult) throws -> Failure.Detail {
            #expect(result.stdout.isEmpty)
            return try JSONDecoder().decode(Failure.self, from: Data(result.stderr.utf8)).error
        }

        private func http(_ server: ServerUnderTest, _ arguments: [String]) throws -> String {
            let path = arguments.last ?? ""
            return try Command.run(
                "curl",
                ["-s", "-i", "--max-time", "20", "--unix-socket", server.controlSocket]
                    + arguments.dropLast() + ["http://localhost" + path]
            ).output()
        }

        private func checkpoints(_ server: ServerUnderTest) throws -> [String] {
            try server.cli(["checkpoint-list", "vm1", "--name"]).output()
                .split(whereSeparator: \.isWhitespace).map(String.init)
        }

        @Test("a guest that nobody can freeze is told of, by every door, and nothing is begun")
        func quiesce() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let words = "QEMU guest agent is not configured"
            for command in ["backup-begin", "checkpoint-create", "checkpoint-create-as"] {
                let result = try server.cli([command, "vm1", "--quiesce"])
                #expect(result.status == 1 && result.stderr.contains(words), "\(result)")
            }
            let json = ["-X", "POST", "-H", "content-type: application/json", "-d"]
            let asked = [
                ("{\"quiesce\":true}", "/v1/domains/vm1/jobs"),
                ("{}", "/v1/domains/vm1/jobs?quiesce=true"),
                (
                    "{\"xml\":\"<domaincheckpoint/>\"}",
                    "/v1/domains/vm1/checkpoints?quiesce=true"
                ),
            ]
            for (body, path) in asked {
                let answer = try http(server, json + [body, path])
                #expect(answer.contains("422") && answer.contains(words), "\(answer)")
            }
            #expect(try server.cli(["backup-list", "-q"]).output().isEmpty)
            #expect(try checkpoints(server).isEmpty)
            let both = try server.cli(["checkpoint-create", "vm1", "--quiesce", "--redefine"])
            #expect(both.stderr.contains("--quiesce excludes --redefine"), "\(both)")
        }

        @Test("P3: a job cut off and a failed verdict take the checkpoint back, an abort keeps it")
        func verdicts() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            func begin(_ name: String) throws {
                _ = try server.begin("vm1", disks: ["vda"], tag: name, checkpoint: name)
            }
            try begin("c1")
            let early = try server.cli(["backup-begin", "vm1"], input: "")
            #expect(early.succeeded, "\(early)")
            let ids = try server.cli(["backup-list", "vm1", "-q"]).output()
                .split(separator: "\n")
                .compactMap { $0.split(separator: " ").first.map(String.init) }
            #expect(ids.count == 2)
            for id in ids {
                #expect(try server.cli(["backup-end", "vm1", "--job", id]).status == 0)
            }
            try begin("c2")
            #expect(try server.cli(["domjobabort", "vm1"]).status == 0)
            try begin("c3")
            #expect(try server.cli(["backup-end", "vm1", "--failed"]).status == 0)
            #expect(try checkpoints(server) == ["c1", "c2"])
            try begin("c4")
            let listed = try server.cli(["backup-list", "vm1", "-q"]).output()
            let job = String(try #require(listed.split(separator: " ").first))
            server.kill()
            // With what it keeps in memory the job would go on; a loss of power takes that as well.
            _ = try Command.run(
                "sh", ["-c", "rm /dev/shm/nbdpull-$(id -u)/jobs-*/\(job).*"]
            ).output()
            try server.start()
            for _ in 0..<100 where try checkpoints(server) != ["c1", "c2"] { usleep(100_000) }
            #expect(try checkpoints(server) == ["c1", "c2"])
            let refused = try server.cli(
                ["backup-begin", "vm1", "-", "--json"],
                input: "<domainbackup mode='pull'><incremental>c4</incremental>"
                    + "<server transport='unix' socket='\(server.runDirectory)/i.sock'/>"
                    + "</domainbackup>")
            #expect(refused.status == 1)
            #expect(try failure(refused).libvirtCode == 103)
            let past = try server.json(["backup-list", "vm1", "--completed"], as: Ended.self)
            #expect(
                past.jobs.map(\.outcome)
                    == ["completed", "completed", "aborted", "failed", "failed"])
            #expect(past.jobs.last?.checkpointKept == false)
            let again = try server.json(["backup-list", "vm1", "--completed"], as: Ended.self)
            #expect(again.jobs.count == past.jobs.count)
            try begin("c5")
            try server.stop()
            try server.start()
            #expect(try checkpoints(server) == ["c1", "c2"])
            try server.stop()
        }

        @Test("P3: ending a job that broke exits 1, and its checkpoint goes however it is ended")
        func broken() throws {
            let small = try TinyFileSystem(mebibytes: 8)
            let fixture = try LiveFixture(bytes: 64 << 20)
            let server = fixture.server
            let guest = try NBDClient(fixture.uri("vda"))
            for (verb, status) in [("backup-end", Int32(1)), ("domjobabort", 0)] {
                var backup = server.standardBackup(disks: ["vda"], tag: verb)
                backup.disks[0].scratch = small.path + "/scratch"
                _ = try server.begin("vm1", backup, checkpoint: "bad")
                for mebibyte in 0..<64 {
                    try guest.write(
                        randomBytes(1 << 20, seed: UInt64(mebibyte)), at: mebibyte << 20)
                }
                var list = ""
                for _ in 0..<100 where !list.contains("space") {
                    list = try server.cli(["backup-list", "vm1"]).output()
                    Thread.sleep(forTimeInterval: 0.1)
                }
                #expect(list.contains("space"), "\(list)")
                let ended = try server.cli([verb, "vm1"])
                #expect(ended.status == status, "\(ended)")
                #expect(ended.stderr.contains("space"), "\(ended)")
                #expect(try server.cli(["backup-list", "vm1", "-q"]).output().isEmpty)
                #expect(try checkpoints(server).isEmpty)
            }
            try server.stop()
        }

        @Test("P3: a job whose time is over takes its checkpoint back")
        func expired() throws {
            let fixture = try LiveFixture()
            let file = fixture.directory.file("c.xml")
            try Files.write(checkpointXML("late"), to: file)
            _ = try fixture.server.cli(
                ["backup-begin", "vm1", "--checkpointxml", file, "--ttl", "1"]
            ).output()
            #expect(try checkpoints(fixture.server) == ["late"])
            Thread.sleep(forTimeInterval: 2.5)
            #expect(try checkpoints(fixture.server).isEmpty)
            try fixture.server.stop()
        }

        @Test(
            "a key, value or variable that means nothing is refused, with its nearest neighbour",
            arguments: [
                ("c.yaml", "tls-cert: /x\n", "", "did you mean 'tls-certs'?"),
                ("c.json", "{\"tlscerts\": \"/x\"}", "", "did you mean 'tls-certs'?"),
                ("c.yaml", "state-dri:\n", "", "did you mean 'state-dir'?"),
                ("c.yaml", "tls:\n  certs: /x\n", "", "setting 'tls"),
                ("c.yaml", "rings: many\n", "", "rings"),
                ("c.json", "{\"allow-plaintext\": 7}", "", "allow-plaintext"),
                ("c.yaml", "tls-certs:\n", "", "it is empty"),
                ("c.json", "{\"tls-certs\": null}", "", "has no value"),
                ("c.json", "{\"rings\": true}", "", "it must be a number"),
                ("c.json", "{\"run-dir\": 5}", "", "it must be a text"),
                ("c.yaml", "log-level: loud\n", "", "it must be one of"),
                ("c.yaml", "quiet: true\n", "NBDPULL_TLS_CERT=/x", "'NBDPULL_TLS_CERTS'?"),
                ("c.yaml", "quiet: true\n", "NBDPULL_RINGS=", "rings"),
                ("c.yaml", "lend-pages: true\n", "", "this setting is gone"),
                ("c.json", "{\"lend-pages\": false}", "", "this setting is gone"),
                ("c.yaml", "quiet: true\n", "NBDPULL_LEND_PAGES=true", "this setting is gone"),
            ])
        func configuration(name: String, text: String, variable: String, words: String) throws {
            let directory = try TemporaryDirectory()
            let file = directory.file(name)
            try Files.write(text, to: file)
            let parts = variable.split(separator: "=", omittingEmptySubsequences: false)
            let result = try Command(
                try ServerUnderTest.binary(),
                [
                    "serve", "--config", file, "--run-dir", directory.file("run"), "--state-dir",
                    directory.file("state"),
                ],
                environment: parts.count == 2 ? [String(parts[0]): String(parts[1])] : [:]
            ).result(timeout: 20)
            #expect(result.status == 1, "\(result)")
            #expect(result.stderr.contains(words), "\(result)")
            #expect(!result.stderr.contains("ready"))
        }

        @Test("variables that Kubernetes sets for a service of that name are no settings")
        func serviceVariables() throws {
            let directory = try TemporaryDirectory()
            let result = try Command(
                try ServerUnderTest.binary(),
                [
                    "serve", "--run-dir", directory.file("run"), "--state-dir",
                    directory.file("state"),
                ],
                environment: [
                    "NBDPULL_SERVICE_HOST": "10.0.0.1", "NBDPULL_SERVICE_PORT": "10809",
                    "NBDPULL_SERVICE_PORT_NBD": "10809", "NBDPULL_PORT": "tcp://10.0.0.1:10809",
                    "NBDPULL_PORT_10809_TCP": "tcp://10.0.0.1:10809",
                    "NBDPULL_PORT_10809_TCP_ADDR": "10.0.0.1",
                    // Looked at last, and still refused.
                    "NBDPULL_ZONE": "x",
                ]
            ).result(timeout: 20)
            #expect(result.status == 1, "\(result)")
            #expect(result.stderr.contains("NBDPULL_ZONE"), "\(result)")
        }

        @Test("an option of an earlier version is refused, with what became of it")
        func goneOption() throws {
            let directory = try TemporaryDirectory()
            let result = try Command(
                try ServerUnderTest.binary(),
                [
                    "serve", "--lend-pages", "--run-dir", directory.file("run"), "--state-dir",
                    directory.file("state"),
                ]
            ).result(timeout: 20)
            #expect(result.status == 1, "\(result)")
            #expect(result.stderr.contains("--lend-pages: this setting is gone"), "\(result)")
            let help = try Command(try ServerUnderTest.binary(), ["serve", "--help"]).result()
            #expect(!help.stdout.contains("lend-pages"), "\(help)")
        }

        @Test("virsh's spellings work beside ours, and a uuid for a name")
        func spellings() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let directory = fixture.directory
            let backup = directory.file("b.xml")
            try Files.write(
                "<domainbackup mode='pull'><server transport='unix' "
                    + "socket='\(server.runDirectory)/b.sock'/></domainbackup>", to: backup)
            let checkpoint = directory.file("c.xml")
            try Files.write("<domaincheckpoint><name>x1</name></domaincheckpoint>", to: checkpoint)
            let other = directory.file("d.xml")
            try Files.write(
                "<domain><name>vm2</name></domain>", to: other)
            let extra = directory.file("extra.raw")
            try Images.sparse(extra, bytes: 1 << 20)
            let device = directory.file("device.xml")
            try Files.write(
                "<disk type='file' device='disk'><driver type='raw' cache='none'/>"
                    + "<source file='\(extra)'/><target dev='vdx'/></disk>", to: device)
            let uuid = try server.cli(["list", "--uuid"]).output()
                .trimmingCharacters(in: .whitespacesAndNewlines)
            for arguments in [
                ["define", "--file", other], ["list", "--all"], ["list", "--all", "--name"],
                ["list", "--inactive"], ["undefine", "--domain", "vm2"],
                ["domblklist", "--domain", "vm1", "--details"], ["dumpxml", "--domain", uuid],
                ["backup-begin", "--domain", "vm1", "--backupxml", backup],
                ["domjobinfo", "--domain", "vm1"], ["domjobinfo", uuid, "--rawstats"],
                ["backup-dumpxml", "--domain", "vm1"], ["domjobabort", "--domain", uuid],
                ["backup-begin", "vm1", backup, "--checkpointxml", checkpoint],
                ["backup-end", "--domain", "vm1"],
                ["checkpoint-create-as", "vm1", "x2", "what it is for"],
                ["checkpoint-delete", "vm1", "x1"],
                ["checkpoint-create", "--domain", "vm1", "--xmlfile", checkpoint],
                ["checkpoint-info", "--domain", "vm1", "--checkpointname", "x2"],
                ["checkpoint-info", "--domain", uuid, "x2"],
                ["checkpoint-dumpxml", "vm1", "--checkpointname", "x2"],
                ["checkpoint-parent", uuid, "x1"], ["checkpoint-list", "--domain", uuid],
                ["checkpoint-delete", "--domain", "vm1", "--checkpointname", "x2"],
                [
                    "attach-disk", "--domain", "vm1", "--source", extra, "--target", "vdx",
                    "--persistent",
                ],
                ["blockresize", "--domain", "vm1", "--path", "vdx", "--size", "4M"],
                ["blockresize", "vm1", "--path", "vdx", "8M"],
                ["update-device", "--domain", "vm1", "--file", device],
                ["detach-disk", "--domain", uuid, "--target", "vdx"],
                ["attach-device", "--domain", "vm1", "--file", device],
                ["detach-disk", "vm1", "vdx"],
                ["attach-disk", "vm1", extra, "sda", "--type", "cdrom", "--mode", "readonly"],
                ["change-media", "--domain", "vm1", "--path", "sda", "--eject"],
                ["change-media", "--domain", "vm1", "--path", "sda", "--source", extra],
                ["detach-disk", "vm1", "--target", "sda"],
            ] {
                let result = try server.cli(arguments)
                #expect(result.succeeded, "\(arguments): \(result)")
            }
            #expect(
                try server.cli(["list", "--all", "--name"]).output()
                    .trimmingCharacters(in: .whitespacesAndNewlines) == "vm1")
            #expect(!(try server.cli(["list", "--inactive"]).output().contains("vm1")))
            try server.stop()
        }

        @Test("with --json an error is JSON on standard error, usage errors too")
        func errors() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let unknown = try server.cli(["dumpxml", "nobody", "--json"])
            #expect(unknown.status == 1)
            #expect(try failure(unknown).code == "domain-not-found")
            #expect(try failure(unknown).libvirtCode == 42)
            for arguments in [
                ["dumpxml", "--json"], ["no-such-command", "--json"],
                ["list", "--no-such-option", "--json"], ["domjobinfo", "a", "b", "--json"],
            ] {
                let result = try server.cli(arguments)
                #expect(result.status == 64, "\(result)")
                #expect(try failure(result).code == "usage")
            }
            let plain = try server.cli(["dumpxml", "nobody"])
            #expect(plain.stderr.hasPrefix("error: Domain not found"))
            try server.stop()
        }

        @Test("HTTP answers HEAD and 405 with Allow, and refuses what means nothing")
        func http() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let head = try http(server, ["--head", "/v1/domains"])
            #expect(head.hasPrefix("HTTP/1.1 200"))
            let wrong = try http(server, ["-X", "PUT", "/v1/domains/vm1"])
            #expect(wrong.hasPrefix("HTTP/1.1 405"))
            #expect(wrong.lowercased().contains("allow: get, head, delete"))
            #expect(wrong.contains("\"code\""))
            #expect(try http(server, ["-X", "PUT", "/v1/nowhere"]).hasPrefix("HTTP/1.1 404"))
            #expect(try http(server, ["/v1/domains/vm1"]).contains("\"uuid\""))
            #expect(try http(server, ["/v1/domains/no"]).hasPrefix("HTTP/1.1 404"))
            let query = try http(server, ["/v1/jobs?complete=true"])
            #expect(query.hasPrefix("HTTP/1.1 400"))
            #expect(query.contains("did you mean 'completed'?"))
            let twice = try http(server, ["/v1/jobs?completed=true&completed=false"])
            #expect(twice.hasPrefix("HTTP/1.1 400"))
            let body = try http(
                server,
                [
                    "-X", "POST", "-H", "Content-Type: application/json", "-d",
                    #"{"backupXml":"x"}"#, "/v1/domains/vm1/jobs",
                ])
            #expect(body.hasPrefix("HTTP/1.1 400"))
            #expect(body.contains("did you mean 'backupXML'?"))
            #expect(try http(server, ["/readyz"]).hasPrefix("HTTP/1.1 200"))
            try server.stop()
        }

        @Test("a state file of a newer version is said aloud, shown, and left alone")
        func newerState() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let other = fixture.directory.file("d.xml")
            let uuid = "11111111-2222-4333-8444-555555555555"
            try Files.write("<domain><name>vm2</name><uuid>\(uuid)</uuid></domain>", to: other)
            _ = try server.cli(["define", other]).output()
            try server.stop()
            let domains = server.stateDirectory + "/domains"
            var found = ""
            for name in Files.listing(domains) {
                let path = domains + "/" + name
                guard Files.read(path).contains("vm2") else { continue }
                found = path
            }
            try #require(!found.isEmpty)
            let newer = Files.read(found)
                .replacingOccurrences(of: "nbdpull-state 1 ", with: "nbdpull-state 9 ")
            try Files.write(newer, to: found)
            try server.start()
            #expect(server.stderr.contains("error: state file '\(found)' was written by a newer"))
            #expect(server.stderr.contains("start the newer version again, or move the file away"))
            #expect(try http(server, ["/readyz"]).hasPrefix("HTTP/1.1 503"))
            #expect(try server.cli(["list"]).stderr.contains("newer version"))
            let refused = try server.cli(["define", other])
            #expect(refused.status == 1)
            #expect(Files.read(found) == newer)
            try server.stop()
        }

        @Test("the URI of a listener on every address is one that a client can use")
        func reachableURI() throws {
            let fixture = try LiveFixture(options: ["--allow-plaintext"])
            for host in ["0.0.0.0", "::"] {
                let result = try fixture.server.cli(
                    ["backup-begin", "vm1", "-", "--json"],
                    input: "<domainbackup mode='pull'>"
                        + "<server name='\(host)' port='\(Ports.free())'/></domainbackup>")
                let uri = try BegunJob(json: try result.output()).uri("vda")
                #expect(!uri.contains("0.0.0.0") && !uri.contains("[::]"))
                #expect(try NBDClient(uri).sizeBytes == fixture.sizeBytes)
                #expect(try fixture.server.cli(["domjobabort", "vm1"]).succeeded)
            }
            try fixture.server.stop()
        }
    }
}
