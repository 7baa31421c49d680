import Foundation

/// The programs of Debian 13 that `dev/clients` brings into a folder: what people use today, beside
/// what is installed.
package enum CurrentClients {
    private static let place = FileManager.default.currentDirectoryPath + "/.build-trixie"

    /// Where a program's starter is, or another file that stands beside it.
    ///
    /// A missing one fails the test with what to run.
    package static func path(_ name: String) throws -> String {
        let candidate = place + "/bin/" + name
        guard Files.exists(place + "/complete"), Files.exists(candidate) else {
            throw TestFailure("\(name) of Debian 13 is not there: run `dev/clients`")
        }
        return candidate
    }

    /// Runs a program that must succeed; returns what it prints.
    @discardableResult
    package static func run(
        _ name: String, _ arguments: [String], timeout seconds: Double = 60
    ) throws -> String {
        try Command.run(try path(name), arguments, timeout: seconds).output()
    }
}
