import Foundation
import NIOCore
import NIOHTTP1

/// What the port for watching answers, and to whom.
final class MonitorPages: Sendable {
    private let manager: JobManager
    private let hosts: HostRule
    private let figures: FreshValue<MonitorPage>
    private let overview: FreshValue<MonitorPage>
    private let ready: FreshValue<MonitorPage>
    private let maps: MapShelf

    init(manager: JobManager, version: String, hosts: HostRule) {
        self.manager = manager
        self.hosts = hosts
        let good = MonitorLimits.figuresGoodSeconds
        figures = FreshValue(goodSeconds: good) {
            var page = MonitorPage.text(
                .ok, MetricsText.render(await manager.snapshot(), version: version))
            page.type = MetricsText.contentType
            return page
        }
        overview = FreshValue(goodSeconds: good) {
            .json(await manager.overview(version: version))
        }
        ready = FreshValue(goodSeconds: good) {
            let problems = await manager.problems
            return .json(
                ReadyBody(ready: problems.isEmpty, problems: problems),
                status: problems.isEmpty ? .ok : .serviceUnavailable)
        }
        maps = MapShelf(manager: manager)
    }

    /// Why a request is not answered; nil when it is.
    func refusal(of head: HTTPRequestHead, hasBody: Bool) -> MonitorPage? {
        let given = head.headers["Host"]
        guard given.count <= 1, hosts.allows(given.first) else {
            return .text(
                .misdirectedRequest,
                "the request's Host is no name of this server: ask by its address, or name it with "
                    + "--metrics-host\n")
        }
        guard head.method == .GET || head.method == .HEAD else {
            return .text(.methodNotAllowed, "only GET and HEAD: nothing can be changed here\n")
        }
        guard !hasBody else { return .text(.payloadTooLarge, "no request here has a body\n") }
        return nil
    }

    /// What is always the same, and needs nobody else.
    func fixed(_ uri: String) -> MonitorPage? {
        switch MonitorRequest(uri)?.path.joined(separator: "/") {
        case "healthz": .text(.ok, "ok\n")
        case "": .file(PackageResources.index_html, "text/html; charset=utf-8")
        case "page.js": .file(PackageResources.page_js, "text/javascript; charset=utf-8")
        case "map.js": .file(PackageResources.map_js, "text/javascript; charset=utf-8")
        case "page.css": .file(PackageResources.page_css, "text/css; charset=utf-8")
        case "icon.svg": .file(PackageResources.icon_svg, "image/svg+xml")
        default: nil
        }
    }

    /// What has to be looked up.
    func answer(_ uri: String) async -> MonitorPage {
        guard let request = MonitorRequest(uri) else {
            return .text(.badRequest, "the path cannot be read\n")
        }
        let page: MonitorPage? =
            switch (request.path.first, request.path.count) {
            case ("metrics", 1): await figures.get()
            case ("readyz", 1): await ready.get()
            case ("v1", 2) where request.path[1] == "overview": await overview.get()
            case ("v1", 2) where request.path[1] == "events": events(request)
            case ("v1", 6)
            where request.path[1] == "domains" && request.path[3] == "disks"
                && request.path[5] == "map":
                await maps.page(domain: request.path[2], disk: request.path[4])
            default: .text(.notFound, "there is nothing of that name\n")
            }
        return page ?? .text(.serviceUnavailable, "the server does not answer\n")
    }

    private func events(_ request: MonitorRequest) -> MonitorPage {
        let since = request.query["since"].flatMap { UInt64($0) } ?? 0
        return .json(
            EventsBody(events: manager.events.later(than: since, max: MonitorLimits.eventsMax)))
    }
}

/// The path and query of a request, decoded.
struct MonitorRequest: Sendable, Hashable {
    var path: [String]
    var query: [String: String] = [:]

    /// Nil when it cannot be decoded.
    init?(_ uri: String) {
        let parts = uri.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.first?.hasPrefix("/") == true else { return nil }
        path = []
        for step in parts[0].split(separator: "/", omittingEmptySubsequences: true) {
            guard let text = String(step).removingPercentEncoding else { return nil }
            path.append(text)
        }
        guard parts.count > 1 else { return }
        for pair in parts[1].split(separator: "&") {
            let sides = pair.split(separator: "=", maxSplits: 1).map(String.init)
            guard let name = sides.first else { continue }
            query[name] = sides.count > 1 ? sides[1].removingPercentEncoding ?? "" : ""
        }
    }
}

/// Pictures of disks that somebody looks at.
actor MapShelf {
    private let manager: JobManager
    private var maps: [Place: FreshValue<MonitorPage>] = [:]
    private var order: [Place] = []

    private struct Place: Hashable {
        var domain: String
        var disk: String
    }

    init(manager: JobManager) { self.manager = manager }

    func page(domain: String, disk: String) async -> MonitorPage? {
        let place = Place(domain: domain, disk: disk)
        // Names come from anybody: what is kept is bounded.
        guard await manager.hasDisk(disk, of: domain) else {
            return .text(.notFound, "there is no such disk\n")
        }
        order.removeAll { $0 == place }
        order.append(place)
        if order.count > MonitorLimits.mapsMax { maps[order.removeFirst()] = nil }
        let manager = manager
        let map =
            maps[place]
            ?? FreshValue<MonitorPage>(goodSeconds: MonitorLimits.mapGoodSeconds) {
                () async -> MonitorPage in
                do throws(ControlError) {
                    return .json(try await manager.map(of: disk, in: domain))
                } catch {
                    return .text(
                        HTTPResponseStatus(statusCode: error.httpStatus), error.message + "\n")
                }
            }
        maps[place] = map
        return await map.get()
    }
}
