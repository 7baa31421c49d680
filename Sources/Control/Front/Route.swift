import Foundation
import HTTPTypes
import Hummingbird
import NIOCore

/// One route of the control socket: what the router is given and what `docs/openapi.yaml` must
/// describe.
package struct Route: Sendable {
    package let method: String
    /// With parameters in braces: `/v1/domains/{domain}`.
    package let path: String
    /// The keys that its query may have.
    package let query: [String]
    private let handler: @Sendable (RouteCall) async throws -> Response

    init(
        _ method: HTTPRequest.Method, _ path: String, query: [String] = [],
        _ handler: @escaping @Sendable (RouteCall) async throws -> Response
    ) {
        self.method = method.rawValue
        self.path = path
        self.query = query
        self.handler = handler
    }

    /// Answers a call; unknown keys in its query are refused.
    func answer(_ call: RouteCall) async throws -> Response {
        for key in call.query.keys.sorted() where !query.contains(key) {
            throw ControlError.invalidArgument(
                what: "query parameter '\(key)'",
                detail: "\(method) \(path) has none of that name: "
                    + Spelling.advice(key, known: query))
        }
        return try await handler(call)
    }

    /// Whether a request's path, still percent-encoded, is one of this route's.
    func matches(path other: String) -> Bool {
        let own = path.split(separator: "/", omittingEmptySubsequences: true)
        let given = other.split(separator: "/", omittingEmptySubsequences: true)
        return own.count == given.count
            && zip(own, given).allSatisfy { $0.hasPrefix("{") || $0 == $1 }
    }
}

/// A request as the handlers see it: parameters decoded, body collected within its limit.
struct RouteCall: Sendable {
    /// The largest body any route takes: domain XML with thousands of disks stays below it.
    static let bodyBytesMax = 4 << 20

    let parameters: [String: String]
    var query: [String: String]
    let contentType: String
    let accept: String
    let body: Data

    /// A parameter of the route's path; the router has matched it, so it is there.
    func parameter(_ name: String) throws -> String {
        guard let value = parameters[name] else {
            throw ControlError.invalidArgument(what: name, detail: "is missing from the path")
        }
        return value
    }

    /// The domain of the path.
    var domain: String { get throws { try parameter("domain") } }

    /// The disk of the path: its target or its source's path.
    var disk: String { get throws { try parameter("disk") } }

    /// The checkpoint of the path.
    var checkpoint: String { get throws { try parameter("checkpoint") } }

    /// The `job` of the query.
    var job: String? { query["job"].flatMap { $0.isEmpty ? nil : $0 } }

    /// A query flag: absent is false, present without a value is true.
    func flag(_ name: String) throws -> Bool {
        switch query[name] {
        case nil, "false", "0", "no": return false
        case "", "true", "1", "yes": return true
        case .some(let value):
            throw ControlError.invalidArgument(
                what: "query parameter '\(name)'", detail: "'\(value)' is neither true nor false")
        }
    }

    /// A query number, or nil when it is absent.
    func number(_ name: String) throws -> UInt64? {
        guard let text = query[name] else { return nil }
        guard let value = UInt64(text) else {
            throw ControlError.invalidArgument(
                what: "query parameter '\(name)'", detail: "'\(text)' is not a number")
        }
        return value
    }

    var isXML: Bool {
        let type = contentType.split(separator: ";").first.map(String.init) ?? ""
        return type == "application/xml" || type == "text/xml"
    }

    /// The body as UTF-8 text.
    func text() throws -> String {
        guard let text = String(data: body, encoding: .utf8) else {
            throw ControlError.invalidArgument(what: "request body", detail: "it is not UTF-8")
        }
        return text
    }

    /// XML, as the body or as text in it.
    func xml() throws -> String { isXML ? try text() : try json(XMLBody.self).xml }

    /// The body as JSON of a shape whose keys are known; an empty body is `{}`.
    ///
    /// Any other key is refused: a misspelt one would silently ask for something else.
    func json<Value: JSONBody>(_ type: Value.Type) throws -> Value {
        let data = body.isEmpty ? Data("{}".utf8) : body
        let given = (try? JSONSerialization.jsonObject(with: data)) as? [String: Any] ?? [:]
        for key in given.keys.sorted() where !type.keys.contains(key) {
            throw ControlError.invalidArgument(
                what: "request body",
                detail: "'\(key)' is not a key of it: " + Spelling.advice(key, known: type.keys))
        }
        return try decoded(type, data)
    }

    private func decoded<Value: Decodable>(_ type: Value.Type, _ data: Data) throws -> Value {
        do {
            return try ControlJSON.decode(type, from: data)
        } catch {
            throw ControlError.invalidArgument(
                what: "request body",
                detail: "it is not the JSON expected here: \(Self.reason(error))")
        }
    }

    private static func reason(_ error: any Error) -> String {
        switch error {
        case DecodingError.keyNotFound(let key, _): "key '\(key.stringValue)' is missing"
        case DecodingError.typeMismatch(_, let context),
            DecodingError.valueNotFound(_, let context):
            "key '\(context.codingPath.map(\.stringValue).joined(separator: "."))' "
                + "has the wrong type"
        default: "it cannot be parsed"
        }
    }
}

extension Response {
    /// A JSON answer.
    static func json(_ value: some Encodable, status: HTTPResponse.Status = .ok) throws -> Response
    {
        var buffer = ByteBuffer(bytes: try ControlJSON.encode(value))
        buffer.writeString("\n")
        return Response(
            status: status, headers: [.contentType: "application/json"],
            body: ResponseBody(byteBuffer: buffer))
    }

    /// XML: as it is when the client accepts `application/xml`, else as text in JSON.
    static func xml(_ text: String, for call: RouteCall) throws -> Response {
        try xml(text, json: XMLBody(xml: text), for: call)
    }

    /// XML when the client accepts `application/xml`, else `body`, which has it as text.
    static func xml(
        _ text: String, json body: some Encodable, for call: RouteCall
    ) throws -> Response {
        guard call.accept.contains("application/xml") else { return try json(body) }
        return Response(
            status: .ok, headers: [.contentType: "application/xml"],
            body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
    }

    /// An error, in the form every route reports one; `allow` names the methods that would do.
    static func failure(_ error: ControlError, allow: [String] = []) throws -> Response {
        var response = try json(
            ErrorBody(error), status: HTTPResponse.Status(code: error.httpStatus))
        if !allow.isEmpty { response.headers[.allow] = allow.joined(separator: ", ") }
        return response
    }
}
