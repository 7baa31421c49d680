import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// virtnbdbackup 1.9 of Debian 12 and 2.28 of Debian 13, as they are.
    @Suite struct VirtnbdbackupTests {
        /// Sizes of whole MiB, and such as no block device has.
        private static let even = [12 << 20, 6 << 20]
        private static let odd = [(10 << 20) + 17, (3 << 20) + 512 * 3 + 1]

        @Test(
            "P1, P3: each level of a chain restores to its instant: kill -9, machine that writes",
            arguments: LibvirtClient.allCases)
        func chain(client: LibvirtClient) throws {
            let rig = try BackupToolRig(.file, sizes: Self.odd, client: client)
            try rig.startMachine()
            try rig.backup("full")
            for _ in 0..<2 {
                try rig.work()
                try rig.backup("inc")
            }
            try rig.work()
            try rig.backup("diff")
            try rig.work()
            // With libvirt and qemu the chain ends here.
            try rig.kill()
            try rig.work()
            try rig.backup("inc")
            try rig.stopMachine()
            try rig.verifyAll()
            try rig.server.stop()
        }

        @Test("P1, P3: the same on block devices", arguments: [LibvirtClient.installed])
        func blockDevices(client: LibvirtClient) throws {
            let rig = try BackupToolRig(.blockDevice, sizes: Self.even, client: client)
            try rig.startMachine()
            try rig.backup("full")
            try rig.work()
            try rig.backup("inc")
            try rig.kill()
            try rig.work()
            try rig.backup("inc")
            try rig.stopMachine()
            try rig.verifyAll()
            try rig.verifyWhole()
            try rig.server.stop()
        }

        @Test(
            "P1, P3: a machine that is off has full, incremental and differential backups",
            arguments: BackupToolRig.Source.allCases)
        func off(source: BackupToolRig.Source) throws {
            let rig = try BackupToolRig(
                source, sizes: source == .file ? Self.odd : Self.even)
            try rig.backup("full")
            // It was on for a while, and is off again.
            try rig.startMachine()
            try rig.work()
            try rig.stopMachine()
            try rig.backup("inc")
            rig.server.kill()
            try rig.server.start()
            try rig.startMachine()
            try rig.work()
            try rig.stopMachine()
            try rig.backup("diff")
            try rig.backup("inc")
            try rig.verifyAll()
            try rig.server.stop()
        }

        @Test("P3: an incremental backup holds what was written, not the disk")
        func small() throws {
            let rig = try BackupToolRig(.file, sizes: [32 << 20, 4 << 20])
            try rig.backup("full")
            try NBDClient(rig.server.liveURI("vm1", "vda")).write([1, 2, 3], at: 20 << 20)
            try rig.backup("inc", ["-z"])
            let incremental = try rig.bytes(of: rig.backups[1])
            #expect(incremental < 80_000, "\(incremental) bytes for one block")
            try rig.verifyAll()
            try rig.server.stop()
        }

        @Test("the tool's own estimate, threshold and cleaning up work")
        func options() throws {
            let rig = try BackupToolRig(.file, sizes: Self.even)
            try rig.backup("full")
            try NBDClient(rig.server.liveURI("vm1", "vda")).write([1], at: 0)
            let arguments = [
                "-U", rig.server.libvirtURI, "-d", "vm1", "-o", rig.directory.file("backups"),
                "-n", "-l", "inc",
            ]
            let estimate = try Command.run("virtnbdbackup", arguments + ["-p"])
            #expect(estimate.stderr.contains("[65536] Bytes"), "\(estimate)")
            let below = try Command.run("virtnbdbackup", arguments + ["-T", "100000"])
            #expect(below.stderr.contains("does not meet required threshold"), "\(below)")
            // A job that was left running is found, and ended by the tool itself.
            try Command.run("virtnbdbackup", arguments + ["-s"]).output()
            let busy = try Command.run("virtnbdbackup", arguments)
            #expect(!busy.succeeded, "\(busy)")
            #expect(busy.stderr.contains("Detected an active backup operation"), "\(busy)")
            try Command.run("virtnbdbackup", arguments + ["-k"]).output()
            #expect(try rig.server.virsh(["domjobinfo", "vm1"]).lines.line(0).hasSuffix("None"))
            try rig.server.stop()
        }

        @Test(
            "a copy of what the saved XML names is the machine's disk, and says that it is raw data"
        )
        func savedXML() throws {
            let rig = try BackupToolRig(.file, sizes: Self.even)
            try rig.backup("full")
            let saved = try rig.savedXML()
            #expect(saved.count == 1)
            for schemas in try LibvirtSchemas.all() {
                try schemas.expectValid("domain.rng", saved.line(0))
            }
            let list = try rig.server.virsh(["domblklist", "vm1"]).lines
            for (index, target) in BackupToolRig.targets.enumerated() {
                let path = VirshText.words(list.line(2 + index)).line(1)
                let copy = rig.directory.file("copy-" + target)
                try Command.run(
                    "qemu-img", ["convert", "-U", "-f", "qcow2", "-O", "raw", path, copy]
                ).output()
                try Images.expectEqual(copy, rig.directory.file(target + ".img"))
                let info = try Command.run(
                    "qemu-img", ["info", "-U", "--output=json", path]
                ).output()
                #expect(info.contains("\"format\": \"qcow2\""), "\(info)")
            }
            try rig.server.stop()
        }
    }
}
