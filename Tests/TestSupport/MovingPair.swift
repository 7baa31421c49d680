import Foundation

/// Two servers that know the same domain and disk, of which one has it at a time, and what a guest
/// has written to it.
package final class MovingPair {
    package static let bytes = 16 << 20
    private static let uuid = "6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001"

    package let directory: TemporaryDirectory
    package let here: ServerUnderTest
    package private(set) var there: ServerUnderTest
    /// The disk's bytes as the guest has written them.
    package private(set) var content: [UInt8]
    /// The disk as the first server has it, and as the second.
    package let disks: [DiskDescription]
    private var generator: SeededGenerator
    private var tags = 0

    /// What `disk-export-state` and `disk-import-state` print.
    package struct Move: Decodable, Sendable {
        package struct Disk: Decodable, Sendable {
            package let disk: String
            package let generation: UInt64
            package let checkpoints: [String]
            package let allChanged: String?
        }
        package let id: String
        package let disks: [Disk]
    }

    /// `make` says what the disk is for a file of its bytes, on each of the two hosts.
    package init(
        seed: UInt64, _ make: (_ path: String, _ host: Int) throws -> DiskDescription
    ) throws {
        directory = try TemporaryDirectory()
        let path = directory.file("disk.img")
        content = try Images.random(path, bytes: Self.bytes, seed: seed)
        generator = SeededGenerator(seed: seed)
        disks = [try make(path, 0), try make(path, 1)]
        here = try ServerUnderTest(
            [DomainDescription("vm1", [disks[0]], uuid: Self.uuid)],
            in: try Self.subdirectory(directory, "a"))
        there = try ServerUnderTest([], in: try Self.subdirectory(directory, "b"))
    }

    private static func subdirectory(
        _ directory: TemporaryDirectory, _ name: String
    ) throws -> TemporaryDirectory {
        try TemporaryDirectory(under: directory.path)
    }

    /// Another server, with a state directory of its own.
    package func third() throws -> ServerUnderTest {
        try ServerUnderTest([], in: try Self.subdirectory(directory, "c"))
    }

    /// Defines the domain on a server.
    @discardableResult
    package func define(
        on server: ServerUnderTest, uuid: String? = nil, disk: DiskDescription? = nil
    ) throws -> CommandResult {
        let file = server.directory.file("vm1-again.xml")
        let description = DomainDescription(
            "vm1", [disk ?? disks[1]], uuid: uuid ?? Self.uuid)
        try Files.write(description.xml, to: file)
        return try server.cli(["define", file])
    }

    /// Writes here and there, as a guest does.
    package func write(on server: ServerUnderTest, times: Int = 20) throws {
        let client = try NBDClient(server.liveURI("vm1", "vda"))
        for _ in 0..<times {
            let count = 512 + generator.below(70_000)
            let offset = generator.below(Self.bytes - count)
            let bytes = [UInt8](
                repeating: UInt8(truncatingIfNeeded: generator.below(255)), count: count)
            try client.write(bytes, at: offset)
            content.replaceSubrange(offset..<offset + count, with: bytes)
        }
        try client.flush()
        try client.disconnect()
    }

    /// A full backup that makes a checkpoint.
    package func full(on server: ServerUnderTest, checkpoint: String) throws -> [UInt8] {
        tags += 1
        let job = try server.begin(
            "vm1", disks: ["vda"], tag: "t\(tags)", checkpoint: checkpoint)
        let client = try NBDClient(try job.uri("vda"))
        var image: [UInt8] = []
        for offset in stride(from: 0, to: Self.bytes, by: 4 << 20) {
            image += try client.read(offset, 4 << 20)
        }
        try client.disconnect()
        try server.end("vm1", job)
        guard image == content else { throw TestFailure("the full backup is not the disk") }
        return image
    }

    /// An incremental backup on an older image: nothing is read but what the bitmap calls dirty.
    ///
    /// Fails unless the result is the disk; returns it, and how many bytes were dirty.
    package func incremental(
        on server: ServerUnderTest, from base: String, over old: [UInt8], checkpoint: String? = nil
    ) throws -> (image: [UInt8], dirtyBytes: Int) {
        tags += 1
        let job = try server.begin(
            "vm1", disks: ["vda"], tag: "t\(tags)", checkpoint: checkpoint, incremental: base)
        let export = try job.export("vda")
        guard let bitmap = export.bitmap else { throw TestFailure("no bitmap") }
        let context = "qemu:dirty-bitmap:" + bitmap
        let client = try NBDClient(export.uri, .contexts(context))
        var image = old
        var dirtyBytes = 0
        for extent in try client.map(context) where extent.isDirty {
            dirtyBytes += extent.count
            for offset in stride(from: extent.offset, to: extent.end, by: 4 << 20) {
                let count = min(4 << 20, extent.end - offset)
                image.replaceSubrange(
                    offset..<offset + count, with: try client.read(offset, count))
            }
        }
        try client.disconnect()
        try server.end("vm1", job)
        if let place = Bytes.firstDifference(image, at: 0, content, at: 0, count: image.count) {
            throw TestFailure("the backup from \(base) misses the change at \(place)")
        }
        return (image, dirtyBytes)
    }

    /// Moves the disk's state out of a server.
    @discardableResult
    package func export(from server: ServerUnderTest, to file: String) throws -> Move {
        try server.json(["disk-export-state", "vm1", "vda", file], as: Move.self)
    }

    /// Moves the disk's state into a server.
    @discardableResult
    package func importState(
        to server: ServerUnderTest, from file: String, _ options: [String] = []
    ) throws -> Move {
        try server.json(["disk-import-state", "vm1", file] + options, as: Move.self)
    }

    /// A byte that was written by another program.
    package func noteForeignWrite(_ byte: UInt8, at offset: Int) { content[offset] = byte }
}
