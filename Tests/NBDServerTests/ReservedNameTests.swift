import Disk
import Foundation
import Glibc
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// A file whose opening hangs: a lease on it is only given back when the test says so.
final class LeasedFile: Sendable {
    private let descriptor: OwnedDescriptor
    /// `F_SETLEASE`, which Swift's Glibc module does not show.
    private static let setLease: Int32 = 1024

    init(_ path: String) throws {
        // Whoever holds a lease is told by this signal that somebody waits.
        signal(SIGIO, SIG_IGN)
        descriptor = try FileCalls.open(path, [.write, .createNew])
        try FileCalls.setSize(descriptor.raw, bytes: ServerFixture.diskBytes)
        try #require(fcntl(descriptor.raw, Self.setLease, Int32(F_WRLCK)) == 0)
    }

    func giveBack() { _ = fcntl(descriptor.raw, Self.setLease, Int32(F_UNLCK)) }
}

/// The name of a disk while its source is being opened, which may take for ever.
@Suite struct ReservedNameTests {
    private func configuration(
        _ path: String, waits: Bool = false
    ) -> DiskConfiguration {
        var configuration = DiskConfiguration(
            exportName: "vm1/vdb", path: path, kind: .file, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        configuration.waitsForStorage = waits
        return configuration
    }

    private func make(_ path: String) throws {
        let file = try FileCalls.open(path, [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
    }

    private func isReserved(_ server: NBDServer) async throws {
        let deadline = Date().addingTimeInterval(120)
        while server.state.withLock({ $0.attaching["vm1/vdb"] == nil }), Date() < deadline {
            try await Task.sleep(for: .milliseconds(1))
        }
        try #require(server.state.withLock { $0.attaching["vm1/vdb"] != nil })
    }

    @Test("P6: a disk that waits for its storage for ever keeps nobody else from its name")
    func yields() async throws {
        let fixture = try await ServerFixture()
        let server = fixture.server
        let hung = try LeasedFile(fixture.path("hung"))
        let opening = configuration(fixture.path("hung"), waits: true)
        let first = Task { try await server.attachDisk(opening) }
        try await isReserved(server)
        try make(fixture.path("healthy"))
        let second = try await server.attachDisk(configuration(fixture.path("healthy")))
        hung.giveBack()
        await #expect(throws: ServerFault.exportNameTaken(name: "vm1/vdb")) {
            _ = try await first.value
        }
        // The late one has taken nothing from the other, and left nothing.
        let export = try #require(server.state.withLock { $0.disks[second] })
        #expect(export.source.path == fixture.path("healthy"))
        #expect(server.live.target(named: "vm1/vdb") != nil)
        #expect(server.state.withLock { $0.attaching.isEmpty && $0.disks.count == 2 })
        // Nor is its source still held.
        try await server.detachDisk(second)
        _ = try await server.attachDisk(configuration(fixture.path("hung")))
        await fixture.close()
    }

    @Test("P2: a server that leaves has nothing open when it says so: machines wait for no timer")
    func leaves() async throws {
        let fixture = try await ServerFixture()
        let server = fixture.server
        try make(fixture.path("shared"))
        var shared = configuration(fixture.path("shared"))
        // A listener that knows its disk.
        shared.vhostSocket = fixture.path("vhost.sock")
        _ = try await server.attachDisk(shared)
        _ = try await server.listenLive(
            .unix(path: fixture.path("live.sock"), mode: 0o600), security: .plaintext)
        #expect(try await server.leaveDisks())
        try? FileManager.default.removeItem(atPath: fixture.directory)
    }

    @Test("a disk whose storage answers while the server leaves is not served by it any more")
    func late() async throws {
        let fixture = try await ServerFixture()
        let server = fixture.server
        let hung = try LeasedFile(fixture.path("hung"))
        let opening = configuration(fixture.path("hung"), waits: true)
        let late = Task { try await server.attachDisk(opening) }
        try await isReserved(server)
        // As a server that leaves does until all is quiet: by then nobody may come.
        server.state.withLock { $0.isStopping = true }
        hung.giveBack()
        await #expect(throws: ServerFault.self) { _ = try await late.value }
        #expect(server.live.target(named: "vm1/vdb") == nil)
        #expect(server.state.withLock { $0.attaching.isEmpty && $0.disks.count == 1 })
        // It stays after all, and nobody holds the disk.
        server.state.withLock { $0.isStopping = false }
        _ = try await server.attachDisk(configuration(fixture.path("hung")))
        await fixture.close()
    }

    @Test("a name whose disk is being opened within a limit is taken; afterwards it is free")
    func holds() async throws {
        let fixture = try await ServerFixture()
        let server = fixture.server
        let hung = try LeasedFile(fixture.path("hung"))
        let opening = configuration(fixture.path("hung"))
        let first = Task { try await server.attachDisk(opening) }
        try await isReserved(server)
        try make(fixture.path("healthy"))
        await #expect(throws: ServerFault.exportNameTaken(name: "vm1/vdb")) {
            _ = try await server.attachDisk(configuration(fixture.path("healthy")))
        }
        hung.giveBack()
        try await server.detachDisk(try await first.value)
        _ = try await server.attachDisk(configuration(fixture.path("healthy")))
        await fixture.close()
    }
}
