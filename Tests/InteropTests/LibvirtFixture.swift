import Foundation
import TestSupport
import Testing

/// A server whose domain `vm1` has two disks, seen by libvirt's clients: `vda` is a file of 16 MiB,
/// `vdb` one of an odd number of sectors.
final class LibvirtFixture {
    static let uuid = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
    static let sizes = ["vda": 16 << 20, "vdb": (5 << 20) + 512]

    let directory: TemporaryDirectory
    let server: ServerUnderTest
    let contents: [String: [UInt8]]
    /// The client library whose virsh is used.
    let client: LibvirtClient

    init(_ client: LibvirtClient = .installed, options: [String] = []) throws {
        self.client = client
        directory = try TemporaryDirectory()
        var contents: [String: [UInt8]] = [:]
        var disks: [DiskDescription] = []
        for (target, bytes) in Self.sizes.sorted(by: { $0.key < $1.key }) {
            let path = directory.file(target + ".img")
            contents[target] = try Images.mixed(path, bytes: bytes, seed: UInt64(bytes))
            disks.append(DiskDescription(target, path))
        }
        self.contents = contents
        server = try ServerUnderTest(
            [DomainDescription("vm1", disks, uuid: Self.uuid)], options: options)
    }

    /// What a command of virsh prints, which must succeed.
    @discardableResult
    func virsh(_ arguments: String...) throws -> [String] {
        let result = try server.virsh(arguments, by: client)
        try result.output()
        return result.lines
    }

    /// What a command of virsh says as its error, which must fail.
    func refusal(_ arguments: String...) throws -> [String] {
        let result = try server.virsh(arguments, by: client)
        guard result.status == 1 else { throw TestFailure("not refused: \(result)") }
        return result.errorLines
    }

    /// Runs a command of virsh again until a line is among what it prints; returns all of it.
    ///
    /// Figures are brought together a few times a second, not per request.
    func virsh(_ arguments: String..., until line: String) throws -> [String] {
        for _ in 0..<20 {
            let result = try server.virsh(arguments, by: client)
            if try result.output().contains(line + "\n") { return result.lines }
            Thread.sleep(forTimeInterval: 0.1)
        }
        return try server.virsh(arguments, by: client).lines
    }

    /// Writes a file that virsh reads.
    func file(_ text: String) throws -> String {
        let path = directory.file(UUID().uuidString + ".xml")
        try Files.write(text, to: path)
        return path
    }

    /// The content of a disk on the server, as its machine left it.
    func content(_ target: String) throws -> [UInt8] {
        guard let content = contents[target] else { throw TestFailure("no disk \(target)") }
        return content
    }

    /// Writes a file with a `<domainbackup>` of `vda` alone, on a unix socket.
    func backupFile(tag: String, incremental: String? = nil) throws -> String {
        var backup = server.standardBackup(disks: ["vda"], tag: tag)
        backup.incremental = incremental
        return try file(backup.xml)
    }

    /// The URI of an export of a job that `backupFile` describes.
    func uri(tag: String, _ target: String = "vda") -> String {
        "nbd+unix:///\(target)?socket=\(server.directory.file("job-\(tag).sock"))"
    }
}

extension [String] {
    /// A line, or none: what a program did not print fails its test, not all of them.
    func line(_ index: Int) -> String { indices.contains(index) ? self[index] : "" }
}

/// Tables and lists that virsh prints.
enum VirshText {
    /// The words of a line.
    static func words(_ line: String) -> [String] { line.split(separator: " ").map(String.init) }

    /// The value behind a name and a colon.
    static func value(_ name: String, in lines: [String]) -> String? {
        lines.first { $0.hasPrefix(name + ":") }
            .map { $0.dropFirst(name.count + 1).trimmingCharacters(in: .whitespaces) }
    }

    /// Lines with what differs from run to run replaced.
    static func normal(_ lines: [String]) -> [String] {
        let patterns: [(String, String)] = [
            (#"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} \+0000"#, "TIME"),
            (#"<creationTime>[0-9]{10}</creationTime>"#, "<creationTime>TIME</creationTime>"),
            (#"(Time elapsed:) +[0-9]+ +ms"#, "$1 N ms"),
            (#"(time_elapsed:) [0-9]+"#, "$1 N"),
        ]
        return lines.map { line in
            patterns.reduce(line) { text, pattern in
                text.replacingOccurrences(
                    of: pattern.0, with: pattern.1, options: .regularExpression)
            }
        }
    }
}
