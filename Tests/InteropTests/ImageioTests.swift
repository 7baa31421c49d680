import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// ovirt-imageio 2.5 over exports of jobs that libvirt's clients began.
    @Suite struct ImageioTests {
        private static let ticket = "4b1d6e2a-71a5-4f1b-9d4c-0a9f5f3f2c11"

        private func begin(
            _ fixture: LibvirtFixture, tag: String, checkpoint: String, incremental: String? = nil
        ) throws -> String {
            var backup = fixture.server.standardBackup(disks: ["vda", "vdb"], tag: tag)
            backup.incremental = incremental
            try fixture.virsh(
                "backup-begin", "vm1", try fixture.file(backup.xml), "--checkpointxml",
                try fixture.file(checkpointXML(checkpoint)))
            return fixture.server.directory.file("job-\(tag).sock")
        }

        /// What the extents say: they cover the disk without gaps, and zeros are zeros.
        private func expectTrue(
            _ extents: [ImageioDaemon.Extent], of content: [UInt8], dirty: Bool
        ) {
            var end = 0
            for extent in extents {
                #expect(extent.start == end)
                end += extent.length
                // What is clean is not looked at: it is zero or not.
                if extent.zero, !dirty || extent.dirty == true {
                    #expect(Bytes.isZero(content, at: extent.start, count: extent.length))
                }
            }
            #expect(end == content.count)
        }

        @Test("P1, P3: images over HTTP are the instant, with zero and dirty extents",
            arguments: ["vda", "vdb"])
        func backups(target: String) throws {
            let fixture = try LibvirtFixture()
            let daemon = try ImageioDaemon()
            let machine = try NBDClient(fixture.server.liveURI("vm1", target))
            var content = try fixture.content(target)
            let size = content.count

            let socket = try begin(fixture, tag: "full", checkpoint: "c1")
            // The machine goes on; the backup does not see it.
            try machine.write([UInt8](repeating: 0xee, count: 200_000), at: 100_000)
            try daemon.addTicket(
                Self.ticket, socket: socket, export: target, bytes: size, dirty: false)
            let zeros = try daemon.extents(Self.ticket, "zero")
            expectTrue(zeros, of: content, dirty: false)
            #expect(zeros.contains { $0.zero } && zeros.contains { !$0.zero })
            let full = try daemon.read(Self.ticket, 0, size)
            #expect(full == content)
            try daemon.removeTicket(Self.ticket)
            try fixture.virsh("domjobabort", "vm1")

            Bytes.copy(
                [UInt8](repeating: 0xee, count: 200_000), at: 0, to: &content, at: 100_000,
                count: 200_000)
            try machine.zero(1 << 20, 65_536)
            Bytes.copy(
                [UInt8](repeating: 0, count: 65_536), at: 0, to: &content, at: 1 << 20,
                count: 65_536)
            let second = try begin(fixture, tag: "inc", checkpoint: "c2", incremental: "c1")
            try machine.write([UInt8](repeating: 0xdd, count: 5000), at: 0)
            try daemon.addTicket(
                Self.ticket, socket: second, export: target, bytes: size, dirty: true)
            let dirty = try daemon.extents(Self.ticket, "dirty")
            expectTrue(dirty, of: content, dirty: true)
            var image = full
            for extent in dirty where extent.dirty == true {
                let piece = try daemon.read(Self.ticket, extent.start, extent.length)
                Bytes.copy(piece, at: 0, to: &image, at: extent.start, count: extent.length)
            }
            #expect(image == content)
            let dirtyBytes = dirty.filter { $0.dirty == true }.map(\.length).reduce(0, +)
            // 200,000 bytes touch four blocks of 64 KiB, the zeros one.
            #expect(dirtyBytes == 5 << 16, "\(dirty)")
            #expect(dirty.contains { $0.dirty == true && $0.zero }, "\(dirty)")
            try daemon.removeTicket(Self.ticket)
            try fixture.virsh("domjobabort", "vm1")
            try daemon.stop()
            try fixture.server.stop()
        }
    }
}
