import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// The port for watching, as Prometheus, browsers and others see it.
    @Suite struct MonitorTests {
        private let here = FileManager.default.currentDirectoryPath

        /// A server with a domain, and the port at which it is watched.
        private final class Watched {
            let live: LiveFixture
            let port: Int

            init(_ options: [String] = []) throws {
                port = Ports.free()
                live = try LiveFixture(options: ["--metrics", String(port)] + options)
            }

            var server: ServerUnderTest { live.server }

            func get(_ path: String, _ arguments: [String] = []) throws -> String {
                try Command.run(
                    "curl",
                    ["--silent", "--show-error", "--max-time", "20"] + arguments
                        + ["http://127.0.0.1:\(port)\(path)"]
                ).output()
            }

            func json<Value: Decodable>(_ path: String, as type: Value.Type) throws -> Value {
                try JSONDecoder().decode(type, from: Data(try get(path).utf8))
            }
        }

        private func peers(_ port: Int, _ kind: String) throws -> [String: Any] {
            let text = try Command.run(
                "python3", [here + "/Tests/browser/peers.py", String(port), kind], timeout: 60
            ).output()
            return try #require(
                JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        }

        // MARK: Prometheus

        @Test(
            "promtool finds nothing to say, and a real Prometheus scrapes the figures of a backup")
        func prometheus() throws {
            let watched = try Watched()
            let client = try NBDClient(watched.live.uri("vda"))
            try client.write(randomBytes(65536, seed: 1), at: 0)
            let job = try watched.live.begin()
            try client.write(randomBytes(65536, seed: 2), at: 0)
            let backup = try NBDClient(try job.uri("vda"))
            _ = try backup.read(0, 1 << 20)
            let page = try watched.get("/metrics")
            let check = try Command.run("promtool", ["check", "metrics"], input: page)
            #expect(check.succeeded && check.stdout.isEmpty && check.stderr.isEmpty, "\(check)")
            let prometheus = try Prometheus(scraping: watched.port, in: watched.live.directory)
            let expected = [
                "up": 1.0, "nbdpull_build_info": 1, "nbdpull_jobs{state=\"running\"}": 1,
                "nbdpull_domain_jobs{domain=\"vm1\"}": 1,
                "nbdpull_disk_writes_total{disk=\"vda\"}": 2,
                "nbdpull_disk_written_bytes_total{disk=\"vda\"}": 131_072,
                "nbdpull_backup_read_bytes{disk=\"vda\"}": 1_048_576,
                "nbdpull_disk_copy_wait_seconds_count{disk=\"vda\"}": 1,
                "nbdpull_job_hold_seconds_count": 1,
                "nbdpull_domain_backup_clients": 1,
                "nbdpull_scratch_free_bytes{disk=\"vda\"} > bool 0": 1,
            ]
            for (query, value) in expected.sorted(by: { $0.key < $1.key }) {
                #expect(
                    try prometheus.value(query, is: value), "\(query): \(prometheus.lastAnswer)")
            }
            // Its own labels are where they belong.
            #expect(!page.contains("job=\"") && !page.contains("exported_"))
            #expect(try prometheus.value("count({exported_job!=\"\"}) or vector(0)", is: 0))
            try watched.server.end("vm1", job)
            #expect(
                try prometheus.value(
                    "time() - nbdpull_domain_last_success_timestamp_seconds < bool 60", is: 1))
            try watched.server.stop()
        }

        @Test(
            "alerts and dashboard ask for figures that there are; every alert fires when it should")
        func alerts() throws {
            let directory = here + "/docs/monitoring/"
            try Command.run("promtool", ["check", "rules", directory + "alerts.yml"]).output()
            try Command.run("promtool", ["test", "rules", directory + "alerts-test.yml"]).output()
            let watched = try Watched()
            _ = try watched.live.begin()
            let page = try watched.get("/metrics")
            let named = try Regex("(?:nbdpull|process)_[a-z_]+")
            var used: Set<String> = []
            for file in ["alerts.yml", "grafana.json"] {
                let text = Files.read(directory + file)
                used.formUnion(text.matches(of: named).map { String(text[$0.range]) })
            }
            #expect(used.count > 15)
            for name in used.sorted() { #expect(page.contains("\n\(name)"), "\(name)") }
            // Every alert has its promise.
            let book = Files.read(here + "/docs/monitoring.md")
            for match in Files.read(directory + "alerts.yml").matches(of: /alert: (\w+)/) {
                #expect(book.contains("`\(match.output.1)`"), "\(match.output.1)")
            }
        }

        @Test("Grafana's types read the dashboard, and Prometheus has an answer for every panel")
        func dashboard() throws {
            struct Report: Decodable {
                struct Query: Decodable {
                    let panel: String
                    let query: String
                }
                let faults: [String]
                let queries: [Query]
            }
            guard Files.exists(here + "/.build-venv/complete") else {
                throw TestFailure("grafana-foundation-sdk is not there: run `dev/venv`")
            }
            let file = here + "/docs/monitoring/grafana.json"
            let text = try Command.run(
                here + "/.build-venv/bin/python3", [here + "/Tests/browser/dashboard.py", file]
            ).output()
            let report = try JSONDecoder().decode(Report.self, from: Data(text.utf8))
            #expect(report.faults.isEmpty, "\(report.faults)")
            #expect(report.queries.count > 15)
            let watched = try Watched()
            let machine = try NBDClient(watched.live.uri("vda"))
            try machine.write(randomBytes(65536, seed: 1), at: 0)
            let job = try watched.live.begin()
            try machine.write(randomBytes(65536, seed: 2), at: 0)
            let client = try NBDClient(try job.uri("vda"))
            _ = try client.read(0, 1 << 20)
            let prometheus = try Prometheus(scraping: watched.port, in: watched.live.directory)
            for asked in report.queries {
                // Panels that leave out zeros may be empty, but not without what they leave out.
                let query = asked.query.replacing(" > 0", with: "")
                let count = "count(\(query)) > bool 0"
                #expect(
                    try prometheus.value(count, is: 1),
                    "\(asked.panel): \(query): \(prometheus.lastAnswer)")
            }
            try watched.server.end("vm1", job)
            try watched.server.stop()
        }

        // MARK: Who is answered

        @Test("P6: what is not asked as it should be is refused, and the server goes on")
        func odd() throws {
            let watched = try Watched()
            let answers = try peers(watched.port, "odd") as? [String: Int] ?? [:]
            let expected = [
                "post": 405, "delete": 405, "body": 413, "rebound": 421, "twoHosts": 421,
                "noHost": 200, "path": 404, "percent": 400, "query": 200, "noDisk": 404,
                "good": 200,
            ]
            for (name, status) in expected {
                #expect(answers[name] == status, "\(name): \(answers[name] ?? -1)")
            }
            for name in ["long", "headers", "none"] {
                #expect(
                    [0, 400, 413, 414, 431].contains(answers[name] ?? -1), "\(name): \(answers)")
            }
            #expect(try watched.get("/healthz") == "ok\n")
            #expect(try watched.get("/readyz").contains("\"ready\":true"))
            let head = try watched.get("/", ["--head"])
            for line in [
                "Content-Security-Policy: default-src 'none'; script-src 'self'",
                "X-Content-Type-Options: nosniff", "Cross-Origin-Resource-Policy: same-origin",
                "Content-Type: text/html",
            ] {
                #expect(head.contains(line), "\(line) in \(head)")
            }
            #expect(!head.contains("unsafe"))
            try watched.server.stop()
        }

        @Test(
            "P6: peers that say nothing, or little, hold up neither others nor the control socket")
        func flood() throws {
            let watched = try Watched()
            let before = watched.server.descriptorCount
            let flood = try peers(watched.port, "flood")
            #expect((flood["statuses"] as? [Int])?.allSatisfy { $0 == 200 } == true, "\(flood)")
            #expect((flood["open"] as? Int ?? 999) <= 64, "\(flood)")
            let unread = try peers(watched.port, "unread")
            #expect(unread["others"] as? Int == 200, "\(unread)")
            #expect(try watched.server.cli(["list"]).output().contains("vm1"))
            let slow = try peers(watched.port, "slow")
            let seconds = slow["seconds"] as? Double ?? 0
            #expect(seconds > 5 && seconds < 40, "\(slow)")
            let deadline = Date(timeIntervalSinceNow: 10)
            while watched.server.descriptorCount > before + 8, Date() < deadline { usleep(100_000) }
            #expect(watched.server.descriptorCount <= before + 8)
            try watched.server.stop()
        }

        @Test("the port is off, on loopback, or where it is told; a taken one is refused by name")
        func places() throws {
            let plain = try LiveFixture()
            #expect(!plain.server.stderr.contains("metrics at"))
            try plain.server.stop()
            let watched = try Watched()
            let said = "metrics at http://127.0.0.1:\(watched.port)/"
            #expect(watched.server.stderr.contains(said))
            let named = try watched.get("/v1/overview", ["--header", "Host: backup.example.org"])
            #expect(named.contains("--metrics-host"))
            let directory = try TemporaryDirectory()
            let taken = try Command.run(
                try ServerUnderTest.binary(),
                [
                    "serve", "--state-dir", directory.file("s"), "--run-dir", directory.file("r"),
                    "--metrics", "127.0.0.1:\(watched.port)",
                ])
            #expect(
                !taken.succeeded
                    && taken.stderr.contains(
                        "cannot listen at '127.0.0.1' port \(watched.port) for --metrics"),
                "\(taken)")
            try watched.server.stop()
            let config = directory.file("config.json")
            try Files.write(
                #"{"metrics": \#(watched.port), "metrics-host": ["backup.example.org"]}"#,
                to: config)
            let again = try ServerUnderTest(options: ["--config", config])
            let answer = try watched.get(
                "/v1/overview", ["--header", "Host: Backup.example.org:1"])
            #expect(answer.contains("\"domains\":[]"))
            try again.stop()
        }

        // MARK: Pictures

        private struct Map: Decodable {
            struct Job: Decodable {
                let id: String
                let preserved: String
                let read: String
            }
            let size: Int
            let cellBytes: Int
            let cells: Int
            let data: String?
            let checkpoints: [String]
            let changed: [Int]?
            let jobs: [Job]
        }

        @Test(
            "a disk's picture shows data, holes, changes by checkpoint, what is preserved and read")
        func picture() throws {
            let port = Ports.free()
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.raw")
            // 64 MiB, so that a cell is 64 KiB: the first MiB is data, the rest a hole.
            try Images.sparse(path, bytes: 64 << 20)
            let file = try #require(FileHandle(forWritingAtPath: path))
            try file.write(contentsOf: Data(randomBytes(1 << 20, seed: 3)))
            try file.close()
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--metrics", "127.0.0.1:\(port)"])
            let machine = try NBDClient(server.liveURI("vm1", "vda"))
            let cell = 65536
            try server.cli(["checkpoint-create-as", "vm1", "c1"]).output()
            try machine.write(randomBytes(cell, seed: 4), at: 32 * cell)
            try server.cli(["checkpoint-create-as", "vm1", "c2"]).output()
            try machine.write(randomBytes(2 * cell, seed: 5), at: 33 * cell)
            try machine.write(randomBytes(100, seed: 6), at: 64 << 20 - 100)
            try machine.flush()
            let job = try server.begin("vm1", disks: ["vda"], tag: "map")
            try machine.write(randomBytes(cell, seed: 7), at: 2 * cell)
            let client = try NBDClient(try job.uri("vda"))
            _ = try client.read(4 * cell, 2 * cell)
            func marks(_ text: String?) -> [Int] {
                (text ?? "").enumerated().filter { $0.element == "1" }.map(\.offset)
            }
            var map: Map?
            let deadline = Date(timeIntervalSinceNow: 20)
            repeat {
                let text = try Command.run(
                    "curl", ["--silent", "http://127.0.0.1:\(port)/v1/domains/vm1/disks/vda/map"]
                ).output()
                map = try? JSONDecoder().decode(Map.self, from: Data(text.utf8))
                usleep(200_000)
            } while marks(map?.jobs.first?.preserved).isEmpty && Date() < deadline
            let found = try #require(map)
            #expect(found.cells == 1024 && found.cellBytes == cell && found.size == 64 << 20)
            #expect(marks(found.data) == Array(0..<16) + [32, 33, 34, 1023])
            #expect(found.checkpoints == ["c1", "c2"])
            let changed = try #require(found.changed).enumerated().filter { $0.element > 0 }
            #expect(changed.map(\.offset) == [2, 32, 33, 34, 1023])
            #expect(changed.map(\.element) == [2, 1, 2, 2, 2])
            #expect(found.jobs.map(\.id) == [job.id])
            #expect(marks(found.jobs[0].preserved) == [2])
            #expect(marks(found.jobs[0].read) == [4, 5])
            try server.end("vm1", job)
            try server.stop()
        }

        @Test(
            "the page works in a real browser: no complaint, nobody else asked, dark, phone, keyboard"
        )
        func browser() throws {
            guard (try? Tool.path("chromium")) != nil else {
                print("left out: the page in a browser, as chromium is not installed")
                return
            }
            let directory = try TemporaryDirectory()
            let run = try Command.run(
                here + "/dev/screenshots", [directory.path],
                environment: ["NBDPULL_BINARY": try ServerUnderTest.binary()], timeout: 120)
            struct Report: Decodable {
                let text: String
                let status: String
                let legend: String
                let label: String
                let colors: [String: Int]
                let darkColors: [String: Int]
                let keyboard: [String]
                let dark: String
                let phoneWidth: Int
                let phoneContent: Int
                let errors: [String]
                let strangers: [String]
                let failed: [String]
            }
            let report = try JSONDecoder().decode(
                Report.self, from: Data(try run.output().utf8))
            #expect(report.status == "ready")
            for text in [
                "web", "database", "running", "MiB of", "1 client", "completed", "failed",
                "checkpoint-created", "changed since monday",
            ] {
                #expect(report.text.contains(text), "\(text) in \(report.text)")
            }
            for name in ["hole", "data", "changed-1", "changed-2", "preserved", "read"] {
                #expect((report.colors[name] ?? 0) > 0, "\(name) in \(report.colors)")
                #expect((report.darkColors[name] ?? 0) > 0, "\(name) in \(report.darkColors)")
            }
            #expect(report.legend.contains("changed since sunday"))
            #expect(report.label.contains("Map of disk vda"))
            #expect(report.keyboard.count == 4 && Set(report.keyboard).count == 4)
            #expect(report.keyboard.allSatisfy { $0.contains(" to ") }, "\(report.keyboard)")
            #expect(report.dark == "rgb(15, 19, 24)")
            #expect(report.phoneContent <= report.phoneWidth)
            #expect(
                report.errors.isEmpty && report.strangers.isEmpty && report.failed.isEmpty,
                "\(report.errors) \(report.strangers) \(report.failed)")
            for name in ["page-light.png", "page-dark.png", "page-phone.png"] {
                #expect(Files.exists(directory.file(name)))
            }
        }

        // MARK: Being told

        @Test("a program is run when a job ends or breaks; one that fails is an event and no more")
        func eventProgram() throws {
            let directory = try TemporaryDirectory()
            let program = directory.file("told")
            try Files.write(
                "#!/bin/sh\necho \"$EVENT $EVENT_DOMAIN $EVENT_OUTCOME\" >> \(directory.file("list"))\n"
                    + "cat >> \(directory.file("json"))\n[ $EVENT != job-broken ]\n",
                to: program)
            try FileManager.default.setAttributes(
                [.posixPermissions: 0o700], ofItemAtPath: program)
            let live = try LiveFixture(options: ["--event-exec", program, "--idle-after", "1"])
            let job = try live.begin()
            func list() -> [String] {
                Files.read(directory.file("list")).split(separator: "\n").map(String.init)
            }
            func wait(for line: String) -> Bool {
                let deadline = Date(timeIntervalSinceNow: 20)
                while !list().contains(line), Date() < deadline { usleep(50_000) }
                return list().contains(line)
            }
            #expect(wait(for: "job-idle vm1 "), "\(list())")
            try live.server.end("vm1", job)
            #expect(wait(for: "job-end vm1 completed"), "\(list())")
            let events = Files.read(directory.file("json")).split(separator: "\n")
            #expect(events.last?.contains("\"id\":\"\(job.id)\"") == true)
            try live.server.stop()
            // One that is gone does not take disks from machines.
            let without = try LiveFixture(options: ["--event-exec", "/no/program"])
            let seen = try without.server.cli([
                "event", "--event", "event-exec-failed", "--follow", "--timeout", "1",
            ])
            #expect(seen.stdout.contains("'/no/program'"), "\(seen)")
            _ = try NBDClient(without.uri("vda")).read(0, 4096)
            try without.server.stop()
        }
    }
}

