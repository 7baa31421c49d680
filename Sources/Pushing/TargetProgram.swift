import CLinux
import Foundation
import Glibc
import Synchronization

/// A program of qemu's that writes an image; it ends with this process, whatever becomes of that.
final class TargetProgram: Sendable {
    /// The package that the programs come with.
    private static let package = "qemu-utils"
    private static let outputBytesMax = 4096

    private let process: Int32
    /// What it prints, in memory.
    private let output: Int32
    private let name: String
    private let file: ProgramFile?
    /// Once it has been waited for, its number may be another's.
    private let isGone = Mutex(false)

    /// Starts a program; it is looked for as a shell does.
    ///
    /// It lives no longer than the calling thread.
    init(
        _ name: String, _ arguments: [String], on file: ProgramFile? = nil
    ) throws(PushFailure) {
        self.name = name
        self.file = file
        let path = try Self.find(name)
        // SAFETY: the string is passed for the time of the call.
        output = unsafe nbdpull_memory_file("nbdpull-\(name)")
        guard output >= 0 else { throw .call("memfd_create", name) }
        // SAFETY: the list ends in nil and, with its texts, lives until the call has returned.
        var texts: [UnsafeMutablePointer<CChar>?] = unsafe ([name] + arguments).map {
            unsafe strdup($0)
        }
        unsafe texts.append(nil)
        defer { unsafe texts.forEach { unsafe free($0) } }
        process = unsafe nbdpull_spawn_bound(path, texts, output, file?.descriptor ?? -1)
        guard process > 0 else { throw .call("fork", name) }
    }

    deinit { if output >= 0 { _ = close(output) } }

    /// Runs a program to its end; returns what it has printed.
    @discardableResult
    static func run(
        _ name: String, _ arguments: [String], on file: ProgramFile? = nil
    ) throws(PushFailure) -> String {
        let program = try TargetProgram(name, arguments, on: file)
        try program.wait()
        return program.printed
    }

    /// Waits for its end; throws when it was not a good one.
    func wait() throws(PushFailure) {
        nbdpull_await_end(process)
        let status = isGone.withLock { isGone in
            // Whoever has ended it has waited for it, too.
            if isGone { return 128 + SIGKILL }
            isGone = true
            return nbdpull_await_child(process)
        }
        guard status == 0 else { throw failure(status) }
    }

    /// Throws when it has ended by now, which is never good where this is asked.
    func checkRuns() throws(PushFailure) {
        var status: Int32 = 0
        // SAFETY: the callee fills the local during the call.
        let hasEnded = isGone.withLock { isGone in
            if isGone { return false }
            isGone = unsafe nbdpull_has_ended(process, &status) == 1
            return isGone
        }
        if hasEnded { throw failure(status) }
    }

    /// Ends it; returns when it has no open file any more, or after a moment, should it hang.
    func kill() {
        for round in 0..<200 {
            let isRunning = isGone.withLock { isGone in
                if isGone { return false }
                if round == 0 { _ = Glibc.kill(process, SIGKILL) }
                var status: Int32 = 0
                // SAFETY: the callee fills the local during the call.
                isGone = unsafe nbdpull_has_ended(process, &status) != 0
                return !isGone
            }
            guard isRunning else { return }
            usleep(5_000)
        }
    }

    /// What it has printed, or the end of that.
    var printed: String {
        let length = max(lseek(output, 0, SEEK_END), 0)
        var bytes = [UInt8](repeating: 0, count: Int(length))
        // SAFETY: base address and count describe the live array.
        let count = unsafe bytes.withUnsafeMutableBytes {
            unsafe pread(output, $0.baseAddress, $0.count, 0)
        }
        return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
    }

    private func failure(_ status: Int32) -> PushFailure {
        let said = String(printed.suffix(Self.outputBytesMax))
            .trimmingCharacters(in: .whitespacesAndNewlines)
            .replacingOccurrences(of: "\n", with: "; ")
            .replacingOccurrences(of: ProgramFile.name, with: file?.path ?? ProgramFile.name)
        let end = status > 128 ? "killed by signal \(status - 128)" : "ended with \(status)"
        return PushFailure(said.isEmpty ? "\(name): \(end)" : said)
    }

    /// Throws when a program is not installed.
    static func check(_ name: String) throws(PushFailure) { _ = try find(name) }

    private static func find(_ name: String) throws(PushFailure) -> String {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        for directory in path.split(separator: ":") where directory.hasPrefix("/") {
            let candidate = "\(directory)/\(name)"
            if FileManager.default.isExecutableFile(atPath: candidate) { return candidate }
        }
        throw PushFailure(
            "the program '\(name)' is not installed, which writes qcow2 images: install the "
                + "package '\(package)', or use <driver type='raw'/>")
    }
}

/// An open file that a program is given: it finds this very file, whatever its name leads to by now.
struct ProgramFile: Sendable {
    /// What the program opens.
    static let name = "/proc/self/fd/3"

    let descriptor: Int32
    /// For people.
    let path: String
}
