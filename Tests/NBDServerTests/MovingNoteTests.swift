import Foundation
import Glibc
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface
@testable import Tracking
@testable import TrackingFiles

/// What is noted on a disk's file when it goes or comes, and what of it is believed.
@Suite struct MovingNoteTests {
    private static let move = "0d8e5a52-0a3a-4e19-9d0f-2f6f6f6f0001"

    private func configuration(_ base: ServerFixture, _ host: String) -> DiskConfiguration {
        var configuration = DiskConfiguration(
            exportName: "vm1/vdb", path: base.path("tracked"), kind: .file, readOnly: false,
            cacheMode: .buffered, discardMode: .unmap)
        configuration.tracking = TrackingConfiguration(directory: base.path(host))
        return configuration
    }

    /// A disk with checkpoint c0 that one server has let go of, and another has opened and closed;
    /// what the first has written.
    private func moved(_ base: ServerFixture) async throws -> MovedTracking {
        let file = try FileCalls.open(base.path("tracked"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        let first = try await base.server.attachDisk(configuration(base, "a"))
        try await base.server.createCheckpoint(CheckpointConfiguration(name: "c0", disks: [first]))
        try await base.server.detachDisk(first)
        let moved = try await base.server.giveUpTracking(
            configuration(base, "a"), move: Self.move, keeping: ["c0"])
        #expect(moved.layers.map(\.checkpoint) == ["c0"])
        let second = try await base.server.attachDisk(configuration(base, "b"))
        try await base.server.detachDisk(second)
        return moved
    }

    private func mark(_ base: ServerFixture, _ text: String? = nil) throws -> String? {
        let file = try FileCalls.open(base.path("tracked"), [.write])
        if let text { try FileCalls.setMark(file.raw, AttributeMark.fileName, text) }
        return try FileCalls.mark(file.raw, AttributeMark.fileName)
    }

    private func terms(_ nonce: String) -> MoveTerms {
        MoveTerms(move: Self.move, nonce: nonce, marksEverything: false)
    }

    @Test("P3: a server that has lost the race for a disk leaves the other's note, and is refused")
    func taken() async throws {
        let base = try await ServerFixture()
        let moved = try await moved(base)
        for text in ["imported \(Self.move) other", "moved 11111111-2222-3333-4444-555555555555"] {
            #expect(try mark(base, text) == text)
            await #expect(throws: ServerFault.self) {
                try await base.server.adoptTracking(
                    moved, configuration(base, "b"), terms("own"))
            }
            #expect(try mark(base) == text)
        }
        // Its own note is no other's: an import that was cut off goes on.
        _ = try mark(base, "imported \(Self.move) own")
        try await base.server.adoptTracking(moved, configuration(base, "b"), terms("own"))
        await base.close()
    }

    @Test(
        "P3: a file that is changed between the look at it and the end of an import is not believed"
    )
    func changedMeanwhile() async throws {
        for isChanged in [false, true] {
            let base = try await ServerFixture()
            let moved = try await moved(base)
            if isChanged {
                try await Task.sleep(for: .milliseconds(20))
                let file = try FileHandle(forUpdating: URL(fileURLWithPath: base.path("tracked")))
                try file.write(contentsOf: [1])
                try file.close()
            }
            try await base.server.adoptTracking(moved, configuration(base, "b"), terms("own"))
            let again = try await base.server.attachDisk(configuration(base, "b"))
            let status = try await base.server.diskStatus(again)
            #expect(status.tracking?.checkpoints == ["c0"])
            #expect(status.tracking?.dirtyBytes == (isChanged ? ServerFixture.diskBytes : 0))
            await base.close()
        }
    }

    @Test("what kept tracking from being closed in order is told to who wants to move the disk")
    func notClosed() async throws {
        let base = try await ServerFixture()
        let file = try FileCalls.open(base.path("tracked"), [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
        let disk = try await base.server.attachDisk(configuration(base, "a"))
        try FileManager.default.removeItem(atPath: base.path("a"))
        try await base.server.detachDisk(disk)
        do {
            _ = try await base.server.packTracking(
                configuration(base, "a"), move: Self.move, keeping: [])
            Issue.record("it was packed")
        } catch {
            guard case .notTracked(_, let detail) = error else { throw error }
            #expect(detail.contains("when it was closed: '\(base.path("a"))"), "\(detail)")
        }
        await base.close()
    }
}
