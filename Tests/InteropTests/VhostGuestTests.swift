import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// A real Linux guest in qemu whose disk is a vhost-user-blk back end.
    @Suite struct VhostGuestTests {
        private struct Machine {
            let guest: Command
            let monitor: String

            init(_ socket: String, _ directory: TemporaryDirectory) throws {
                try Tool.require("qemu-system-x86_64", "busybox", "cpio", "mkfs.ext4", "nc")
                monitor = directory.file("monitor")
                let folder = URL(filePath: #filePath).deletingLastPathComponent()
                    .deletingLastPathComponent().appending(path: "guest").path
                guest = try Command(
                    "env",
                    [
                        "GUEST_MONITOR=\(monitor)", "bash", folder + "/boot-guest",
                        "vhost:" + socket, folder + "/vhost-job", "240",
                    ])
            }

            func wait(for text: String) throws {
                try guest.wait(for: text, timeout: 180) { $0.stdout.contains("GUEST:" + text) }
            }

            /// Gives qemu's monitor a command, again while it finds fault with it.
            ///
            /// A device that the guest has let go is there for a moment.
            func order(_ command: String) throws {
                var said = ""
                for _ in 0..<50 {
                    said = try Command.run(
                        "nc", ["-N", "-w", "5", "-U", monitor], input: command + "\n"
                    ).output()
                    if !said.contains("Error") { return }
                    Thread.sleep(forTimeInterval: 0.2)
                }
                throw TestFailure("qemu's monitor, told \(command): \(said)")
            }
        }

        @Test(
            "P1, P2: a guest works through a job, takeovers and a kill -9, discards, is unplugged")
        func life() throws {
            let directory = try TemporaryDirectory()
            let disk = directory.file("disk.img")
            try Images.sparse(disk, bytes: 256 << 20)
            let folder = directory.file("vhost")
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", disk)])],
                options: ["--vhost-dir", folder])
            let machine = try Machine(server.vhostSocket(folder, "vm1", "vda"), directory)

            try machine.wait(for: "MARK 2")
            let job = try server.begin("vm1", disks: ["vda"], tag: "mid", checkpoint: "mid")
            let first = directory.file("first.img")
            let second = directory.file("second.img")
            try Command.run("nbdcopy", [try job.uri("vda"), first]).output()
            try server.takeOver()
            try machine.wait(for: "MARK 4")
            server.kill()
            try machine.wait(for: "MARK 4")
            try server.start()
            try machine.wait(for: "MARK 6")
            try server.takeOver()
            // The job has outlived its servers.
            try Command.run("nbdcopy", [try job.uri("vda"), second]).output()
            try Images.expectEqual(first, second)
            try server.end("vm1", job)

            try machine.wait(for: "UNPLUG")
            try machine.order("device_del d0")
            try machine.wait(for: "GONE")
            try machine.order("device_add vhost-user-blk-pci,id=d1,chardev=c0,num-queues=1")
            let output = try machine.guest.result(timeout: 180).output()
            #expect(output.contains("GUEST:CHECKED") && output.contains("GUEST:BACK files=8"))
            #expect(output.contains("GUEST:DONE status=0"))
            #expect(!output.contains("I/O error"), "the guest saw the kill:\n\(output)")
            try server.stop()

            // The instant lies in a running guest: replay the journal first, as a mount would.
            let replay = try Command.run("e2fsck", ["-fy", "-E", "journal_only", first])
            #expect(replay.status <= 1, "\(replay)")
            for image in [first, disk] { try Command.run("e2fsck", ["-fn", image]).output() }
            // 48 MiB were written and given back.
            #expect(try Images.allocatedBytes(disk) < 40 << 20)
        }
    }
}
