import Foundation
import Glibc

/// How a program ended and what it said.
package struct CommandResult: Sendable, CustomStringConvertible {
    package let command: String
    /// The exit status, or 128 + the signal that ended it.
    package let status: Int32
    package let stdout: String
    package let stderr: String

    package var succeeded: Bool { status == 0 }

    package var description: String {
        "`\(command)` ended with \(status)\n--- stdout\n\(stdout)--- stderr\n\(stderr)"
    }

    /// The standard output of a program that must have succeeded.
    @discardableResult
    package func output() throws -> String {
        guard succeeded else { throw TestFailure(description) }
        return stdout
    }
}

/// A program that runs beside the test; it is killed with its last owner.
package final class Command {
    private let process: ChildProcess
    private let scratch: TemporaryDirectory
    private let text: String

    /// Starts a program that is looked up by name (see ``Tool``) or given as an absolute path.
    ///
    /// Output goes to files, so that no program ever waits for the test to read it.
    package init(
        _ name: String, _ arguments: [String], environment: [String: String] = [:],
        input: String = ""
    ) throws {
        scratch = try TemporaryDirectory()
        text = ([name] + arguments).joined(separator: " ")
        try Files.write(input, to: scratch.file("stdin"))
        process = try ChildProcess(
            try Tool.path(name), arguments,
            environment: ProcessInfo.processInfo.environment.merging(environment) { $1 },
            stdin: scratch.file("stdin"), stdout: scratch.file("stdout"),
            stderr: scratch.file("stderr"))
    }

    package var isRunning: Bool { process.pollStatus() == nil }
    package var processID: Int32 { process.processID }
    package var stdout: String { Files.read(scratch.file("stdout")) }
    package var stderr: String { Files.read(scratch.file("stderr")) }

    /// Runs a program to its end, or kills it when the time is over.
    package static func run(
        _ name: String, _ arguments: [String], environment: [String: String] = [:],
        input: String = "", timeout seconds: Double = 60
    ) throws -> CommandResult {
        try Command(name, arguments, environment: environment, input: input)
            .result(timeout: seconds)
    }

    /// Waits for the program's end.
    package func result(timeout seconds: Double = 60) throws -> CommandResult {
        guard let status = wait(seconds: seconds) else {
            kill()
            throw TestFailure(
                "`\(text)` did not end within \(seconds) s\n--- stdout\n\(stdout)--- stderr\n\(stderr)"
            )
        }
        return CommandResult(command: text, status: status, stdout: stdout, stderr: stderr)
    }

    /// Waits until the condition on the running program holds; fails when the program ends first.
    package func wait(
        for what: String, timeout seconds: Double = 20, until condition: (Command) -> Bool
    ) throws {
        let deadline = Date(timeIntervalSinceNow: seconds)
        while !condition(self) {
            guard isRunning else { throw TestFailure("no \(what): \(try result())") }
            guard Date() < deadline else {
                throw TestFailure("no \(what) from `\(text)` within \(seconds) s\n\(stderr)")
            }
            Thread.sleep(forTimeInterval: 0.005)
        }
    }

    /// Sends a signal.
    package func signal(_ number: Int32) { process.signal(number) }

    /// Asks the program to end (SIGTERM).
    package func terminate() { process.signal(SIGTERM) }

    /// Ends the program at once (SIGKILL) and waits for its end.
    package func kill() {
        process.signal(SIGKILL)
        _ = wait(seconds: 10)
    }

    private func wait(seconds: Double) -> Int32? {
        let deadline = Date(timeIntervalSinceNow: seconds)
        while true {
            if let status = process.pollStatus() { return status }
            if Date() >= deadline { return nil }
            Thread.sleep(forTimeInterval: 0.003)
        }
    }
}
