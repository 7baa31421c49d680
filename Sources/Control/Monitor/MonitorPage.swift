import Foundation
import NIOCore
import NIOHTTP1

/// An answer of the port for watching; its bytes are shared by all who get it.
struct MonitorPage: Sendable {
    var status: HTTPResponseStatus
    var type: String
    var body: ByteBuffer

    static func text(_ status: HTTPResponseStatus, _ text: String) -> MonitorPage {
        MonitorPage(
            status: status, type: "text/plain; charset=utf-8", body: ByteBuffer(string: text))
    }

    static func json(
        _ value: some Encodable, status: HTTPResponseStatus = .ok
    ) -> MonitorPage {
        guard let data = try? ControlJSON.encode(value) else {
            return text(.internalServerError, "the answer cannot be written\n")
        }
        var body = ByteBuffer(bytes: data)
        body.writeString("\n")
        return MonitorPage(status: status, type: "application/json", body: body)
    }

    static func file(_ bytes: [UInt8], _ type: String) -> MonitorPage {
        MonitorPage(status: .ok, type: type, body: ByteBuffer(bytes: bytes))
    }

    /// What a browser may do with it: run this server's own files, ask this server, and nothing
    /// else.
    private static let policy =
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

    var headers: HTTPHeaders {
        [
            "Content-Type": type,
            "Cache-Control": "no-store",
            "Content-Security-Policy": Self.policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        ]
    }
}
