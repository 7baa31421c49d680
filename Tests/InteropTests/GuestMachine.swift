import Foundation
import TestSupport
import Testing

/// A small Linux in qemu whose disk is an export.
enum GuestMachine {
    /// Boots it; `tls` is the value of qemu's `-object` where the URI begins with `nbds`, `qemu`
    /// the program that is to run it.
    static func boot(
        _ uri: String, tls: String? = nil, qemu: String = "qemu-system-x86_64"
    ) throws -> Command {
        try Tool.require("qemu-system-x86_64", "busybox", "cpio", "mkfs.ext4")
        let here = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        let script = here.deletingLastPathComponent().appendingPathComponent("guest/boot-guest")
        return try Command(
            "env", ["GUEST_TLS=\(tls ?? "")", "GUEST_QEMU=\(qemu)", "bash", script.path, uri])
    }

    /// Waits until the guest has made, used and checked its file system.
    static func expectFinished(_ guest: Command) throws {
        let output = try guest.result(timeout: 300).output()
        #expect(output.contains("GUEST:CHECKED"))
        #expect(output.contains("GUEST:DONE status=0"))
    }

    /// Boots it on a disk of its own, begins a job in its midst, and looks whether the job, copied
    /// by two programs, is a consistent file system; so must be the disk itself in the end.
    ///
    /// `meanwhile` has the guest and its server before the job begins; `run` runs a program.
    static func backUpMidst(
        qemu: String = "qemu-system-x86_64",
        run: (String, [String]) throws -> Void = { try Command.run($0, $1).output() },
        meanwhile: (Command, ServerUnderTest) throws -> Void = { _, _ in }
    ) throws {
        let directory = try TemporaryDirectory()
        let disk = directory.file("disk.img")
        try Images.sparse(disk, bytes: 256 << 20)
        let server = try ServerUnderTest([
            DomainDescription("vm1", [DiskDescription("vda", disk)])
        ])
        let guest = try boot(server.liveURI("vm1", "vda"), qemu: qemu)
        try meanwhile(guest, server)
        try guest.wait(for: "third mark", timeout: 240) { $0.stdout.contains("GUEST:MARK 3") }
        let job = try server.begin("vm1", disks: ["vda"], tag: "mid")
        try expectFinished(guest)
        let first = directory.file("first.img")
        let second = directory.file("second.img")
        let uri = try job.uri("vda")
        try run("nbdcopy", [uri, first])
        try run("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, second])
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
