import Foundation
import HTTPTypes
import Hummingbird
import NIOCore

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
    package var all: [Route] { server + domains + jobs + checkpoints }

    private var server: [Route] {
        [
            Route(.get, "/v1/server") { _ in
                try .json(
                    ServerBody(
                        name: "nbdpull", version: version,
                        pid: Int(ProcessInfo.processInfo.processIdentifier)))
            },
            Route(.get, "/v1/events") { call in try events(call) },
            Route(.get, "/metrics") { _ in
                let text = MetricsText.render(await manager.snapshot())
                return Response(
                    status: .ok,
                    headers: [.contentType: "text/plain; version=0.0.4; charset=utf-8"],
                    body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
            },
        ]
    }

    private var domains: [Route] {
        [
            Route(.get, "/v1/domains") { _ in
                try .json(DomainsBody(domains: await manager.listDomains()))
            },
            Route(.post, "/v1/domains") { call in
                let xml = call.isXML ? try call.text() : try call.json(XMLBody.self).xml
                return try .json(try await manager.define(xml: xml), status: .created)
            },
            Route(.delete, "/v1/domains/{domain}") { call in
                try await manager.undefine(call.domain)
                return Response(status: .noContent)
            },
            Route(.get, "/v1/domains/{domain}/xml") { call in
                try .xml(try await manager.domainXML(call.domain), for: call)
            },
            Route(.get, "/v1/domains/{domain}/disks") { call in
                try .json(
                    DisksBody(
                        domain: call.domain, disks: try await manager.disks(of: call.domain)))
            },
        ]
    }

    private var jobs: [Route] {
        [
            Route(.get, "/v1/jobs") { _ in
                try .json(JobsBody(jobs: try await manager.listJobs(domain: nil)))
            },
            Route(.get, "/v1/domains/{domain}/jobs") { call in
                try .json(JobsBody(jobs: try await manager.listJobs(domain: call.domain)))
            },
            Route(.post, "/v1/domains/{domain}/jobs") { call in
                let request = try Self.beginRequest(call)
                return try .json(
                    try await manager.begin(domain: call.domain, request), status: .created)
            },
            Route(.get, "/v1/domains/{domain}/job") { call in
                let info =
                    if try call.flag("completed") {
                        try await manager.completedJobInfo(
                            domain: call.domain, job: call.job, keep: call.flag("keepCompleted"))
                    } else {
                        try await manager.jobInfo(domain: call.domain, job: call.job)
                    }
                return try .json(info)
            },
            Route(.get, "/v1/domains/{domain}/job/xml") { call in
                try .xml(
                    try await manager.backupXML(domain: call.domain, job: call.job), for: call)
            },
            Route(.post, "/v1/domains/{domain}/job/end") { call in
                let failed = try call.json(EndBody.self).failed ?? false
                return try .json(
                    try await manager.end(
                        domain: call.domain, job: call.job, cause: failed ? .failure : .success))
            },
            Route(.post, "/v1/domains/{domain}/job/abort") { call in
                try .json(
                    try await manager.end(domain: call.domain, job: call.job, cause: .abort))
            },
        ]
    }

    private var checkpoints: [Route] {
        let base = "/v1/domains/{domain}/checkpoints"
        let one = base + "/{checkpoint}"
        let places: [(HTTPRequest.Method, String)] = [
            (.get, base), (.post, base), (.get, one), (.delete, one), (.get, one + "/xml"),
            (.get, one + "/parent"),
        ]
        return places.map { method, path in
            Route(method, path) { call in
                _ = try await manager.domainXML(call.domain)
                throw ControlError.checkpointsNotSupportedYet
            }
        }
    }

    private static func beginRequest(_ call: RouteCall) throws -> BeginRequest {
        var body = BeginBody()
        if call.isXML {
            body.backupXML = try call.text()
        } else {
            body = try call.json(BeginBody.self)
        }
        return BeginRequest(
            backupXML: body.backupXML, checkpointXML: body.checkpointXML,
            reuseExternal: try body.reuseExternal ?? call.flag("reuseExternal"),
            timeToLiveSeconds: try body.ttlSeconds ?? call.number("ttlSeconds"))
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
