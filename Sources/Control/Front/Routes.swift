import Foundation
import HTTPTypes
import Hummingbird
import NIOCore
import ServerInterface

/// Every route of the control socket, over one manager.
package struct Routes: Sendable {
    /// Seconds between the blank lines by which an idle event stream finds out that its reader has
    /// gone.
    static let keepAliveSeconds = 10

    let manager: JobManager
    let version: String

    package init(manager: JobManager, version: String) {
        self.manager = manager
        self.version = version
    }

    /// The whole table, in the order of `docs/openapi.yaml`.
    package var all: [Route] { server + domains + disks + jobs + checkpoints }

    private var server: [Route] {
        [
            Route(.get, "/v1/server") { _ in
                let problems = await manager.problems
                return try .json(
                    ServerBody(
                        name: "nbdpull", version: version,
                        pid: Int(ProcessInfo.processInfo.processIdentifier),
                        ready: problems.isEmpty))
            },
            Route(.get, "/readyz") { _ in
                let problems = await manager.problems
                return try .json(
                    ReadyBody(ready: problems.isEmpty, problems: problems),
                    status: problems.isEmpty ? .ok : .serviceUnavailable)
            },
            Route(.get, "/v1/events", query: ["follow", "new"]) { call in try events(call) },
            Route(.get, "/metrics") { _ in
                let text = MetricsText.render(await manager.snapshot(), version: version)
                return Response(
                    status: .ok, headers: [.contentType: MetricsText.contentType],
                    body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
            },
        ]
    }

    private var domains: [Route] {
        [
            Route(.get, "/v1/domains") { _ in
                let problems = await manager.problems
                return try .json(
                    DomainsBody(
                        domains: await manager.listDomains(),
                        problems: problems.isEmpty ? nil : problems))
            },
            Route(.get, "/v1/domains/{domain}") { call in
                let name = try call.domain
                guard let view = await manager.listDomains().first(where: { $0.domain == name })
                else { throw ControlError.domainNotFound(name) }
                return try .json(view)
            },
            Route(.post, "/v1/domains", query: ["granularityBytes", "force"]) { call in
                let body =
                    call.isXML ? DefineBody(xml: try call.text()) : try call.json(DefineBody.self)
                let granularity = try body.granularityBytes ?? call.number("granularityBytes")
                return try .json(
                    try await manager.define(
                        xml: body.xml, granularityBytes: granularity, force: call.flag("force")),
                    status: .created)
            },
            Route(.delete, "/v1/domains/{domain}", query: ["checkpoints", "force"]) { call in
                try await manager.undefine(
                    call.domain, removingCheckpoints: try call.flag("checkpoints"),
                    force: call.flag("force"))
                return Response(status: .noContent)
            },
            Route(.get, "/v1/domains/{domain}/xml") { call in
                try .xml(try await manager.domainXML(call.domain), for: call)
            },
            Route(.post, "/v1/domains/{domain}/state/export") { call in
                let body = try call.json(ExportStateBody.self)
                return try .json(
                    try await manager.exportState(
                        of: call.domain, disks: body.disks ?? [], to: body.file,
                        force: body.force ?? false))
            },
            Route(.post, "/v1/domains/{domain}/state/import") { call in
                let body = try call.json(ImportStateBody.self)
                return try .json(
                    try await manager.importState(
                        of: call.domain,
                        JobManager.ImportRequest(
                            file: body.file, force: body.force ?? false,
                            isUnchanged: body.unchanged ?? false)))
            },
        ]
    }

    private var disks: [Route] {
        let base = "/v1/domains/{domain}/disks"
        let one = base + "/{disk}"
        return [
            Route(.get, base) { call in
                try .json(
                    DisksBody(
                        domain: call.domain, disks: try await manager.disks(of: call.domain)))
            },
            Route(.post, base) { call in
                try .json(
                    try await manager.attachDisk(xml: call.xml(), to: call.domain),
                    status: .created)
            },
            Route(.put, base, query: ["force"]) { call in
                try .json(
                    try await manager.updateDisk(
                        xml: call.xml(), of: call.domain, force: call.flag("force")))
            },
            Route(.delete, one, query: ["force"]) { call in
                try await manager.detachDisk(
                    call.disk, from: call.domain, force: call.flag("force"))
                return Response(status: .noContent)
            },
            Route(.put, one + "/media", query: ["force"]) { call in
                let body = try call.json(MediaBody.self)
                return try .json(
                    try await manager.changeMedia(
                        of: call.disk, in: call.domain, to: body.source,
                        kind: body.block == true ? .block : .file, force: call.flag("force")))
            },
            Route(.put, one + "/size") { call in
                let body = try call.json(SizeBody.self)
                guard (body.sizeBytes == nil) == (body.capacity == true) else {
                    throw ControlError.invalidArgument(
                        what: "request body", detail: "it needs either 'sizeBytes' or 'capacity'")
                }
                return try .json(
                    try await manager.resizeDisk(
                        call.disk, of: call.domain, sizeBytes: body.sizeBytes))
            },
        ]
    }

    private var jobs: [Route] {
        [
            Route(.get, "/v1/jobs", query: ["completed"]) { call in
                try await list(call, domain: nil)
            },
            Route(.get, "/v1/domains/{domain}/jobs", query: ["completed"]) { call in
                try await list(call, domain: call.domain)
            },
            Route(
                .post, "/v1/domains/{domain}/jobs",
                query: [
                    "reuseExternal", "ttlSeconds", "fallbackFull", "clientRelease", "quiesce",
                    "bandwidth", "compress", "verify", "id",
                ]
            ) { call in
                let request = try Self.beginRequest(call)
                return try .json(
                    try await manager.begin(domain: call.domain, request), status: .created)
            },
            Route(
                .get, "/v1/domains/{domain}/job", query: ["job", "completed", "keepCompleted"]
            ) { call in
                let info =
                    if try call.flag("completed") {
                        try await manager.completedJobInfo(
                            domain: call.domain, job: call.job, keep: call.flag("keepCompleted"))
                    } else {
                        try await manager.jobInfo(domain: call.domain, job: call.job)
                    }
                return try .json(info)
            },
            Route(.get, "/v1/domains/{domain}/job/xml", query: ["job"]) { call in
                let body = try await manager.backupXML(domain: call.domain, job: call.job)
                return try .xml(body.xml, json: body, for: call)
            },
            Route(.post, "/v1/domains/{domain}/job/end", query: ["job"]) { call in
                let failed = try call.json(EndBody.self).failed ?? false
                return try .json(
                    try await manager.end(
                        domain: call.domain, job: call.job, cause: failed ? .failure : .success))
            },
            Route(.post, "/v1/domains/{domain}/job/abort", query: ["job"]) { call in
                try .json(
                    try await manager.end(domain: call.domain, job: call.job, cause: .abort))
            },
        ]
    }

    private func list(_ call: RouteCall, domain: String?) async throws -> Response {
        guard try call.flag("completed") else {
            return try .json(JobsBody(jobs: try await manager.listJobs(domain: domain)))
        }
        return try .json(EndedJobsBody(jobs: try await manager.endedJobs(domain: domain)))
    }

    private var checkpoints: [Route] {
        let base = "/v1/domains/{domain}/checkpoints"
        let one = base + "/{checkpoint}"
        return [
            Route(
                .get, base,
                query: ["roots", "leaves", "noLeaves", "from", "descendants", "topological"]
            ) { call in
                let list = try await manager.listCheckpoints(
                    of: call.domain, try Self.filter(call))
                return try .json(CheckpointsBody(domain: call.domain, checkpoints: list))
            },
            Route(.post, base, query: ["redefine", "redefineValidate", "quiesce"]) { call in
                let xml = call.isXML ? try call.text() : try call.json(XMLBody.self).xml
                let redefines = try call.flag("redefine")
                let validates = try call.flag("redefineValidate")
                guard redefines || !validates else {
                    throw ControlError.invalidArgument(
                        what: "redefineValidate", detail: "it needs 'redefine'")
                }
                let quiesces = try call.flag("quiesce")
                guard !redefines || !quiesces else {
                    throw ControlError.invalidArgument(
                        what: "quiesce", detail: "it excludes 'redefine'")
                }
                return try .json(
                    try await manager.createCheckpoint(
                        domain: call.domain, xml: xml, redefine: redefines, validates: validates,
                        quiesces: quiesces),
                    status: .created)
            },
            Route(.get, one) { call in
                try .json(try await manager.checkpoint(call.checkpoint, of: call.domain))
            },
            Route(.delete, one, query: ["children", "childrenOnly", "metadata"]) { call in
                try await manager.deleteCheckpoint(
                    call.checkpoint, of: call.domain, scope: try Self.scope(call),
                    metadataOnly: call.flag("metadata"))
                return Response(status: .noContent)
            },
            Route(.get, one + "/xml", query: ["noDomain", "size"]) { call in
                let body = try await manager.checkpointXML(
                    call.checkpoint, of: call.domain, withDomain: try !call.flag("noDomain"),
                    withSizes: call.flag("size"))
                return try .xml(body.xml, json: body, for: call)
            },
            Route(.get, one + "/parent") { call in
                try .json(try await manager.checkpointParent(call.checkpoint, of: call.domain))
            },
        ]
    }

    private static func filter(_ call: RouteCall) throws -> CheckpointFilter {
        var filter = CheckpointFilter()
        filter.roots = try call.flag("roots")
        filter.leaves = try call.flag("leaves")
        filter.noLeaves = try call.flag("noLeaves")
        filter.from = call.query["from"]
        filter.descendants = try call.flag("descendants")
        filter.topological = try call.flag("topological")
        return filter
    }

    private static func scope(_ call: RouteCall) throws -> CheckpointTree.Scope {
        switch (try call.flag("children"), try call.flag("childrenOnly")) {
        case (false, false): return .one
        case (true, false): return .withDescendants
        case (false, true): return .descendantsOnly
        case (true, true):
            throw ControlError.invalidArgument(
                what: "children", detail: "it excludes 'childrenOnly'")
        }
    }

    private static func beginRequest(_ call: RouteCall) throws -> BeginRequest {
        var body = BeginBody()
        if call.isXML {
            body.backupXML = try call.text()
        } else {
            body = try call.json(BeginBody.self)
        }
        var request = BeginRequest(
            backupXML: body.backupXML, checkpointXML: body.checkpointXML,
            reuseExternal: try body.reuseExternal ?? call.flag("reuseExternal"),
            timeToLiveSeconds: try body.ttlSeconds ?? call.number("ttlSeconds"),
            fallsBackToFull: try body.fallbackFull ?? call.flag("fallbackFull"),
            clientRelease: try body.clientRelease ?? call.flag("clientRelease"),
            quiesces: try body.quiesce ?? call.flag("quiesce"),
            id: body.id ?? call.query["id"])
        let terms = BackupPlan.PushTerms(
            bytesPerSecond: try body.bandwidth ?? call.number("bandwidth"),
            compresses: try body.compress ?? call.flag("compress"),
            verifies: try body.verify ?? call.flag("verify"))
        if terms.bytesPerSecond == 0 {
            throw ControlError.invalidArgument(
                what: "bandwidth 0", detail: "leave it out to copy as fast as it goes")
        }
        if terms != BackupPlan.PushTerms() { request.push = terms }
        return request
    }

    // Without `follow` the events kept; with it those and all later ones, one JSON object per line.
    private func events(_ call: RouteCall) throws -> Response {
        guard try call.flag("follow") else {
            return try .json(EventsBody(events: manager.events.recent))
        }
        let since = try call.flag("new") ? manager.events.totalCount : 0
        let following = try manager.events.follow()
        let past = manager.events.recent.filter { $0.sequence > since }
        let lines = Self.lines(past: past, following)
        return Response(
            status: .ok, headers: [.contentType: "application/x-ndjson"],
            body: ResponseBody(asyncSequence: lines))
    }

    private static func lines(
        past: [ControlEvent], _ following: AsyncStream<ControlEvent>
    ) -> AsyncStream<ByteBuffer> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: ByteBuffer.self,
            bufferingPolicy: .bufferingNewest(EventLog.followerBacklogMax + past.count))
        let forward = Task {
            var last: UInt64 = 0
            for event in past {
                continuation.yield(line(event))
                last = event.sequence
            }
            // An event that came between taking the past and following is in both.
            for await event in following where event.sequence > last {
                continuation.yield(line(event))
            }
            continuation.finish()
        }
        let keepAlive = Task {
            while !Task.isCancelled {
                try? await Task.sleep(for: .seconds(keepAliveSeconds))
                continuation.yield(ByteBuffer(string: "\n"))
            }
        }
        continuation.onTermination = { _ in
            forward.cancel()
            keepAlive.cancel()
        }
        return stream
    }

    private static func line(_ event: ControlEvent) -> ByteBuffer {
        guard let data = try? ControlJSON.encode(event) else { return ByteBuffer() }
        var buffer = ByteBuffer(bytes: data)
        buffer.writeString("\n")
        return buffer
    }
}
