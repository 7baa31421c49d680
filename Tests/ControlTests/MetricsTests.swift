import Foundation
import ServerInterface
import Testing

@testable import Control

/// The figures for Prometheus.
@Suite struct MetricsTests {
    private struct Sample: Hashable {
        var name: String
        var labels: String
    }

    /// The samples of a page, by name and labels; records what is not as the format wants it.
    private func samples(_ page: String) throws -> [Sample: Double] {
        var found: [Sample: Double] = [:]
        var types: [String: String] = [:]
        for line in page.split(separator: "\n") {
            if line.hasPrefix("# TYPE ") {
                let words = line.split(separator: " ")
                #expect(types.updateValue(String(words[3]), forKey: String(words[2])) == nil)
                continue
            }
            if line.hasPrefix("#") { continue }
            let space = try #require(line.lastIndex(of: " "))
            let value = try #require(Double(line[line.index(after: space)...]), "\(line)")
            let parts = line[..<space].split(separator: "{", maxSplits: 1)
            let sample = Sample(
                name: String(parts[0]), labels: parts.count > 1 ? String(parts[1]) : "")
            #expect(found.updateValue(value, forKey: sample) == nil, "\(line) twice")
        }
        for sample in found.keys {
            let family = ["_bucket", "_sum", "_count"].reduce(sample.name) { name, suffix in
                types[name] == nil && name.hasSuffix(suffix)
                    ? String(name.dropLast(suffix.count)) : name
            }
            #expect(types[family] != nil, "\(sample.name)")
            #expect((types[family] == "counter") == family.hasSuffix("_total"), "\(family)")
        }
        return found
    }

    private func page(_ manager: JobManager) async throws -> [Sample: Double] {
        try samples(MetricsText.render(await manager.snapshot(), version: "1.2"))
    }

    @Test("P6: no label grows with the number of backups, and none is one of Prometheus' own")
    func labels() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        let running = { () async throws -> Set<Sample> in
            let job = try await manager.begin(domain: "vm1", BeginRequest())
            let names = Set(try await self.page(manager).keys)
            try await manager.end(domain: "vm1", job: job.id, cause: .success)
            return names
        }
        let first = try await running()
        let idle = Set(try await page(manager).keys)
        for _ in 0..<3 { #expect(try await running() == first) }
        #expect(Set(try await page(manager).keys) == idle)
        #expect(idle.isSubset(of: first))
        for sample in first {
            #expect(!sample.labels.contains("job=") && !sample.labels.contains("instance="))
        }
    }

    @Test("a running backup's figures are there by domain and disk, two jobs of a disk together")
    func backups() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        let first = try await manager.begin(domain: "vm1", BeginRequest())
        var figures = try await page(manager)
        func value(_ name: String, _ labels: String = "") -> Double? {
            figures[Sample(name: name, labels: labels)]
        }
        let disk = "domain=\"vm1\",disk=\"vda\"}"
        #expect(value("nbdpull_build_info", "version=\"1.2\"}") == 1)
        #expect(value("nbdpull_backup_read_bytes", disk) == 4096)
        #expect(value("nbdpull_backup_to_read_bytes", disk) == 16384)
        #expect(value("nbdpull_scratch_used_bytes", disk) == 65536)
        #expect(value("nbdpull_jobs", "state=\"running\"}") == 1)
        #expect(value("nbdpull_job_hold_seconds_count") == 1)
        #expect(value("nbdpull_job_hold_seconds_bucket", "le=\"1.6e-05\"}") == 1)
        #expect(value("nbdpull_domain_jobs", "domain=\"vm1\"}") == 1)
        #expect((value("process_start_time_seconds") ?? 0) > 1e9)
        let second = try await manager.begin(domain: "vm1", BeginRequest())
        figures = try await page(manager)
        #expect(value("nbdpull_backup_read_bytes", disk) == 8192)
        fixture.engine.breakJob(second.id, "scratch is full")
        #expect(
            try await eventually {
                figures = try await page(manager)
                return value("nbdpull_domain_jobs_broken", "domain=\"vm1\"}") == 1
            })
        try await manager.end(domain: "vm1", job: first.id, cause: .success)
        try await manager.end(domain: "vm1", job: second.id, cause: .success)
        figures = try await page(manager)
        #expect(value("nbdpull_backup_read_bytes", disk) == nil)
        #expect((value("nbdpull_backup_sent_bytes_total") ?? 0) >= 16384)
        #expect(value("nbdpull_events_total", "event=\"job-broken\"}") == 1)
    }

    @Test("when the last good backup ended is known however many have failed since")
    func lastSuccess() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.managerWithCheckpoints()
        let name = Sample(
            name: "nbdpull_domain_last_success_timestamp_seconds", labels: "domain=\"vm1\"}")
        #expect(try await page(manager)[name] == 0)
        let good = try await manager.begin(domain: "vm1", BeginRequest())
        try await manager.end(domain: "vm1", job: good.id, cause: .success)
        let ended = try #require(try await page(manager)[name])
        #expect(abs(ended - Date().timeIntervalSince1970) < 60)
        for _ in 0..<(JobManager.historyMax + 2) {
            let job = try await manager.begin(domain: "vm1", BeginRequest())
            try await manager.end(domain: "vm1", job: job.id, cause: .failure)
        }
        #expect(try await page(manager)[name] == ended)
        let past = try await manager.endedJobs(domain: "vm1")
        #expect(past.count == JobManager.historyMax && past.first?.id == good.id)
        let failed = Sample(
            name: "nbdpull_domain_last_failure_timestamp_seconds", labels: "domain=\"vm1\"}")
        #expect((try await page(manager)[failed] ?? 0) >= ended)
    }

    @Test("what takes time is found out once for all who ask, and again when it is old")
    func freshness() async throws {
        let (gate, opening) = AsyncStream.makeStream(of: Void.self)
        let finds = Counter()
        let value = FreshValue(goodSeconds: 600) {
            finds.add()
            for await _ in gate { break }
            return finds.count
        }
        let asked = (0..<20).map { _ in Task { await value.get() } }
        #expect(try await eventually { finds.count == 1 })
        opening.yield()
        for task in asked { #expect(await task.value == 1) }
        #expect(finds.count == 1)
        let brief = FreshValue(goodSeconds: 0) {
            finds.add()
            return finds.count
        }
        let first = await brief.get()
        var again = first
        // On a busy machine it costs more to find, and is good for longer.
        for _ in 0..<6000 where again == first {
            try await Task.sleep(for: .milliseconds(10))
            again = await brief.get()
        }
        #expect(again != first)
    }

    @Test(
        "P6: a server that does not answer costs a bounded number of waiters, and the rest is told so"
    )
    func waiters() async throws {
        let (gate, opening) = AsyncStream.makeStream(of: Void.self)
        let value = FreshValue(goodSeconds: 0) {
            for await _ in gate {}
            return 1
        }
        let asked = (0..<200).map { _ in Task { await value.get() } }
        // Those that are refused come back while nothing is answered.
        let refused = Counter()
        for task in asked { Task { if await task.value == nil { refused.add() } } }
        #expect(
            try await eventually { refused.count == 200 - MonitorLimits.connectionsMax })
        opening.finish()
        var answered = 0
        for task in asked where await task.value == 1 { answered += 1 }
        #expect(answered == MonitorLimits.connectionsMax)
    }
}
