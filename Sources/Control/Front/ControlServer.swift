import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
package import Logging
import NIOCore
import ServiceLifecycle

/// The control socket: HTTP/1.1 on a unix socket that only its owner may open.
package struct ControlServer: Service {
    /// Seconds after which a connection without a request is closed.
    static let idleSeconds: Int64 = 60

    let routes: Routes
    let socketPath: String
    /// A socket at that path that listens already.
    let socket: Int32?
    let logger: Logger
    let onReady: @Sendable () async -> Void

    /// `onReady` is called once the socket accepts connections.
    ///
    /// A `socket` that listens already is used as it
    /// is, closed at the end, and its file stays.
    package init(
        routes: Routes, socketPath: String, socket: Int32? = nil, logger: Logger,
        onReady: @escaping @Sendable () async -> Void = {}
    ) {
        self.socket = socket
        self.routes = routes
        self.socketPath = socketPath
        self.logger = logger
        self.onReady = onReady
    }

    /// Removes a socket that nobody listens on; throws when somebody does, or when the name is
    /// something else.
    package static func clearStaleSocket(_ path: String) throws(ControlError) {
        guard let found = SystemCalls.identity(of: path) else { return }
        guard found.kind == .socket else {
            throw .invalidArgument(what: "socket '\(path)'", detail: "it exists and is no socket")
        }
        guard !SystemCalls.isListening(unixPath: path) else {
            throw ControlError(
                .operationInvalid, code: "socket-in-use", status: 409,
                detail: "another server listens on socket '\(path)'")
        }
        do {
            try SystemCalls.unlink(path)
        } catch {
            throw ControlError(
                .systemError, code: "socket-not-replaced", status: 500,
                detail: "cannot remove the stale socket '\(path)': \(error.text)")
        }
    }

    /// Serves until graceful shutdown, then lets the requests in progress finish and removes the
    /// socket.
    package func run() async throws {
        guard let socket else { return try await runOnOwnSocket() }
        try await listener(on: .socket(socket), onReady).run()
    }

    private func runOnOwnSocket() async throws {
        try Self.clearStaleSocket(socketPath)
        let path = socketPath
        let onReady = onReady
        defer { _ = try? SystemCalls.unlink(path) }
        try await listener(on: .path(path)) {
            try? FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
            await onReady()
        }.run()
    }

    private func listener(
        on place: HTTPListener.Place, _ onReady: @escaping @Sendable () async -> Void
    ) -> HTTPListener {
        HTTPListener(
            place: place, responder: makeRouter().buildResponder(),
            idleSeconds: Self.idleSeconds, logger: logger, onReady: onReady)
    }

    private func makeRouter() -> Router<BasicRequestContext> {
        let router = Router()
        let all = routes.all
        let manager = routes.manager
        router.addMiddleware { ErrorMiddleware(routes: all) }
        for route in all {
            guard let method = HTTPRequest.Method(route.method) else { continue }
            router.on(RouterPath(route.path), method: method) { request, context in
                try await route.answer(try await Self.call(request, context, manager))
            }
            guard method == .get else { continue }
            router.on(RouterPath(route.path), method: .head) { request, context in
                var call = try await Self.call(request, context, manager)
                // Nobody waits for what would follow.
                if route.query.contains("follow") { call.query["follow"] = nil }
                return try await route.answer(call).createHeadResponse()
            }
        }
        return router
    }

    private static func call(
        _ request: Request, _ context: BasicRequestContext, _ manager: JobManager
    ) async throws -> RouteCall {
        let body = try await collect(request.body)
        var parameters: [String: String] = [:]
        for (key, value) in context.parameters {
            parameters[String(key)] = value.removingPercentEncoding ?? String(value)
        }
        // Every route takes a domain's uuid for its name.
        if let text = parameters["domain"] {
            parameters["domain"] = await manager.name(ofDomain: text)
        }
        var query: [String: String] = [:]
        for (key, value) in request.uri.queryParameters {
            guard query.updateValue(String(value), forKey: String(key)) == nil else {
                throw ControlError.invalidArgument(
                    what: "query parameter '\(key)'", detail: "it is given twice")
            }
        }
        return RouteCall(
            parameters: parameters, query: query,
            contentType: request.headers[.contentType] ?? "",
            accept: request.headers[.accept] ?? "", body: Data(body.readableBytesView))
    }
}

extension ControlServer {
    /// A body that is too large is still read for a while: a client that is cut off while it sends
    /// may never see the answer that says why.
    private static func collect(_ body: RequestBody) async throws -> ByteBuffer {
        var whole = ByteBuffer()
        var count = 0
        for try await chunk in body {
            count += chunk.readableBytes
            if count <= RouteCall.bodyBytesMax { whole.writeImmutableBuffer(chunk) }
            if count > 4 * RouteCall.bodyBytesMax { break }
        }
        guard count <= RouteCall.bodyBytesMax else {
            throw NIOTooManyBytesError(maxBytes: RouteCall.bodyBytesMax)
        }
        return whole
    }
}

/// Turns whatever a handler or the router throws into the one error form.
private struct ErrorMiddleware: RouterMiddleware {
    let routes: [Route]

    func handle(
        _ request: Request, context: BasicRequestContext,
        next: (Request, BasicRequestContext) async throws -> Response
    ) async throws -> Response {
        do {
            // The router passes over empty parts, and another route would get the request.
            guard !request.uri.path.contains("//") else {
                throw ControlError.invalidArgument(
                    what: "path '\(request.uri.path)'", detail: "a name in it is empty")
            }
            return try await next(request, context)
        } catch let error as ControlError {
            return try .failure(error)
        } catch let error as any HTTPResponseError {
            let allowed = allowedMethods(request.uri.path)
            if error.status == .notFound, !allowed.isEmpty {
                return try .failure(Self.error(.methodNotAllowed, request), allow: allowed)
            }
            return try .failure(Self.error(error.status, request))
        } catch is NIOTooManyBytesError {
            return try .failure(Self.error(.contentTooLarge, request))
        } catch {
            return try .failure(.internalError("\(error)"))
        }
    }

    // In the order of the table, with HEAD beside GET.
    private func allowedMethods(_ path: String) -> [String] {
        routes.filter { $0.matches(path: path) }
            .flatMap { $0.method == "GET" ? ["GET", "HEAD"] : [$0.method] }
    }

    private static func error(_ status: HTTPResponse.Status, _ request: Request) -> ControlError {
        switch status {
        case .notFound:
            ControlError(
                .operationUnsupported, code: "no-such-route", status: 404,
                detail: "\(request.method.rawValue) \(request.uri.path) is not a route")
        case .methodNotAllowed:
            ControlError(
                .operationUnsupported, code: "method-not-allowed", status: 405,
                detail: "\(request.method.rawValue) is not a method of \(request.uri.path)")
        case .contentTooLarge:
            ControlError(
                .invalidArgument, code: "body-too-large", status: 413,
                detail: "request body: it is larger than \(RouteCall.bodyBytesMax) bytes")
        default:
            ControlError(
                .internalError, code: "http-\(status.code)", status: status.code,
                detail: status.reasonPhrase)
        }
    }
}
