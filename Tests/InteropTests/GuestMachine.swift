import Foundation
import TestSupport
import Testing

/// A small Linux in qemu whose disk is an export.
enum GuestMachine {
    /// Boots it; `tls` is the value of qemu's `-object` where the URI begins with `nbds`, `qemu` the
    /// program that is to run it.
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
}
