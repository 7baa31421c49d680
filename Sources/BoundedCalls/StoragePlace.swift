import Synchronization
import SystemLayer

/// What a call that may hang depends on: calls on the same place share its fate and its threads.
package enum StoragePlace: Hashable, Sendable {
    /// A file system, or a part of one.
    case storage(String)
    /// A host name that is to be resolved.
    case host(String)
    /// The server's own files of change tracking.
    case tracking
    /// Credentials and access rules.
    case security
    /// Looks at a path, or at the state directory, for a picture: none of them takes a thread from
    /// calls that matter.
    case picture(String)
    /// Calls that own disks for their time; what they wait for is bounded.
    case disks

    /// The place of a path, told by its text and the mounts of the moment: nothing on the path
    /// itself is asked, since that may hang.
    ///
    /// A mount is one place. On the root file system each directory is one, because a link in it
    /// may lead anywhere; each device in `/dev` is one.
    package static func of(_ path: String) -> StoragePlace {
        of(path, mounts: mountPoints())
    }

    /// The same for given mount points.
    package static func of(_ path: String, mounts: [String]) -> StoragePlace {
        var mount = "/"
        for point in mounts where point.utf8.count > mount.utf8.count {
            if path == point || path.hasPrefix(point + "/") { mount = point }
        }
        switch mount {
        case "/":
            let end = path.lastIndex(of: "/") ?? path.startIndex
            return .storage(String(path[..<end]))
        case "/dev": return .storage(path)
        default: return .storage(mount)
        }
    }

    /// How people are told of it.
    package var text: String {
        switch self {
        case .storage(let path): path.isEmpty ? "'/'" : "'\(path)'"
        case .host(let name): "the name server asked for '\(name)'"
        case .tracking: "the state directory"
        case .picture(let path): "'\(path)'"
        case .security: "the files of TLS and access rules"
        case .disks: "the server's disks"
        }
    }

    private static let mountsBytesMax = 4 << 20
    private static let mountsPieceBytes = 64 << 10

    /// Where file systems were mounted not long ago: a call asks several times, and a mount that is
    /// new only shares threads for so long with the one it lies on.
    private static func mountPoints() -> [String] {
        let now = MonotonicClock.now()
        let known = lastMounts.withLock { now < $0.goodUntil ? $0.points : nil }
        if let known { return known }
        let points = readMountPoints()
        lastMounts.withLock { $0 = (points, now + mountsNanoseconds) }
        return points
    }

    private static let lastMounts = Mutex<(points: [String], goodUntil: UInt64)>(([], 0))
    private static let mountsNanoseconds: UInt64 = 500_000_000

    /// Where file systems are mounted; none when that cannot be told.
    private static func readMountPoints() -> [String] {
        do throws(SystemFault) {
            let file = try FileCalls.open("/proc/self/mountinfo", [])
            var bytes: [UInt8] = []
            while bytes.count < mountsBytesMax {
                let more = try FileCalls.read(
                    file.raw, at: UInt64(bytes.count), count: mountsPieceBytes)
                if more.isEmpty { break }
                bytes += more
            }
            return mountPoints(in: String(decoding: bytes, as: UTF8.self))
        } catch {
            return []
        }
    }

    /// The mount points that a text in the form of `/proc/self/mountinfo` names.
    static func mountPoints(in text: String) -> [String] {
        text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ", maxSplits: 5)
            return fields.count > 4 ? unescaped(fields[4]) : nil
        }
    }

    /// Blanks and backslashes are written there as three octal digits.
    private static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let code = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(code)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
