import Foundation

/// libvirt's client programs and libraries, as they are, that tests drive the server with.
package enum LibvirtClient: String, CaseIterable, Sendable, CustomStringConvertible {
    /// libvirt 9 of Debian 12, which is installed.
    case installed = "libvirt 9"
    /// libvirt 11 of Debian 13, which `dev/clients` brings.
    case current = "libvirt 11"

    package var description: String { rawValue }

    /// Where its virsh is.
    package func virsh() throws -> String {
        switch self {
        case .installed: try Tool.path("virsh")
        case .current: try CurrentClients.path("virsh")
        }
    }

    /// Where a Python is that has its bindings.
    package func python() throws -> String {
        switch self {
        case .installed: "/usr/bin/python3"
        case .current: try CurrentClients.path("python3")
        }
    }

    /// Where a newer virtnbdbackup or virtnbdrestore is, or the one that is installed.
    package func backupTool(_ name: String) throws -> String {
        switch self {
        case .installed: try Tool.path(name)
        case .current: try CurrentClients.path(name)
        }
    }

    /// Programs answer in English and in UTC, whatever the machine is set to.
    package static let environment = ["LC_ALL": "C.UTF-8", "LANGUAGE": "C", "TZ": "UTC"]
}

extension ServerUnderTest {
    /// The socket that speaks libvirt's protocol.
    package var libvirtSocket: String { runDirectory + "/libvirt-sock" }

    /// The URI by which libvirt's clients reach it.
    package var libvirtURI: String { libvirtURI("nbdpull:///system") }

    /// The same with another driver, path or transport.
    package func libvirtURI(_ address: String) -> String { "\(address)?socket=\(libvirtSocket)" }

    /// Runs a command of virsh to its end.
    package func virsh(
        _ arguments: [String], by client: LibvirtClient = .installed, readOnly: Bool = false,
        uri: String? = nil, timeout seconds: Double = 60
    ) throws -> CommandResult {
        try startVirsh(arguments, by: client, readOnly: readOnly, uri: uri).result(timeout: seconds)
    }

    /// Starts a command of virsh and leaves it running.
    package func startVirsh(
        _ arguments: [String], by client: LibvirtClient = .installed, readOnly: Bool = false,
        uri: String? = nil
    ) throws -> Command {
        try Command(
            try client.virsh(),
            ["-c", uri ?? libvirtURI] + (readOnly ? ["-r"] : []) + arguments,
            environment: LibvirtClient.environment)
    }
}

extension CommandResult {
    /// The lines that a program printed, without white space at their ends and empty lines at the
    /// end.
    package var lines: [String] { Self.lines(of: stdout) }

    /// The same of what it printed as errors.
    package var errorLines: [String] { Self.lines(of: stderr) }

    private static func lines(of text: String) -> [String] {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
            var line = line
            while line.last?.isWhitespace == true { line.removeLast() }
            return String(line)
        }
        while lines.last?.isEmpty == true { lines.removeLast() }
        return lines
    }
}
