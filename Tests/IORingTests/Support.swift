import Foundation
import Glibc
import IORing
import Testing

/// A directory of its own, removed at the end.
final class TemporaryDirectory {
    let url: URL

    init() throws {
        url = FileManager.default.temporaryDirectory.appending(
            path: "nbdpull-test-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: url) }

    func path(_ name: String) -> String { url.appending(path: name).path() }

    /// A new file with the given bytes.
    func file(_ name: String, _ bytes: [UInt8]) throws -> String {
        try Data(bytes).write(to: url.appending(path: name))
        return path(name)
    }
}

/// Runs a program and returns its exit code and output.
func run(_ program: String, _ arguments: [String]) throws -> (code: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(filePath: program)
    process.arguments = arguments
    let pipe = Pipe()
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: data, as: UTF8.self))
}

extension Process {
    /// Ends the program at once; a child of a test's thread may have every other signal blocked.
    func killAndWait() {
        kill(processIdentifier, SIGKILL)
        waitUntilExit()
    }
}

extension BufferArena {
    /// Fills a range with bytes that depend on their place.
    mutating func fill(_ offset: Int, count: Int, salt: Int) {
        var bytes = mutableBytes(offset, count: count)
        for index in 0..<count {
            bytes.storeBytes(
                of: UInt8(truncatingIfNeeded: index * 7 + salt), toByteOffset: index,
                as: UInt8.self)
        }
    }

    func contents(_ offset: Int, count: Int) -> [UInt8] {
        let span = bytes(offset, count: count)
        return (0..<count).map { span[$0] }
    }
}

extension Ring {
    /// Submits and waits until `count` operations are complete: their results by tag.
    mutating func results(_ count: Int) -> [UInt64: Int32] {
        var results: [UInt64: Int32] = [:]
        var completions: [Completion] = []
        while results.count < count {
            submit(waiting: true)
            drain(into: &completions)
            for completion in completions { results[completion.tag] = completion.result }
        }
        return results
    }
}
