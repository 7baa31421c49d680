import Foundation
import Glibc

/// A libvirtd of a test's own, which ends with it: in session mode, with directories of its own.
///
/// Libvirtd run by root is the system's, in the system's places; so root runs it as nobody.
package final class PrivateLibvirtd {
    /// Uid and gid of nobody.
    private static let nobody = 65534

    package let directory: TemporaryDirectory
    /// A TCP port that nobody uses: machines of nobody's cannot open sockets of root's.
    package let port: Int
    private let process: Command

    package var socketPath: String { directory.file("run/libvirt/libvirt-sock") }

    package init() throws {
        try Tool.require("libvirtd", "virsh", "setpriv", "qemu-system-x86_64")
        guard
            FileManager.default.fileExists(
                atPath: "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/"
                    + "libvirt_driver_qemu.so")
        else {
            throw TestFailure(
                "libvirtd has no qemu driver: run `apt-get install libvirt-daemon-driver-qemu`")
        }
        directory = try TemporaryDirectory()
        port = Ports.free()
        var environment: [String: String] = [:]
        for (name, part) in [
            ("XDG_RUNTIME_DIR", "run"), ("XDG_CONFIG_HOME", "config"), ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"), ("HOME", "home"),
        ] {
            environment[name] = directory.file(part)
            try Self.makeDirectory(directory.file(part))
        }
        try Self.makeDirectory(directory.file("config/libvirt"))
        let configuration = directory.file("config/libvirt/libvirtd.conf")
        try Files.write("auth_unix_rw = \"none\"\n", to: configuration)
        // Without a virtlogd, which would stay for a while.
        try Files.write(
            "security_driver = \"none\"\nstdio_handler = \"file\"\n",
            to: directory.file("config/libvirt/qemu.conf"))
        let arguments = [
            try Tool.path("libvirtd"), "--config", configuration, "--pid-file",
            directory.file("run/pid"),
        ]
        if getuid() == 0 {
            try Command.run("chmod", ["755", directory.path]).output()
            process = try Command(
                "setpriv",
                ["--reuid", "\(Self.nobody)", "--regid", "\(Self.nobody)", "--clear-groups"]
                    + arguments, environment: environment)
        } else {
            process = try Command(
                arguments[0], Array(arguments.dropFirst()), environment: environment)
        }
        let path = socketPath
        try process.wait(for: "socket of libvirtd") { _ in
            FileManager.default.fileExists(atPath: path)
        }
    }

    /// Makes a directory that libvirtd may write.
    package func makeDirectory(_ path: String) throws { try Self.makeDirectory(path) }

    private static func makeDirectory(_ path: String) throws {
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        guard getuid() == 0 else { return }
        try Command.run("chown", ["\(nobody):\(nobody)", path]).output()
    }

    /// Kills it.
    package func kill() { process.kill() }
}
