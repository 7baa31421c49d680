import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// The door over ssh: an sshd of the tests' own, with keys of its own, and unmodified clients.
    @Suite struct LibvirtSSHTests {
        @Test(
            "virsh of another host works over ssh, by any driver's name",
            arguments: LibvirtClient.allCases)
        func virsh(client: LibvirtClient) throws {
            let sshd = try SecureShell()
            let fixture = try LibvirtFixture(client)
            func run(_ uri: String, _ arguments: [String]) throws -> CommandResult {
                try fixture.server.virsh(arguments, by: client, uri: uri)
            }
            for driver in ["nbdpull", "qemu"] {
                for more in ["", "&proxy=netcat"] {
                    let uri = sshd.uri(driver, fixture.server.libvirtSocket) + more
                    #expect(try run(uri, ["list", "--all", "--name"]).lines == ["vm1"])
                }
            }
            let uri = sshd.uri("nbdpull", fixture.server.libvirtSocket)
            try run(uri, ["checkpoint-create-as", "vm1", "far"]).output()
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == ["far"])
            let socket = fixture.directory.file("far.sock")
            let backup = try fixture.file(
                "<domainbackup mode='pull'><server transport='unix' socket='\(socket)'/>"
                    + "</domainbackup>")
            try run(uri, ["backup-begin", "vm1", backup]).output()
            #expect(try run(uri, ["domjobinfo", "vm1"]).lines.line(0).hasSuffix("Unbounded"))
            #expect(
                try Bytes.ofDisk(fixture.directory.file("vda.img")) == fixture.content("vda"))
            try run(uri, ["domjobabort", "vm1"]).output()
            let looking = try fixture.server.virsh(
                ["checkpoint-delete", "vm1", "far"], by: client, readOnly: true, uri: uri)
            #expect(looking.stderr.contains("read only access prevents"), "\(looking)")
            try fixture.server.stop()
        }

        @Test(
            "who has no key is not let in, and libvirt's helper knows no socket but libvirtd's own")
        func refused() throws {
            let sshd = try SecureShell()
            let fixture = try LibvirtFixture()
            let uri = sshd.uri("nbdpull", fixture.server.libvirtSocket)
            let native = try fixture.server.virsh(["list"], uri: uri + "&proxy=native")
            #expect(native.status == 1, "\(native)")
            #expect(native.stderr.contains("End of file while reading data"), "\(native)")
            try sshd.forgetKeys()
            let stranger = try fixture.server.virsh(["list"], uri: uri)
            #expect(stranger.status == 1 && stranger.stderr.contains("Permission denied"))
            try fixture.server.stop()
        }
    }
}

/// An sshd on a port of its own, which lets the tests' user in by a key of its own.
private final class SecureShell {
    private let directory: TemporaryDirectory
    private let process: Command
    private let port: Int

    init() throws {
        let program = try Tool.path("sshd")
        try Tool.require("ssh", "ssh-keygen", "nc")
        directory = try TemporaryDirectory()
        port = Ports.free()
        for name in ["host", "key"] {
            try Command.run(
                "ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", directory.file(name)]
            ).output()
        }
        try Files.write(Files.read(directory.file("key.pub")), to: directory.file("authorized"))
        try Files.write(
            """
            ListenAddress 127.0.0.1
            Port \(port)
            HostKey \(directory.file("host"))
            PidFile none
            AuthorizedKeysFile \(directory.file("authorized"))
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password

            """, to: directory.file("config"))
        // Run by root it wants this place; a service makes it, and there is none here.
        if NSUserName() == "root" {
            try FileManager.default.createDirectory(
                atPath: "/run/sshd", withIntermediateDirectories: true)
        }
        process = try Command(program, ["-D", "-e", "-f", directory.file("config")])
        try process.wait(for: "sshd") { $0.stderr.contains("Server listening") }
    }

    func uri(_ driver: String, _ socket: String) -> String {
        "\(driver)+ssh://\(NSUserName())@127.0.0.1:\(port)/system?socket=\(socket)"
            + "&keyfile=\(directory.file("key"))&no_verify=1"
    }

    func forgetKeys() throws { try Files.write("", to: directory.file("authorized")) }
}
