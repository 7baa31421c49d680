import Foundation
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// The files by which a job outlives its server, and what is said when there are none.
@Suite struct JobMemoryTests {
    /// A server with a state directory and one disk; begins a job.
    private static func begin(
        _ spoil: (_ memory: String) throws -> Void = { _ in }
    ) async throws -> (JobStarted, leavesDirectory: Bool) {
        let directory =
            FileManager.default.temporaryDirectory.path + "/np-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var configuration = ServerConfiguration(rings: 1)
        configuration.scratchReserve = .bytes(0)
        configuration.stateDirectory = directory
        let memory = try #require(JobMemory.directory(configuration))
        defer { try? FileManager.default.removeItem(atPath: memory) }
        let file = try FileCalls.open(directory + "/disk", [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        let server = try NBDServer(configuration: configuration)
        try spoil(memory)
        let disk = try await server.attachDisk(
            DiskConfiguration(
                exportName: "vm1/vda", path: directory + "/disk", kind: .file, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap))
        let started = try await server.beginJob(
            JobConfiguration(
                id: "job",
                disks: [
                    JobDiskConfiguration(
                        disk: disk, target: "vda", exportName: "vda",
                        scratch: ScratchConfiguration(
                            kind: .file, path: directory + "/scratch", reuseExternal: false))
                ], endpoint: .unix(path: directory + "/job.sock", mode: 0o600)))
        _ = try await server.endJob(id: "job")
        await server.shutdown()
        return (started, FileManager.default.fileExists(atPath: memory))
    }

    @Test("a job whose files are kept in memory is one that lasts, and a stop leaves none of them")
    func lasting() async throws {
        let (started, leavesDirectory) = try await Self.begin()
        #expect(started.memory != nil && started.notLasting == nil, "\(started)")
        #expect(!leavesDirectory)
    }

    @Test("a job whose files cannot be kept is served, and says that it does not last, and why")
    func notLasting() async throws {
        let (started, leavesDirectory) = try await Self.begin { memory in
            // In the place of the ledger: its file cannot be made.
            try FileManager.default.createDirectory(
                atPath: memory + "/job.0.ledger/x", withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o700])
            try FileManager.default.setAttributes(
                [.posixPermissions: 0o700], ofItemAtPath: memory)
        }
        #expect(started.memory == nil && leavesDirectory)
        #expect(started.notLasting?.contains("could not be written: unlink") == true, "\(started)")
    }
}
