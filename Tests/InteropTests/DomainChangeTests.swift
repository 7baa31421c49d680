import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Domains that change while a machine uses one of their disks.
    @Suite struct DomainChangeTests {
        private static let diskBytes = 8 << 20
        private static let grownBytes = 12 << 20

        /// A machine that keeps writing to `vda`, of which there is a full backup and checkpoint
        /// c1.
        private final class Rig {
            let directory = try? TemporaryDirectory()
            let server: ServerUnderTest
            let writer: StressWriter
            let base: [UInt8]
            var domain: DomainDescription

            func path(_ name: String) -> String { (directory?.path ?? "/") + "/" + name }

            init() throws {
                let folder = directory?.path ?? "/"
                let content = try Images.mixed(folder + "/vda", bytes: diskBytes, seed: 1)
                try Images.mixed(folder + "/vdb", bytes: diskBytes, seed: 2)
                try Images.mixed(folder + "/vdc", bytes: diskBytes, seed: 3)
                domain = DomainDescription(
                    "vm1",
                    [
                        DiskDescription("vda", folder + "/vda"),
                        DiskDescription("vdb", folder + "/vdb"),
                    ])
                server = try ServerUnderTest([domain])
                writer = try StressWriter(
                    uris: [server.liveURI("vm1", "vda")], contents: [content],
                    plan: StressPlan(seed: 7))
                try writer.run(seconds: 0.1)
                try writer.drain()
                base = writer.oracle[0]
                let job = try server.begin("vm1", disks: ["vda"], tag: "c1", checkpoint: "c1")
                try server.end("vm1", job)
                try writer.run(seconds: 0.1)
            }

            /// Runs a client command while the machine writes.
            @discardableResult
            func call(_ arguments: String...) throws -> CommandResult {
                try writer.run(beside: try server.startCLI(arguments))
            }

            /// The backup of c1 with all that an incremental job calls dirty is the disk.
            func verifyChain(tag: String) throws -> (bytes: Int, dirtyTail: Bool) {
                let job = try server.begin("vm1", disks: ["vda"], tag: tag, incremental: "c1")
                let export = try job.export("vda")
                let context = "qemu:dirty-bitmap:" + (export.bitmap ?? "")
                let client = try NBDClient(export.uri, .contexts(context))
                let size = client.sizeBytes
                var image = base + [UInt8](repeating: 0xdb, count: size - base.count)
                var dirtyEnd = 0
                for extent in try client.map(context) where extent.isDirty {
                    let bytes = try client.read(extent.offset, extent.count)
                    Bytes.copy(bytes, at: 0, to: &image, at: extent.offset, count: extent.count)
                    dirtyEnd = extent.end
                }
                let disk = try Bytes.ofFile(path("vda"))
                // Compared outside of #expect, which would list every byte that differs.
                let missed = zip(image, disk).enumerated().first { $1.0 != $1.1 }?.offset
                let isWritten = disk.starts(with: writer.oracle[0])
                #expect(image.count == disk.count)
                #expect(missed == nil, "the chain misses a change")
                #expect(isWritten)
                try client.disconnect()
                try server.end("vm1", job)
                return (size, dirtyEnd == size)
            }
        }

        @Test("P2, P3: other disks come, go, grow and change under a machine, whose chain is whole")
        func othersChange() throws {
            let rig = try Rig()
            try rig.call("attach-disk", "vm1", rig.path("vdc"), "vdc").output()
            try rig.call("blockresize", "vm1", "vdc", "\(Self.grownBytes)b").output()
            #expect(
                try NBDClient(rig.server.liveURI("vm1", "vdc")).sizeBytes == Self.grownBytes)
            try rig.call("detach-disk", "vm1", "vdb").output()
            var changed = rig.domain
            changed.disks[1] = DiskDescription("vdc", rig.path("vdc"))
            changed.disks[1].cache = .direct
            changed.disks.append(DiskDescription("vdd", rig.path("vdb")))
            try Files.write(changed.xml, to: rig.path("changed.xml"))
            try rig.call("define", rig.path("changed.xml")).output()
            #expect(
                try NBDClient(rig.server.liveURI("vm1", "vdd")).sizeBytes == Self.diskBytes)
            try rig.writer.drain()
            _ = try rig.verifyChain(tag: "one")
            rig.server.kill()
            try rig.server.start()
            let list = try rig.server.cli(["domblklist", "vm1"]).output()
            #expect(list.contains("vdd") && !list.contains("vdb "), "\(list)")
            _ = try rig.verifyChain(tag: "two")
            try rig.server.stop()
        }

        @Test("P2: nothing takes a machine's disk away but --force")
        func inUse() throws {
            let rig = try Rig()
            var changed = rig.domain
            changed.disks[0].cache = .direct
            try Files.write(changed.xml, to: rig.path("changed.xml"))
            for arguments in [
                ["undefine", "vm1", "--checkpoints"], ["detach-disk", "vm1", "vda"],
                ["define", rig.path("changed.xml")],
            ] {
                let result = try rig.writer.run(beside: try rig.server.startCLI(arguments))
                #expect(result.status == 1)
                #expect(
                    result.stderr.contains("disk 'vda' has 1 client")
                        && result.stderr.contains("--force"), "\(result)")
            }
            try rig.writer.drain()
            _ = try rig.verifyChain(tag: "one")
            try rig.server.cli(["undefine", "vm1", "--checkpoints", "--force"]).output()
            #expect(try !rig.server.cli(["list"]).output().contains("vm1"))
            var options = NBDClientOptions()
            options.optionMode = true
            let lister = try NBDClient("nbd+unix:///?socket=\(rig.server.liveSocket)", options)
            #expect(try lister.listExports().isEmpty)
            try rig.server.stop()
        }

        @Test("P3: a disk that grows under its machine keeps its chain, and what is new is dirty")
        func grows() throws {
            let rig = try Rig()
            try rig.call("blockresize", "vm1", "vda", "\(Self.grownBytes / 1024)").output()
            try rig.writer.run(seconds: 0.2)
            // The machine has the old size, who comes now the new one, and both may write.
            let late = try NBDClient(rig.server.liveURI("vm1", "vda"))
            #expect(late.sizeBytes == Self.grownBytes)
            try late.write([1, 2, 3], at: Self.grownBytes - 3)
            try late.flush()
            try rig.writer.run(seconds: 0.1)
            try rig.writer.drain()
            let one = try rig.verifyChain(tag: "one")
            #expect(one.bytes == Self.grownBytes && one.dirtyTail)
            for way in ["kill", "stop"] {
                if way == "kill" { rig.server.kill() } else { try rig.server.stop() }
                try rig.server.start()
                let again = try rig.verifyChain(tag: way)
                #expect(again.bytes == Self.grownBytes && again.dirtyTail)
            }
            for size in ["1", "\(Self.diskBytes)b"] {
                let result = try rig.server.cli(["blockresize", "vm1", "vda", size])
                #expect(result.status == 1 && result.stderr.contains("cannot shrink"), "\(result)")
            }
            try rig.server.stop()
        }

        @Test("a checkpoint made after the growth knows the new part")
        func growsBetweenCheckpoints() throws {
            let rig = try Rig()
            // Sizes that end within a word of the bitmap, and within a block.
            for bytes in [Self.diskBytes + 65_536, Self.diskBytes + 100_000, Self.grownBytes] {
                try rig.call("blockresize", "vm1", "vda", "\(bytes)", "--bytes").output()
                try rig.writer.run(seconds: 0.05)
            }
            try rig.writer.drain()
            try rig.server.cli(["checkpoint-create-as", "vm1", "--name", "c2"]).output()
            let client = try NBDClient(rig.server.liveURI("vm1", "vda"))
            try client.write([9], at: Self.grownBytes - 1)
            let report = try rig.server.cli([
                "checkpoint-dumpxml", "vm1", "c2", "--size", "--no-domain",
            ]).output()
            #expect(report.contains("size='65536'"), "\(report)")
            let one = try rig.verifyChain(tag: "one")
            #expect(one.bytes == Self.grownBytes && one.dirtyTail)
            try rig.server.stop()
        }

        @Test("a domain whose name is longer than a file's may be is served and kept")
        func longName() throws {
            let name = String(repeating: "ж", count: 45)
            let directory = try TemporaryDirectory()
            try Images.mixed(directory.file("a"), bytes: 1 << 20, seed: 1)
            let server = try ServerUnderTest(
                [DomainDescription(name, [DiskDescription("vda", directory.file("a"))])])
            let letters = CharacterSet(charactersIn: "a"..."z")
            let encoded = name.addingPercentEncoding(withAllowedCharacters: letters) ?? ""
            let uri = server.liveURI(encoded, "vda")
            #expect(try NBDClient(uri).sizeBytes == 1 << 20)
            let job = try server.begin(name, disks: ["vda"], tag: "j", checkpoint: "c1")
            #expect(try NBDClient(job.uri("vda")).sizeBytes == 1 << 20)
            try server.end(name, job)
            server.kill()
            try server.start()
            #expect(try NBDClient(uri).sizeBytes == 1 << 20)
            try server.cli(["undefine", name, "--checkpoints"]).output()
            try server.stop()
        }
    }
}
