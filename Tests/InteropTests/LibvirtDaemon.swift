import Foundation
import TestSupport

/// A real libvirtd of Debian 12 with its qemu driver, and a Linux machine that it runs.
///
/// Daemon and machines end with the last owner (see `Tests/guest/libvirt-daemon`).
final class LibvirtDaemon {
    static let uuid = "7c1a2b7e-52a8-4f57-9a0e-1d3f4b6c8e90"

    let directory: TemporaryDirectory
    private let process: Command
    private static let guestFiles =
        FileManager.default.currentDirectoryPath + "/.build/guest"
    private static var scripts: String {
        URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "guest").path
    }

    var socket: String { directory.file("libvirt/run/libvirt-sock") }
    var uri: String { "qemu:///system?socket=\(socket)" }
    /// What the machine has printed so far.
    var console: String { Files.read(directory.file("console")) }

    init() throws {
        try Tool.require("libvirtd", "virsh", "qemu-system-x86_64", "nc", "cpio", "busybox")
        directory = try TemporaryDirectory()
        let socket = directory.file("libvirt/run/libvirt-sock")
        process = try Command(
            "bash",
            [
                Self.scripts + "/libvirt-daemon", directory.file("libvirt"),
                Self.guestFiles + "-libvirt-cache",
            ])
        let uri = "qemu:///system?socket=\(socket)"
        try process.wait(for: "libvirtd", timeout: 60) { _ in
            guard Files.exists(socket) else { return false }
            return (try? Command.run("virsh", ["-c", uri, "version"]).succeeded) ?? false
        }
    }

    /// What a command of virsh prints that is sent to the daemon itself, not through the server.
    @discardableResult
    func virsh(_ arguments: String...) throws -> [String] {
        let result = try Command.run(
            "virsh", ["-c", uri] + arguments, environment: LibvirtClient.environment)
        try result.output()
        return result.lines
    }

    /// What a machine's disk is.
    enum Disk {
        case file(String)
        case described(DiskDescription)
    }

    /// Defines and starts `vm1` with a file as its disk `vda`, which goes to the machine's job.
    func startMachine(disk: String) throws { try startMachine(.file(disk)) }

    /// Defines and starts `vm1` with this disk as its `vda`, which goes to the machine's job.
    func startMachine(_ disk: Disk) throws {
        let environment = ["GUEST_FILES": Self.guestFiles]
        for (made, maker) in [("base", "build-guest"), ("agent", "build-agent")]
        where !Files.exists(Self.guestFiles + "/\(made).cpio.gz") {
            try Command.run(
                "bash", [Self.scripts + "/" + maker], environment: environment, timeout: 300
            ).output()
        }
        // A kernel unpacks several archives one after the other.
        let archives = """
            cd \(directory.path) && cp \(Self.scripts)/libvirt-job job &&
            echo job | cpio --quiet -o -H newc -R 0:0 | gzip -1 > job.cpio.gz &&
            cat \(Self.guestFiles)/base.cpio.gz \(Self.guestFiles)/agent.cpio.gz job.cpio.gz > initrd
            """
        try Command.run("bash", ["-ec", archives]).output()
        try Files.write(xml(disk), to: directory.file("machine.xml"))
        try virsh("define", directory.file("machine.xml"))
        try virsh("start", "vm1")
    }

    private static func xml(_ disk: Disk) -> String {
        switch disk {
        case .file(let path):
            """
            <disk type='file' device='disk'>
              <driver name='qemu' type='raw' cache='none' discard='unmap' error_policy='stop'
                rerror_policy='stop'/>
              <source file='\(path)'/>
              <target dev='vda' bus='virtio'/>
            </disk>
            """
        case .described(let disk): disk.xml
        }
    }

    private func xml(_ disk: Disk) -> String {
        """
        <domain type='qemu'>
          <name>vm1</name>
          <uuid>\(Self.uuid)</uuid>
          <memory unit='MiB'>256</memory>
          <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
          <vcpu>1</vcpu>
          <os>
            <type arch='x86_64' machine='pc'>hvm</type>
            <kernel>\(Self.guestFiles)/vmlinuz</kernel>
            <initrd>\(directory.file("initrd"))</initrd>
            <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable</cmdline>
          </os>
          <features><acpi/></features>
          <on_reboot>destroy</on_reboot>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            \(Self.xml(disk))
            <controller type='usb' model='none'/>
            <serial type='file'>
              <source path='\(directory.file("console"))'/>
              <target port='0'/>
            </serial>
            <serial type='unix'>
              <source mode='bind' path='\(directory.file("orders"))'/>
              <target port='1'/>
            </serial>
            <channel type='unix'>
              <source mode='bind' path='\(directory.file("agent"))'/>
              <target type='virtio' name='org.qemu.guest_agent.0'/>
            </channel>
            <memballoon model='none'/>
          </devices>
        </domain>

        """
    }

    /// The last round of its job that the machine has told of.
    var round: Int {
        let marks = console.split(whereSeparator: \.isNewline)
            .filter { $0.hasPrefix("GUEST:MARK ") }
        return marks.last.flatMap { Int($0.dropFirst(11)) } ?? 0
    }

    /// Waits until the machine's job has come further by this many rounds.
    func waitForRounds(_ count: Int, timeout seconds: Double = 60) throws {
        let goal = round + count
        try wait(for: "round \(goal)", timeout: seconds) { self.round >= goal }
    }

    /// Waits until a condition holds; what the machine printed is part of a failure.
    func wait(
        for what: String, timeout seconds: Double = 60, until condition: () throws -> Bool
    ) throws {
        let deadline = Date(timeIntervalSinceNow: seconds)
        while try !condition() {
            guard Date() < deadline else {
                throw TestFailure(
                    "no \(what) within \(seconds) s; the machine printed\n\(console.suffix(2000))")
            }
            Thread.sleep(forTimeInterval: 0.05)
        }
    }

    /// Tells the machine's job to check its file system and to end.
    func finishMachine() throws {
        try Command.run("nc", ["-N", "-U", directory.file("orders")], input: "stop\n").output()
        try wait(for: "end of the machine's job") { self.console.contains("GUEST:DONE") }
        guard console.contains("GUEST:CHECKED"), console.contains("GUEST:DONE status=0") else {
            throw TestFailure("the machine is not well:\n\(console.suffix(2000))")
        }
    }
}
