import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// A real Linux guest on a live export.
    @Suite struct GuestTests {
        @Test("P1: a guest uses its disk, and a job from its midst is a consistent file system")
        func guestWithBackup() throws {
            let directory = try TemporaryDirectory()
            let disk = directory.file("disk.img")
            try Images.sparse(disk, bytes: 256 << 20)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", disk)])
            ])
            let guest = try GuestMachine.boot(server.liveURI("vm1", "vda"))
            try guest.wait(for: "third mark", timeout: 240) { $0.stdout.contains("GUEST:MARK 3") }
            let job = try server.begin("vm1", disks: ["vda"], tag: "mid")
            try GuestMachine.expectFinished(guest)

            let first = directory.file("first.img")
            let second = directory.file("second.img")
            let uri = try job.uri("vda")
            try Command.run("nbdcopy", [uri, first]).output()
            try Command.run("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, second]).output()
            try Images.expectEqual(first, second)
            try server.end("vm1", job)
            try server.stop()

            // The instant lies in a running guest: replay the journal first, as a mount would.
            let replay = try Command.run("e2fsck", ["-fy", "-E", "journal_only", first])
            #expect(replay.status <= 1, "\(replay)")
            try Command.run("e2fsck", ["-fn", first]).output()
            try Command.run("e2fsck", ["-fn", disk]).output()
        }
    }
}
