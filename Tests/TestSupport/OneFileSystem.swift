import Foundation
import Glibc

/// A mounted file system of one file, whose reads and syncs fail as the test says
/// (`Tests/faults/onefile.py`).
package final class OneFileSystem {
    private let directory: TemporaryDirectory
    private let mount: String
    private let server: Command

    /// The file's path.
    package var path: String { mount + "/disk" }
    private var plan: String { directory.file("plan") }

    /// Needs root and `/dev/fuse`; without them the test fails and says so.
    package init(bytes: Int) throws {
        directory = try TemporaryDirectory()
        mount = try directory.directory("mount")
        let script = FileManager.default.currentDirectoryPath + "/Tests/faults/onefile.py"
        server = try Command("python3", [script, mount, String(bytes), directory.file("plan")])
        try server.wait(for: "mounted file system (root and /dev/fuse are needed)") {
            $0.stdout.contains("mounted")
        }
    }

    /// The next reads fail, one after the other.
    package func failReads(_ errnos: [Int32]) throws {
        try Files.write(errnos.map(String.init).joined(separator: " "), to: plan)
    }

    /// The next syncs fail, one after the other.
    package func failSyncs(_ errnos: [Int32]) throws {
        try Files.write(errnos.map(String.init).joined(separator: " "), to: plan + ".sync")
    }

    /// From now on nothing is answered: to open the file hangs.
    package func hang() { server.signal(SIGSTOP) }

    /// Everything is answered again.
    package func answer() { server.signal(SIGCONT) }

    /// Whether all of them have failed.
    package var isThroughWithPlan: Bool {
        Files.read(plan).isEmpty && Files.read(plan + ".sync").isEmpty
    }

    deinit {
        answer()
        for _ in 0..<50 {
            if let result = try? Command.run("umount", [mount]), result.succeeded { return }
            Thread.sleep(forTimeInterval: 0.1)
        }
        _ = try? Command.run("umount", ["-l", mount])
    }
}
