import Foundation

/// A directory that goes away with its last owner.
package final class TemporaryDirectory {
    package let path: String

    /// Makes an empty directory with a short path, so that unix sockets fit into it.
    package init(under parent: String = "/tmp") throws {
        let name = "nbdpull-" + String(UInt64.random(in: 0...UInt64.max), radix: 36)
        path = parent + "/" + name
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false,
            attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The path of an entry, existing or not.
    package func file(_ name: String) -> String { path + "/" + name }

    /// Makes a subdirectory and returns its path.
    package func directory(_ name: String) throws -> String {
        try FileManager.default.createDirectory(
            atPath: file(name), withIntermediateDirectories: true)
        return file(name)
    }

    /// Every entry below, as sorted relative paths.
    package func listing() -> [String] { Files.listing(path) }
}

/// Looks at files as a test needs them.
package enum Files {
    /// Every entry below a directory, as sorted relative paths; empty if there is none.
    package static func listing(_ directory: String) -> [String] {
        (FileManager.default.enumerator(atPath: directory)?.compactMap { $0 as? String } ?? [])
            .sorted()
    }

    /// Whether somebody listens at a unix socket that was bound under just this path: the file is
    /// there a moment before.
    package static func isListening(_ path: String) -> Bool {
        read("/proc/net/unix").split(separator: "\n").contains { line in
            let fields = line.split(separator: " ", maxSplits: 7)
            // The kernel's flag of a socket that accepts.
            return fields.count == 8 && fields[3] == "00010000" && fields[7] == path
        }
    }

    package static func exists(_ path: String) -> Bool {
        FileManager.default.fileExists(atPath: path)
    }

    /// Permission bits of an entry.
    package static func mode(_ path: String) throws -> Int {
        let attributes = try FileManager.default.attributesOfItem(atPath: path)
        guard let mode = attributes[.posixPermissions] as? Int else {
            throw TestFailure("\(path) has no permission bits")
        }
        return mode
    }

    package static func write(_ text: String, to path: String) throws {
        try text.write(toFile: path, atomically: false, encoding: .utf8)
    }

    /// A file's text; empty if there is none.
    package static func read(_ path: String) -> String {
        guard let handle = FileHandle(forReadingAtPath: path) else { return "" }
        defer { try? handle.close() }
        // The kernel gives files of its own in pieces, and the first short one is not the end.
        var bytes = Data()
        while let more = try? handle.read(upToCount: 64 << 10), !more.isEmpty { bytes += more }
        return String(decoding: bytes, as: UTF8.self)
    }

    package static func remove(_ path: String) { try? FileManager.default.removeItem(atPath: path) }
}
