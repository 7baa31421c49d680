package import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix

/// The client side of the control socket, as the command line uses it.
package struct ControlClient: Sendable {
    /// Longest accepted answer; a list of everything stays far below it.
    static let answerBytesMax = 64 << 20

    package let socketPath: String

    package init(socketPath: String) { self.socketPath = socketPath }

    /// One request.
    package struct Call: Sendable {
        package var method: String
        /// Segments of the path, not yet percent-encoded.
        package var path: [String]
        package var query: [(String, String)] = []
        package var body: Data?
        package var contentType = "application/json"
        package var accept = "application/json"

        package init(_ method: String, _ path: String...) {
            self.method = method
            self.path = path
        }

        var target: String {
            let encoded = path.map { segment in
                // `.` and `..` are names here, not steps.
                if segment == "." || segment == ".." {
                    return segment.replacing(".", with: "%2E")
                }
                return ExportURI.encoded(segment)
                    .split(separator: "/", omittingEmptySubsequences: false)
                    .joined(separator: "%2F")
            }
            let query = query.map { "\(ExportURI.encoded($0))=\(ExportURI.encoded($1))" }
            return "/" + encoded.joined(separator: "/")
                + (query.isEmpty ? "" : "?" + query.joined(separator: "&"))
        }
    }

    /// Sends one request and returns the body of a good answer; the server's error is thrown as it
    /// is.
    package func send(_ call: Call) async throws(ControlError) -> Data {
        guard !call.path.contains("") else {
            throw .invalidArgument(what: "name ''", detail: "a name is never empty")
        }
        var collected = Data()
        let status = try await exchange(call) { chunk throws(ControlError) in
            collected.append(contentsOf: chunk.readableBytesView)
            guard collected.count <= Self.answerBytesMax else {
                throw .internalError("the server's answer is larger than expected")
            }
        }
        guard (200..<300).contains(status) else { throw Self.error(status, collected) }
        return collected
    }

    /// Sends one request and decodes the answer.
    package func send<Value: Decodable>(
        _ call: Call, as type: Value.Type
    ) async throws(ControlError) -> Value {
        let data = try await send(call)
        do {
            return try ControlJSON.decode(type, from: data)
        } catch {
            throw .internalError("the server's answer is not understood: \(error)")
        }
    }

    /// Hands every line of a streamed answer to `body` as it comes, until the server ends the
    /// stream.
    package func lines(
        _ call: Call, _ body: (String) -> Void
    ) async throws(ControlError) {
        var rest = Data()
        let status = try await exchange(call) { chunk throws(ControlError) in
            rest.append(contentsOf: chunk.readableBytesView)
            while let newline = rest.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: rest[..<newline], as: UTF8.self)
                rest = Data(rest[(newline + 1)...])
                if !line.isEmpty { body(line) }
            }
        }
        guard (200..<300).contains(status) else { throw Self.error(status, rest) }
    }

    private typealias RequestPart = HTTPPart<HTTPRequestHead, ByteBuffer>

    private func exchange(
        _ call: Call, _ take: (ByteBuffer) throws(ControlError) -> Void
    ) async throws(ControlError) -> Int {
        do {
            let channel = try await connect()
            return try await channel.executeThenClose { inbound, outbound in
                // The server may answer and hang up as soon as it has seen enough, before the last
                // part is written: what it said counts, not that it no longer listens.
                var parts: [RequestPart] = [.head(head(of: call))]
                if let body = call.body { parts.append(.body(ByteBuffer(bytes: body))) }
                parts.append(.end(nil))
                var failure: (any Error)?
                do {
                    try await outbound.write(contentsOf: parts)
                } catch {
                    failure = error
                }
                if let status = try await receive(inbound, take) { return status }
                throw failure
                    ?? ControlError.internalError(
                        "the server closed the control socket '\(socketPath)' before it answered")
            }
        } catch let error as ControlError {
            throw error
        } catch let error as IOError {
            throw unreachable(SystemCalls.errorText(error.errnoCode))
        } catch {
            throw unreachable("\(error)")
        }
    }

    private func connect() async throws
        -> NIOAsyncChannel<HTTPClientResponsePart, HTTPPart<HTTPRequestHead, ByteBuffer>>
    {
        try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connect(unixDomainSocketPath: socketPath) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHTTPClientHandlers()
                    try channel.pipeline.syncOperations.addHandler(RequestPartHandler())
                    return try NIOAsyncChannel(wrappingChannelSynchronously: channel)
                }
            }
    }

    private func head(of call: Call) -> HTTPRequestHead {
        var headers = HTTPHeaders([
            ("Host", "localhost"), ("Connection", "close"), ("Accept", call.accept),
            ("Content-Length", String(call.body?.count ?? 0)),
        ])
        if call.body != nil { headers.add(name: "Content-Type", value: call.contentType) }
        return HTTPRequestHead(
            version: .http1_1, method: HTTPMethod(rawValue: call.method), uri: call.target,
            headers: headers)
    }

    private func receive(
        _ inbound: NIOAsyncChannelInboundStream<HTTPClientResponsePart>,
        _ take: (ByteBuffer) throws(ControlError) -> Void
    ) async throws -> Int? {
        var status: Int?
        for try await part in inbound {
            switch part {
            case .head(let head): status = Int(head.status.code)
            case .body(let chunk): try take(chunk)
            case .end:
                if let status { return status }
            }
        }
        return nil
    }

    private func unreachable(_ detail: String) -> ControlError {
        ControlError(
            .systemError, code: "server-unreachable", status: 503,
            detail: "cannot reach the control socket '\(socketPath)': \(detail) "
                + "(is `nbdpull serve` running?)")
    }

    private static func error(_ status: Int, _ data: Data) -> ControlError {
        guard let body = try? ControlJSON.decode(ErrorBody.self, from: data) else {
            return .internalError("the server answered with HTTP status \(status)")
        }
        return ControlError(
            code: body.error.code, libvirtCode: body.error.libvirtCode,
            message: body.error.message, httpStatus: status)
    }
}

/// Lets requests be written as plain buffers, which may cross threads.
private final class RequestPartHandler: ChannelOutboundHandler {
    typealias OutboundIn = HTTPPart<HTTPRequestHead, ByteBuffer>
    typealias OutboundOut = HTTPClientRequestPart

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        let part: HTTPClientRequestPart =
            switch unwrapOutboundIn(data) {
            case .head(let head): .head(head)
            case .body(let buffer): .body(.byteBuffer(buffer))
            case .end(let headers): .end(headers)
            }
        context.write(wrapOutboundOut(part), promise: promise)
    }
}
