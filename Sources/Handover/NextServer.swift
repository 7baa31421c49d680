import Foundation
import Synchronization
import SystemLayer

/// Starts the program of this server anew, whatever version lies there by now.
package final class NextServer: Sendable {
    package let path: String
    private let arguments: [String]
    private let environment: [String]
    private let running = Mutex<Int32?>(nil)

    /// `words`: those that this process was started with; `environment`: its own.
    ///
    /// The program is the one at the path by which this one was started, not the file that it runs
    /// from: a package may have replaced that.
    package init(words: [String], environment: [String: String]) {
        path = Self.path(words.first ?? "", environment)
        var rest = Array(words.dropFirst())
        if !rest.contains("--takeover") { rest.insert("--takeover", at: min(1, rest.count)) }
        arguments = rest
        // These were meant for this process.
        let own: Set = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]
        self.environment = environment.filter { !own.contains($0.key) }.map { "\($0)=\($1)" }
    }

    private static func path(_ word: String, _ environment: [String: String]) -> String {
        let files = FileManager.default
        if word.contains("/") {
            return word.hasPrefix("/") ? word : files.currentDirectoryPath + "/" + word
        }
        for directory in (environment["PATH"] ?? "").split(separator: ":")
        where !word.isEmpty && files.isExecutableFile(atPath: "\(directory)/\(word)") {
            return "\(directory)/\(word)"
        }
        return (try? files.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? word
    }

    /// Starts it; `onEnd` is called with its status, or 128 and the number of the signal that ended
    /// it.
    ///
    /// Throws while one that was started before has not ended.
    package func start(
        _ onEnd: @escaping @Sendable (Int32, _ status: Int32) -> Void
    ) throws(HandoverFault) -> Int32 {
        let process = try running.withLock { running throws(HandoverFault) in
            if let running {
                throw HandoverFault("process \(running) has been started for that already")
            }
            do throws(SystemFault) {
                let process = try OtherProcess.start(path, arguments, environment: environment)
                running = process
                return process
            } catch {
                throw HandoverFault("cannot start '\(path)': \(error.errorText)")
            }
        }
        let isAwaited = DetachedThread.run(name: "nbdpull-next") {
            let status = OtherProcess.awaitChild(process)
            self.running.withLock { $0 = nil }
            onEnd(process, status)
        }
        if !isAwaited { running.withLock { $0 = nil } }
        return process
    }
}