/// Debian's Prometheus, scraping one server every second.
private final class Prometheus {
    private let process: Command
    private let port: Int
    private(set) var lastAnswer = ""

    init(scraping target: Int, in directory: TemporaryDirectory) throws {
        port = Ports.free()
        let config = directory.file("prometheus.yml")
        try Files.write(
            """
            global: { scrape_interval: 1s }
            scrape_configs:
              - job_name: nbdpull
                static_configs: [{ targets: ["127.0.0.1:\(target)"] }]

            """, to: config)
        process = try Command(
            "prometheus",
            [
                "--config.file=\(config)", "--storage.tsdb.path=\(directory.file("tsdb"))",
                "--web.listen-address=127.0.0.1:\(port)", "--log.level=error",
            ])
    }

    /// Whether a query comes to have one result of this value, within some time.
    func value(_ query: String, is expected: Double) throws -> Bool {
        struct Answer: Decodable {
            struct Body: Decodable {
                struct Sample: Decodable { let value: [Field] }
                let result: [Sample]
            }
            enum Field: Decodable {
                case number(Double)
                case text(String)
                init(from decoder: any Decoder) throws {
                    let container = try decoder.singleValueContainer()
                    if let number = try? container.decode(Double.self) {
                        self = .number(number)
                    } else {
                        self = .text(try container.decode(String.self))
                    }
                }
            }
            let data: Body
        }
        let deadline = Date(timeIntervalSinceNow: 20)
        while Date() < deadline {
            lastAnswer = try Command.run(
                "curl",
                [
                    "--silent", "--get", "http://127.0.0.1:\(port)/api/v1/query",
                    "--data-urlencode", "query=\(query)",
                ]
            ).stdout
            let answer = try? JSONDecoder().decode(Answer.self, from: Data(lastAnswer.utf8))
            if let sample = answer?.data.result.first, answer?.data.result.count == 1,
                case .text(let text)? = sample.value.last, Double(text) == expected
            {
                return true
            }
            usleep(200_000)
        }
        return false
    }
}
