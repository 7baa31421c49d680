import Foundation
import TestSupport
import Testing

extension InteropSuite {
    @Suite("Stand-ins, opened by qemu's own tools")
    struct StandInImageTests {
        private func standIn(_ fixture: LibvirtFixture, _ target: String) throws -> String {
            let rows = try fixture.virsh("domblklist", "vm1").map(VirshText.words)
            return try #require(rows.first { $0.first == target }?.last)
        }

        private func info(_ path: String) throws -> [String: Any] {
            let text = try Command.run(
                "qemu-img", ["info", "--force-share", "--output=json", path]
            ).output()
            let value = try JSONSerialization.jsonObject(with: Data(text.utf8))
            return try #require(value as? [String: Any])
        }

        @Test("P2: a stand-in is read as its disk is now, and never written")
        func reading() throws {
            let fixture = try LibvirtFixture()
            let path = try standIn(fixture, "vda")
            let facts = try info(path)
            #expect(facts["format"] as? String == "qcow2")
            #expect(facts["virtual-size"] as? Int == LibvirtFixture.sizes["vda"])
            #expect(facts["backing-filename-format"] as? String == "raw")
            try Command.run("qemu-img", ["check", path]).output()
            try NBDClient(fixture.server.liveURI("vm1", "vda")).write([7, 7, 7], at: 4096)
            let copy = fixture.directory.file("copy")
            try Command.run("qemu-img", ["convert", "-O", "raw", path, copy]).output()
            try Images.expectEqual(copy, fixture.directory.file("vda.img"))
            let write = try Command.run("qemu-io", ["-f", "qcow2", "-c", "write 0 64k", path])
            #expect(!write.succeeded)
            #expect(write.stderr.contains("cannot be opened read/write"), "\(write)")
            try Images.expectEqual(copy, fixture.directory.file("vda.img"))
            try fixture.server.stop()
        }

        @Test("a stand-in grows with its disk, and reads as nothing once the server is gone")
        func growing() throws {
            let fixture = try LibvirtFixture()
            let path = try standIn(fixture, "vda")
            try fixture.server.cli(["blockresize", "vm1", "vda", "20MiB"]).output()
            #expect(try standIn(fixture, "vda") == path)
            #expect(try info(path)["virtual-size"] as? Int == 20 << 20)
            let kept = fixture.directory.file("kept.qcow2")
            try FileManager.default.copyItem(atPath: path, toPath: kept)
            try fixture.server.stop()
            #expect(!FileManager.default.fileExists(atPath: path))
            let copy = fixture.directory.file("copy")
            let late = try Command.run("qemu-img", ["convert", "-O", "raw", kept, copy])
            #expect(!late.succeeded, "\(late)")
        }

        @Test("an XML with stand-ins is not defined again; the one without them is")
        func defining() throws {
            let fixture = try LibvirtFixture()
            let shown = try fixture.file(
                try fixture.virsh("dumpxml", "vm1").joined(separator: "\n"))
            let refused = try fixture.server.cli(["define", shown])
            #expect(!refused.succeeded)
            #expect(refused.stderr.contains("only stands in for a disk"), "\(refused)")
            let own = try fixture.file(
                try fixture.virsh("dumpxml", "vm1", "--inactive").joined(separator: "\n"))
            try fixture.server.cli(["define", own]).output()
            try fixture.server.stop()
        }
    }
}
