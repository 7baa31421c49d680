import Foundation
import TestSupport

/// The peers of `Tests/hostile/peer.py`.
enum HostilePeer {
    private static var script: String {
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "hostile/peer.py").path
    }

    /// Starts a peer and leaves it to itself; it has said `ready` when `isHeld`.
    static func start(_ arguments: [String], isHeld: Bool = true) throws -> Command {
        let command = try Command("/usr/bin/python3", [script] + arguments)
        if isHeld { try command.wait(for: "ready") { $0.stdout.contains("ready") } }
        return command
    }

    /// Runs a peer to its end.
    static func run<Value: Decodable>(
        _ arguments: [String], as type: Value.Type, timeout: Double = 60
    ) throws -> Value {
        try result(of: try start(arguments, isHeld: false), as: type, timeout: timeout)
    }

    /// What a peer found out, once it has ended.
    static func result<Value: Decodable>(
        of command: Command, as type: Value.Type, timeout: Double = 60
    ) throws -> Value {
        let text = try command.result(timeout: timeout).output()
        let line = text.split(separator: "\n").last ?? ""
        return try JSONDecoder().decode(type, from: Data(line.utf8))
    }
}

/// What peers answer.
struct Flooded: Decodable {
    let connects: Int
    let refused: Int
    let seconds: Double
}
struct Served: Decodable { let served: Int }
struct Closed: Decodable {
    let closed: Bool
    let seconds: Double
}
struct Marked: Decodable {
    let texts: [String]
    let mark: String
}
struct Hangups: Decodable { let hangups: Int }

extension LiveFixture {
    var liveSocket: String { server.liveSocket }

    /// How many working connections are served at once, asked for `count`.
    ///
    /// Connections of peers that have just gone may still be counted: it is asked again for a while
    /// as long as fewer than `expected` are served.
    func served(
        _ address: String, _ name: String, _ count: Int, expected: Int? = nil
    ) throws -> Int {
        var found = 0
        for _ in 0..<10 {
            found = try HostilePeer.run(["holds", address, name, "\(count)"], as: Served.self)
                .served
            if found >= expected ?? count { break }
            Thread.sleep(forTimeInterval: 0.2)
        }
        return found
    }
}
