import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// A machine that libvirt runs: its disk moves in while it works, and is backed up from there.
    @Suite struct LibvirtGuestTests {
        /// The server's own description of the machine: the same uuid, and a disk to move to.
        private func server(
            beside daemon: LibvirtDaemon, disk: String
        ) throws -> ServerUnderTest {
            var vda = DiskDescription("vda", disk)
            vda.cache = .direct
            return try ServerUnderTest(
                [DomainDescription("vm1", [vda], uuid: LibvirtDaemon.uuid)],
                options: ["--libvirt-upstream", daemon.socket])
        }

        /// Moves the running machine's disk onto the live export.
        private func moveIn(_ daemon: LibvirtDaemon, _ server: ServerUnderTest) throws {
            let xml = daemon.directory.file("moved.xml")
            try Files.write(
                """
                <disk type='network' device='disk'>
                  <driver name='qemu' type='raw' cache='none' discard='unmap'/>
                  <source protocol='nbd' name='vm1/vda'>
                    <host transport='unix' socket='\(server.liveSocket)'/>
                  </source>
                  <target dev='vda' bus='virtio'/>
                </disk>

                """, to: xml)
            try daemon.virsh(
                "blockcopy", "vm1", "vda", "--xml", xml, "--reuse-external", "--transient-job",
                "--wait", "--pivot")
        }

        /// Backs the machine up through the server's door.
        private func backup(_ server: ServerUnderTest, _ level: String, into folder: String) throws
        {
            let result = try Command.run(
                "virtnbdbackup",
                [
                    "-U", server.libvirtURI, "-d", "vm1", "-l", level, "-o", folder, "-n",
                    "--scratchdir", server.directory.path,
                ], environment: LibvirtClient.environment, timeout: 60)
            try result.output()
            // The machine's agent froze and thawed its file system.
            #expect(result.stderr.contains("Freezed [1] filesystems"), "\(result)")
            #expect(result.stderr.contains("Thawed [1] filesystems"), "\(result)")
            #expect(result.stderr.contains("Finished successfully"), "\(result)")
        }

        /// Restores up to a checkpoint, and fails unless file system and files are whole.
        private func verify(
            _ server: ServerUnderTest, _ files: [String], from folder: String, _ number: Int
        ) throws {
            let directory = try TemporaryDirectory()
            let place = directory.file("restored")
            try Command.run(
                "virtnbdrestore",
                [
                    "-U", server.libvirtURI, "-i", folder, "-o", place, "-n", "-s",
                    files.joined(separator: ","), "-f", directory.file("socket"), "-L",
                    directory.file("log"),
                ], environment: LibvirtClient.environment, timeout: 60
            ).output()
            let raw = directory.file("raw")
            try Command.run(
                "qemu-img", ["convert", "-f", "qcow2", "-O", "raw", place + "/vda", raw]
            ).output()
            // Frozen when the instant was taken: its journal is empty, and nothing needs repair.
            try Command.run("e2fsck", ["-fn", raw]).output()
            let mount = try directory.directory("mount")
            let loop = try LoopDevice(over: raw)
            try Command.run("mount", ["-o", "ro", loop.path, mount]).output()
            defer { _ = try? Command.run("umount", [mount]) }
            let names = Files.listing(mount).filter { $0.contains("-") }
            #expect(!names.isEmpty, "restore \(number)")
            for name in names {
                let sum = try Command.run("sha256sum", [mount + "/" + name]).output()
                #expect(sum.hasPrefix(name.split(separator: "-")[1]), "restore \(number): \(name)")
            }
        }

        @Test("P1, P2, P3: a running machine moves in, is backed up, and survives a kill -9")
        func life() throws {
            let daemon = try LibvirtDaemon()
            let old = daemon.directory.file("old.img")
            let new = daemon.directory.file("new.img")
            try Images.sparse(old, bytes: 128 << 20)
            try Images.sparse(new, bytes: 128 << 20)
            try daemon.startMachine(disk: old)
            let server = try server(beside: daemon, disk: new)
            try daemon.waitForRounds(2)

            try moveIn(daemon, server)
            let blocks = try daemon.virsh("domblklist", "vm1", "--details")
            #expect(VirshText.words(blocks.line(2)) == ["network", "disk", "vda", "vm1/vda"])
            #expect(try server.virsh(["domstate", "vm1"]).lines == ["running"])
            #expect(try server.virsh(["list", "--all", "--name"]).lines == ["vm1"])
            try daemon.waitForRounds(1)

            let folder = daemon.directory.file("backups")
            try backup(server, "full", into: folder)
            try daemon.waitForRounds(2)
            try backup(server, "inc", into: folder)
            try daemon.waitForRounds(1)

            try kill(server, daemon)
            try daemon.waitForRounds(2)
            try backup(server, "inc", into: folder)

            try daemon.finishMachine()
            try Command.run("e2fsck", ["-fn", new]).output()
            let chain = [
                "vda.full.data", "vda.inc.virtnbdbackup.1.data", "vda.inc.virtnbdbackup.2.data",
            ]
            for count in 1...3 {
                try verify(server, Array(chain.prefix(count)), from: folder, count)
            }
            try server.stop()
        }

        /// Ends the server as a power switch does; the machine stops, and goes on where it was.
        private func kill(_ server: ServerUnderTest, _ daemon: LibvirtDaemon) throws {
            server.kill()
            try daemon.wait(for: "stop at the error") {
                try daemon.virsh("domstate", "vm1", "--reason") == ["paused (I/O error)"]
            }
            try server.start()
            // Requests that were under way fail once more before qemu has connected again.
            try daemon.wait(for: "machine that stays running") {
                if try daemon.virsh("domstate", "vm1") != ["running"] {
                    _ = try? daemon.virsh("resume", "vm1")
                }
                Thread.sleep(forTimeInterval: 0.5)
                return try daemon.virsh("domstate", "vm1") == ["running"]
            }
        }
    }
}
