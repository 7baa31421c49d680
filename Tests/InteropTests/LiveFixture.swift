import TestSupport

/// A server with one domain of three disks, on unix and on TCP.
///
/// `vda` goes through the page cache, `vdb` by O_DIRECT, `vdc` is read-only.
final class LiveFixture {
    static let defaultBytes = 16 << 20

    let directory: TemporaryDirectory
    let server: ServerUnderTest
    let port: Int
    let sizeBytes: Int
    /// What each disk held at the start, by target.
    let contents: [String: [UInt8]]

    init(bytes: Int = defaultBytes, options: [String] = []) throws {
        sizeBytes = bytes
        directory = try TemporaryDirectory()
        port = Ports.free()
        var contents: [String: [UInt8]] = [:]
        var disks: [DiskDescription] = []
        for (index, target) in ["vda", "vdb", "vdc"].enumerated() {
            let path = directory.file(target + ".img")
            contents[target] = try Images.mixed(
                path, bytes: bytes, seed: UInt64(index + 1))
            disks.append(DiskDescription(target, path))
        }
        disks[1].cache = .direct
        disks[2].isReadOnly = true
        self.contents = contents
        server = try ServerUnderTest(
            [DomainDescription("vm1", disks)],
            options: ["--live-tcp", "127.0.0.1:\(port)"] + options)
    }

    func path(_ target: String) -> String { directory.file(target + ".img") }

    func content(_ target: String) throws -> [UInt8] {
        guard let content = contents[target] else { throw TestFailure("no disk \(target)") }
        return content
    }

    func uri(_ target: String, tcp: Bool = false) -> String {
        tcp ? "nbd://127.0.0.1:\(port)/vm1/\(target)" : server.liveURI("vm1", target)
    }

    /// Begins a job over `vda` and `vdb`, on unix or TCP.
    func begin(tag: String = "job", tcp: Bool = false) throws -> BegunJob {
        var backup = server.standardBackup(disks: ["vda", "vdb"], tag: tag)
        if tcp { backup.endpoint = .tcp(Ports.free()) }
        return try server.begin("vm1", backup)
    }
}

/// Random bytes that follow from a seed.
func randomBytes(_ count: Int, seed: UInt64) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    return generator.bytes(count)
}
