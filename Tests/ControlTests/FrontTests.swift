import Control
import Foundation
import Logging
import ServerInterface
import ServiceLifecycle
import Testing

@Suite struct FrontTests {
    /// Runs `body` with a client of a served manager.
    private func serving(
        stored: Bool = false,
        _ body: @Sendable (ControlClient, ControlFixture, JobManager) async throws -> Void
    ) async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager(stored: stored)
        let path = fixture.root + "/c.sock"
        var logger = Logger(label: "test")
        logger.logLevel = .error
        let (ready, continuation) = AsyncStream.makeStream(of: Void.self)
        let server = ControlServer(
            routes: Routes(manager: manager, version: "1"), socketPath: path, logger: logger
        ) { continuation.finish() }
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [.init(service: server)], logger: logger))
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            tasks.addTask { try await group.run() }
            for await _ in ready {}
            let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions]
            #expect(mode as? Int == 0o600)
            try await body(ControlClient(socketPath: path), fixture, manager)
            await manager.shutdown()
            await group.triggerGracefulShutdown()
            try await tasks.waitForAll()
        }
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test func aBackupFromDefineToEnd() async throws {
        try await serving { client, fixture, _ in
            var define = ControlClient.Call("POST", "v1", "domains")
            define.body = Data(fixture.domainXML("vm 1%2F").utf8)
            define.contentType = "application/xml"
            let domain = try await client.send(define, as: DomainView.self)
            #expect(domain.domain == "vm 1%2F")
            let base = ["v1", "domains", domain.domain]
            func call(_ method: String, _ rest: String...) -> ControlClient.Call {
                var call = ControlClient.Call(method)
                call.path = base + rest
                return call
            }
            let disks = try await client.send(call("GET", "disks"), as: DisksBody.self)
            #expect(disks.disks.map(\.disk) == ["vda", "vdb", "sda"])
            #expect(disks.disks[0].uri?.hasPrefix("nbd+unix:///vm%201%252F/vda?socket=") == true)
            #expect(
                try await client.send(call("GET", "xml"), as: XMLBody.self).xml.contains("vm 1"))
            var begin = call("POST", "jobs")
            begin.body = try ControlJSON.encode(
                BeginBody(backupXML: fixture.backupXML(socket: fixture.root + "/b.sock")))
            let data = try await client.send(begin)
            #expect(String(decoding: data, as: UTF8.self).contains("\"bitmap\":null"))
            let job = try ControlJSON.decode(BegunJob.self, from: data)
            #expect(job.exports.count == 2)
            let list = try await client.send(call("GET", "jobs"), as: JobsBody.self)
            #expect(list.jobs.map(\.id) == [job.id])
            var xml = call("GET", "job", "xml")
            xml.accept = "application/xml"
            let text = String(decoding: try await client.send(xml), as: UTF8.self)
            #expect(text.hasPrefix("<domainbackup mode='pull'>"))
            var metrics = ControlClient.Call("GET", "metrics")
            metrics.accept = "text/plain"
            let page = String(decoding: try await client.send(metrics), as: UTF8.self)
            #expect(page.contains("nbdpull_jobs{state=\"running\"} 1\n"))
            #expect(page.contains("# TYPE nbdpull_scratch_used_bytes gauge\n"))
            var end = call("POST", "job", "end")
            end.body = try ControlJSON.encode(EndBody(failed: false))
            end.query = [("job", job.id)]
            #expect(try await client.send(end, as: JobInfo.self).jobType == "Completed")
            var completed = call("GET", "job")
            completed.query = [("completed", "true")]
            #expect(try await client.send(completed, as: JobInfo.self).id == job.id)
            #expect(try await client.send(completed, as: JobInfo.self) == .none)
            _ = try await client.send(call("DELETE"))
            #expect(
                try await client.send(
                    ControlClient.Call("GET", "v1", "domains"), as: DomainsBody.self
                ).domains.isEmpty)
        }
    }

    @Test func checkpointsFromCreateToDelete() async throws {
        try await serving(stored: true) { client, fixture, manager in
            try await manager.define(xml: fixture.domainXML())
            func call(_ method: String, _ rest: String...) -> ControlClient.Call {
                var call = ControlClient.Call(method)
                call.path = ["v1", "domains", "vm1", "checkpoints"] + rest
                return call
            }
            var create = call("POST")
            create.body = Data(checkpointXML("c1").utf8)
            create.contentType = "application/xml"
            #expect(try await client.send(create, as: CheckpointView.self).name == "c1")
            create.contentType = "application/json"
            create.body = try ControlJSON.encode(XMLBody(xml: checkpointXML("c2")))
            #expect(try await client.send(create, as: CheckpointView.self).parent == "c1")
            create.body = try ControlJSON.encode(
                XMLBody(xml: checkpointXML("r", "<creationTime>5</creationTime>")))
            create.query = [("redefine", "true")]
            #expect(try await client.send(create, as: CheckpointView.self).parent == nil)
            var list = call("GET")
            list.query = [("from", "c1"), ("descendants", "true"), ("topological", "true")]
            #expect(
                try await client.send(list, as: CheckpointsBody.self).checkpoints.map(\.name)
                    == ["c2"])
            let parent = try await client.send(call("GET", "c2", "parent"), as: CheckpointView.self)
            #expect(parent.name == "c1")
            var xml = call("GET", "c1", "xml")
            xml.query = [("size", "true"), ("noDomain", "true")]
            let body = try await client.send(xml, as: CheckpointXMLBody.self)
            #expect(body.xml.contains("size='131072'"))
            #expect(body.disks?.first?.extents?.count == 1)
            xml.accept = "application/xml"
            let text = String(decoding: try await client.send(xml), as: UTF8.self)
            #expect(text.hasPrefix("<domaincheckpoint>\n  <name>c1</name>\n"))
            var delete = call("DELETE", "c1")
            delete.query = [("children", "true"), ("childrenOnly", "true")]
            let error = await #expect(throws: ControlError.self) { try await client.send(delete) }
            #expect(error?.libvirtCode == 8)
            delete.query = [("children", "true")]
            _ = try await client.send(delete)
            #expect(try await manager.listCheckpoints(of: "vm1").map(\.name) == ["r"])
            var undefine = ControlClient.Call("DELETE", "v1", "domains", "vm1")
            let refused = await #expect(throws: ControlError.self) {
                try await client.send(undefine)
            }
            #expect(refused?.httpStatus == 409)
            undefine.query = [("checkpoints", "true")]
            _ = try await client.send(undefine)
            var define = ControlClient.Call("POST", "v1", "domains")
            define.body = try ControlJSON.encode(
                DefineBody(xml: fixture.domainXML(), granularityBytes: 1))
            let granularity = await #expect(throws: ControlError.self) {
                try await client.send(define)
            }
            #expect(granularity?.httpStatus == 400)
        }
    }

    @Test func errorsKeepTheirCodeAndStatus() async throws {
        try await serving { client, fixture, manager in
            try await manager.define(xml: fixture.domainXML())
            let cases: [(ControlClient.Call, String, Int, Int)] = [
                (.init("GET", "v1", "domains", "no", "xml"), "domain-not-found", 42, 404),
                (.init("GET", "v1", "nowhere"), "no-such-route", 84, 404),
                (.init("POST", "v1", "domains", "vm1", "job", "abort"), "no-active-job", 55, 404),
                (.init("GET", "v1", "domains", "vm1", "job", "xml"), "no-job", 104, 404),
                (
                    .init("GET", "v1", "domains", "vm1", "checkpoints", "c1"),
                    "checkpoint-not-found", 103, 404
                ),
            ]
            for (call, code, number, status) in cases {
                let error = await #expect(throws: ControlError.self) {
                    try await client.send(call)
                }
                #expect(error?.code == code)
                #expect(error?.libvirtCode == number)
                #expect(error?.httpStatus == status)
            }
            var misspelt = ControlClient.Call("POST", "v1", "domains", "vm1", "jobs")
            misspelt.body = Data(#"{"xml":"<domainbackup mode='pull'/>"}"#.utf8)
            let refused = await #expect(throws: ControlError.self) {
                try await client.send(misspelt)
            }
            #expect(refused?.httpStatus == 400)
            #expect(refused?.message.contains("'xml' is not a key") == true)
            #expect(try await manager.listJobs(domain: nil).isEmpty)
            var large = ControlClient.Call("POST", "v1", "domains")
            large.body = Data(repeating: 0x20, count: (4 << 20) + 1)
            let error = await #expect(throws: ControlError.self) { try await client.send(large) }
            #expect(error?.httpStatus == 413)
            large.body = Data("{\"xml\":".utf8)
            await #expect(throws: ControlError.self) { try await client.send(large) }
        }
    }

    @Test func eventsAreStreamedUntilTheServerStops() async throws {
        try await serving { client, fixture, manager in
            var call = ControlClient.Call("GET", "v1", "events")
            call.query = [("follow", "true")]
            let follow = call
            try await manager.define(xml: fixture.domainXML())
            let reader = Task {
                var lines: [String] = []
                try await client.lines(follow) { lines.append($0) }
                return lines
            }
            try await Task.sleep(for: .milliseconds(300))
            _ = try await manager.begin(domain: "vm1", BeginRequest())
            try await Task.sleep(for: .milliseconds(300))
            await manager.shutdown()
            let events = try await reader.value.map {
                try ControlJSON.decode(ControlEvent.self, from: Data($0.utf8))
            }
            #expect(events.first?.event == .domainDefined)
            #expect(events.contains { $0.event == .jobBegin })
            #expect(events.last?.event == .jobEnd)
            #expect(events.map(\.sequence) == Array(1...UInt64(events.count)))
        }
    }

    @Test func aMissingServerIsNamed() async throws {
        let error = await #expect(throws: ControlError.self) {
            try await ControlClient(socketPath: "/nonexistent/c.sock")
                .send(ControlClient.Call("GET", "v1", "server"))
        }
        #expect(error?.message.contains("is `nbdpull serve` running?") == true)
    }

    @Test func everyRouteIsDescribedAndNothingElse() async throws {
        let fixture = try ControlFixture()
        let routes = Routes(manager: try await fixture.manager(), version: "1").all
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        let text = try String(
            contentsOf: root.appendingPathComponent("docs/openapi.yaml"), encoding: .utf8)
        var described: Set<String> = []
        var path = ""
        for line in text.split(separator: "\n").map(String.init) {
            if line.hasPrefix("components:") { break }
            if line.hasPrefix("  /"), line.hasSuffix(":") {
                path = String(line.dropFirst(2).dropLast())
            }
            for method in ["get", "post", "delete", "put", "patch"] where line == "    \(method):" {
                described.insert("\(method.uppercased()) \(path)")
            }
        }
        #expect(described == Set(routes.map { "\($0.method) \($0.path)" }))
        #expect(routes.count == described.count)
    }

    @Test func aLiveSocketIsNotReplacedAndAStaleOneIs() async throws {
        try await serving { client, fixture, _ in
            #expect(throws: ControlError.self) {
                try ControlServer.clearStaleSocket(client.socketPath)
            }
            let plain = fixture.root + "/plain"
            _ = FileManager.default.createFile(atPath: plain, contents: nil)
            #expect(throws: ControlError.self) { try ControlServer.clearStaleSocket(plain) }
            #expect(FileManager.default.fileExists(atPath: plain))
        }
    }
}
