import Foundation
import Glibc
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// Something that a thread hangs on until the test lets go.
final class Gate: Sendable {
    private let isOpen = Atomic<Bool>(false)
    func open() { isOpen.store(true, ordering: .releasing) }
    func wait() { while !isOpen.load(ordering: .acquiring) { usleep(500) } }
}

/// How often something has happened.
final class Tally: Sendable {
    private let count = Atomic<Int>(0)
    func add() { count.add(1, ordering: .relaxed) }
    var value: Int { count.load(ordering: .relaxed) }

    /// Whether it has happened so often within some seconds.
    func reaches(_ wanted: Int, within seconds: Double = 10) async -> Bool {
        let deadline = Date().addingTimeInterval(seconds)
        while value < wanted, Date() < deadline { try? await Task.sleep(for: .milliseconds(1)) }
        return value >= wanted
    }
}

/// A server in this process with one disk, a file in a directory of its own.
final class ServerFixture: Sendable {
    static let diskBytes: UInt64 = 1 << 20
    let directory: String
    let server: NBDServer
    let disk: DiskID

    func path(_ name: String) -> String { directory + "/" + name }

    init(
        cacheMode: CacheMode = .buffered, adapters: (any AdapterStarting)? = nil,
        onEvent handler: @escaping @Sendable (ServerEvent) -> Void = { _ in }
    ) async throws {
        directory =
            FileManager.default.temporaryDirectory.path
            + "/np-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        let file = try FileCalls.open(directory + "/disk", [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: Self.diskBytes)
        var configuration = ServerConfiguration(rings: 1)
        // Files of a test lie beside its disk, on whatever room there is.
        configuration.scratchReserve = .bytes(0)
        configuration.adapters = adapters
        server = try NBDServer(configuration: configuration)
        server.setEventHandler(handler)
        disk = try await server.attachDisk(
            DiskConfiguration(
                exportName: "vm1/vda", path: directory + "/disk", kind: .file, readOnly: false,
                cacheMode: cacheMode, discardMode: .unmap))
    }

    /// Begins a job with scratch and socket in the directory.
    func begin(reusesScratch: Bool = false) async throws(ServerFault) -> BackupExport {
        let scratch = ScratchConfiguration(
            kind: .file, path: path("scratch"), reuseExternal: reusesScratch)
        _ = try await server.beginJob(
            JobConfiguration(
                id: "job",
                disks: [
                    JobDiskConfiguration(
                        disk: disk, target: "vda", exportName: "vda", scratch: scratch)
                ], endpoint: .unix(path: path("job.sock"), mode: 0o600)))
        guard let job = server.state.withLock({ $0.jobs["job"] }) else {
            throw .unknownJob(id: "job")
        }
        return job.exports[0]
    }

    func exists(_ name: String) -> Bool { FileManager.default.fileExists(atPath: path(name)) }

    func close() async {
        await server.shutdown()
        try? FileManager.default.removeItem(atPath: directory)
    }
}
