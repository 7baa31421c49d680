/// What the server that holds a disk says about itself where it is forgotten with the machine's
/// restart: in memory, beside the disk's live bits.
///
/// It exists before the disk is served, so the next server sees who held the disk last.
package struct TrackingSession: Sendable, Hashable {
    /// What became of the session.
    package enum State: String, Sendable, Hashable, CaseIterable {
        /// Changes are recorded.
        case tracked
        /// The disk was or is served, and its changes are not recorded, or not all.
        case untracked
        /// Changes are recorded; a sync of the disk has been under way for long, and what the kernel
        /// tells of it dies with the process.
        case syncing
    }

    /// Names the session; never used twice.
    package var id: String
    /// The boot during which it was written.
    package var bootID: String
    package var state: State
    /// The tracking directory that it belongs to.
    package var directory: String

    private static let title = "nbdpull-session 1"
    /// A larger file is not ours, in bytes.
    package static let bytesMax = 16 << 10

    package init(id: String, bootID: String, state: State, directory: String) {
        self.id = id
        self.bootID = bootID
        self.state = state
        self.directory = directory
    }

    package func encode() -> [UInt8] {
        let lines = [
            Self.title, "session \(id)", "boot \(bootID)", "state \(state.rawValue)",
            "directory \(TrackingRecord.escaped(directory))",
        ]
        let body = Array((lines.joined(separator: "\n") + "\n").utf8)
        return body + Array("crc \(Zlib.crc32(body.span))\n".utf8)
    }

    /// Reads what `encode` made, or nil; bytes after it are ignored.
    package static func decode(_ bytes: [UInt8]) -> TrackingSession? {
        let text = String(decoding: bytes, as: UTF8.self)
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        guard lines.count >= 6, lines[0] == title,
            let id = TrackingRecord.value("session", lines[1]),
            let boot = TrackingRecord.value("boot", lines[2]),
            let state = TrackingRecord.value("state", lines[3]).flatMap({ State(rawValue: $0) }),
            let directory = TrackingRecord.value("directory", lines[4]),
            let sum = TrackingRecord.value("crc", lines[5]).flatMap({ UInt32($0) })
        else { return nil }
        let body = Array((lines[..<5].joined(separator: "\n") + "\n").utf8)
        guard sum == Zlib.crc32(body.span) else { return nil }
        return TrackingSession(
            id: id, bootID: boot, state: state, directory: TrackingRecord.unescaped(directory))
    }

    /// A name that no other session has.
    package static func freshID() -> String {
        var generator = SystemRandomNumberGenerator()
        return String(generator.next(), radix: 16) + String(generator.next(), radix: 16)
    }
}
