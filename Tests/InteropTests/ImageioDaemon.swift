import Foundation
import TestSupport

/// ovirt-imageio of PyPI, which gives backup vendors images over HTTP by tickets.
final class ImageioDaemon {
    /// An extent as it lists them.
    struct Extent: Decodable, Equatable {
        let start: Int
        let length: Int
        let zero: Bool
        let dirty: Bool?
    }

    private let directory: TemporaryDirectory
    private let process: Command
    private let port: Int
    private var configuration: String { directory.file("etc") }

    init() throws {
        directory = try TemporaryDirectory()
        port = Ports.free()
        let folder = try directory.directory("etc/conf.d")
        let text = """
            [daemon]
            run_dir = \(try directory.directory("run"))
            poll_interval = 0.1
            drop_privileges = false
            systemd_enable = false
            [tls]
            enable = false
            [remote]
            host = 127.0.0.1
            port = \(port)
            [local]
            enable = false
            [control]
            transport = unix
            socket = \(directory.file("control.sock"))
            [handlers]
            keys = stderr
            [logger_root]
            level = INFO
            handlers = stderr

            """
        try Files.write(text, to: folder + "/50-test.conf")
        process = try Command(
            try Self.path("ovirt-imageio"), ["--conf-dir", directory.file("etc")])
        try process.wait(for: "ready line") { $0.stderr.contains("Ready for requests") }
    }

    /// Where a program is that `dev/venv` brings; a missing one fails the test with what to run.
    private static func path(_ name: String) throws -> String {
        let place = FileManager.default.currentDirectoryPath + "/.build-venv"
        guard Files.exists(place + "/complete") else {
            throw TestFailure("\(name) is not there: run `dev/venv`")
        }
        return place + "/bin/" + name
    }

    /// Lets clients read an export by this ticket.
    func addTicket(_ id: String, socket: String, export: String, bytes: Int, dirty: Bool) throws {
        let ticket = """
            {"uuid": "\(id)", "size": \(bytes), "url": "nbd:unix:\(socket):exportname=\(export)",
             "timeout": 300, "ops": ["read"], "dirty": \(dirty)}
            """
        let file = directory.file(id + ".json")
        try Files.write(ticket, to: file)
        try Command.run(
            try Self.path("ovirt-imageioctl"), ["add-ticket", "-c", configuration, file]
        ).output()
    }

    func removeTicket(_ id: String) throws {
        try Command.run(
            try Self.path("ovirt-imageioctl"), ["del-ticket", "-c", configuration, id]
        ).output()
    }

    private func get(_ path: String, _ options: [String] = []) throws -> [UInt8] {
        let file = directory.file("answer")
        try Command.run(
            "curl",
            ["-sS", "--fail-with-body", "-o", file] + options
                + ["http://127.0.0.1:\(port)/images/\(path)"]
        ).output()
        return try Bytes.ofFile(file)
    }

    /// The extents of an image; `context` is `zero` or `dirty`.
    func extents(_ id: String, _ context: String) throws -> [Extent] {
        let answer = try get(id + "/extents?context=" + context)
        return try JSONDecoder().decode([Extent].self, from: Data(answer))
    }

    /// A range of an image.
    func read(_ id: String, _ start: Int, _ length: Int) throws -> [UInt8] {
        try get(id, ["-r", "\(start)-\(start + length - 1)"])
    }

    func stop() throws {
        process.terminate()
        _ = try process.result()
    }
}
