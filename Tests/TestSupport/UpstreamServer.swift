import Foundation
import Glibc

/// Another program that serves a disk's bytes by NBD on a unix socket, and can be killed and
/// started again.
package final class UpstreamServer {
    /// Which program it is.
    package enum Program: Sendable {
        /// nbdkit with its file plugin, and other arguments in front: several connections at once.
        case nbdkit([String])
        /// nbdkit with another plugin and its arguments.
        case plugin([String])
        /// qemu-nbd, which takes one connection unless it is told otherwise.
        case qemu([String])
    }

    package let socket: String
    package let uri: String
    private let program: Program
    private let file: String
    private let directory: TemporaryDirectory
    private var process: Command?

    package init(_ program: Program, over file: String) throws {
        directory = try TemporaryDirectory()
        socket = directory.file("upstream.sock")
        uri = "nbd+unix:///?socket=" + socket
        self.program = program
        self.file = file
        try start()
    }

    /// Starts it, for the first time or again.
    package func start() throws {
        Files.remove(socket)
        let started: Command
        switch program {
        case .nbdkit(let options):
            let flags = options.filter { $0.hasPrefix("-") }
            let settings = options.filter { !$0.hasPrefix("-") }
            started = try Command(
                "nbdkit", ["-f", "-U", socket] + flags + ["file", file] + settings)
        case .plugin(let arguments):
            started = try Command("nbdkit", ["-f", "-U", socket] + arguments)
        case .qemu(let options):
            started = try Command(
                "qemu-nbd", ["-t", "-f", "raw", "--discard=unmap", "-k", socket] + options + [file])
        }
        let path = socket
        try started.wait(for: "socket") { _ in Files.isListening(path) }
        process = started
    }

    /// Kills it without a word.
    package func kill() {
        process?.kill()
        process = nil
    }

    /// Starts it again if it has ended by itself.
    package func startIfEnded() throws {
        if let process, !process.isRunning { try start() }
    }

    /// For a failure: whether it runs, and what it has said.
    package var summary: String {
        guard let process else { return "the upstream was killed" }
        return (process.isRunning ? "the upstream runs: " : "the upstream has ended: ")
            + process.stderr.suffix(1000)
    }

    /// Stops its threads, or lets them go on.
    package func hang() { process?.signal(SIGSTOP) }
    package func goOn() { process?.signal(SIGCONT) }
}
