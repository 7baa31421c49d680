import TestSupport
import Testing

extension InteropSuite {
    /// A machine of libvirt's that has its disk by `<disk type='vhostuser'>`.
    @Suite struct LibvirtVhostTests {
        @Test("P1, P2: libvirt's machine works through a job and a kill -9 of the server")
        func life() throws {
            let daemon = try LibvirtDaemon()
            let disk = daemon.directory.file("disk.img")
            try Images.sparse(disk, bytes: 128 << 20)
            // The same lines for both.
            var vda = DiskDescription("vda", disk)
            vda.vhostSocket = daemon.directory.file("vda.sock")
            let server = try ServerUnderTest([
                DomainDescription("vm1", [vda], uuid: LibvirtDaemon.uuid)
            ])
            try daemon.startMachine(.described(vda))
            try daemon.waitForRounds(2)

            let job = try server.begin("vm1", disks: ["vda"], tag: "mid")
            let copy = daemon.directory.file("copy.img")
            try Command.run("nbdcopy", [try job.uri("vda"), copy]).output()
            try server.end("vm1", job)

            server.kill()
            try server.start()
            try daemon.waitForRounds(3)
            #expect(try daemon.virsh("domstate", "vm1") == ["running"])
            try daemon.finishMachine()
            #expect(!daemon.console.contains("I/O error"))
            try server.stop()
            let replay = try Command.run("e2fsck", ["-fy", "-E", "journal_only", copy])
            #expect(replay.status <= 1, "\(replay)")
            for image in [copy, disk] { try Command.run("e2fsck", ["-fn", image]).output() }
        }
    }
}
