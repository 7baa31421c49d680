import Foundation
import ServerInterface

/// What two servers say to each other when one takes the other's place.
///
/// The one that comes is the *newcomer*. It says `hello`; the other answers `welcome` or `refused`.
/// Until the newcomer says `take` nothing has happened to either. Then the other lets go of its
/// disks and sends `sockets` and `go`, or `refused`. The newcomer beats with `progress` until it is
/// `serving` or has `failed`. Served by the newcomer, the other says `done` and ends; it goes on by
/// itself in any other case.
struct HandoverMessage: Sendable, Codable, Hashable {
    enum Kind: String, Sendable, Codable {
        case hello, welcome, refused, take, sockets, go, progress, serving, failed, done
    }

    /// Counts up when an older version could not take part any more; each side refuses another.
    static let protocolVersion = 1

    var kind: Kind
    var version: Int?
    /// Of the program, in `hello` and `welcome`.
    var program: String?
    var executable: String?
    /// The sender's: a socket that was passed on shows who has listened on it first.
    var process: Int32?
    var stateDirectory: String?
    var runDirectory: String?
    /// Why, for people.
    var reason: String?
    /// Of the descriptors that the message carries, in their order.
    var places: [SocketPlace]?

    init(_ kind: Kind) { self.kind = kind }

    static func hello(_ identity: ServerIdentity) -> HandoverMessage {
        var message = HandoverMessage(.hello)
        message.version = protocolVersion
        message.program = identity.program
        message.executable = identity.executable
        message.process = ProcessInfo.processInfo.processIdentifier
        message.stateDirectory = identity.stateDirectory
        message.runDirectory = identity.runDirectory
        return message
    }

    static func welcome(_ identity: ServerIdentity) -> HandoverMessage {
        var message = hello(identity)
        message.kind = .welcome
        return message
    }

    static func refused(_ reason: String) -> HandoverMessage {
        var message = HandoverMessage(.refused)
        message.reason = reason
        return message
    }

    static func failed(_ reason: String) -> HandoverMessage {
        var message = HandoverMessage(.failed)
        message.reason = reason
        return message
    }

    static func sockets(_ places: [SocketPlace]) -> HandoverMessage {
        var message = HandoverMessage(.sockets)
        message.places = places
        return message
    }
}

/// Which server of which version this is.
package struct ServerIdentity: Sendable, Hashable {
    package var program: String
    /// The path by which it was started.
    package var executable: String
    package var stateDirectory: String
    package var runDirectory: String

    package init(
        program: String, executable: String, stateDirectory: String, runDirectory: String
    ) {
        self.program = program
        self.executable = executable
        self.stateDirectory = stateDirectory
        self.runDirectory = runDirectory
    }
}

/// Why one server does not take another's place.
package struct HandoverFault: Error, Sendable, Hashable {
    package let text: String
    package init(_ text: String) { self.text = text }
}
