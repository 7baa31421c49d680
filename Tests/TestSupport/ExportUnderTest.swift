import Foundation

/// The built `nbdpull`, running `export` over one file.
package final class ExportUnderTest {
    package let socket: String
    package let uri: String
    private let directory: TemporaryDirectory
    private let process: Command

    /// Starts an export on a unix socket and waits until it answers.
    package init(_ file: String, options: [String] = []) throws {
        directory = try TemporaryDirectory()
        socket = directory.file("export.sock")
        uri = "nbd+unix:///?socket=" + socket
        process = try Command(
            try ServerUnderTest.binary(), ["export", "--socket", socket] + options + [file])
        let path = socket
        try process.wait(for: "socket") { _ in
            Files.exists(path) && (try? NBDClient("nbd+unix:///?socket=" + path)) != nil
        }
    }

    /// Stops the export and fails unless it goes in peace.
    package func stop() throws {
        process.terminate()
        try process.result(timeout: 20).output()
    }
}

/// A reference server over one file, to try the tests' own machinery on.
package final class ReferenceServer {
    package let uri: String
    private let directory: TemporaryDirectory
    private let process: Command

    package init(_ file: String) throws {
        directory = try TemporaryDirectory()
        let socket = directory.file("reference.sock")
        uri = "nbd+unix:///?socket=" + socket
        process = try Command(
            "qemu-nbd",
            ["-t", "-e", "8", "-f", "raw", "--discard=unmap", "-k", socket, file])
        try process.wait(for: "socket") { _ in Files.isListening(socket) }
    }
}
