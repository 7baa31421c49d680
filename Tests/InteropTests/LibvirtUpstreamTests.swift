import Foundation
import TestSupport
import Testing

extension InteropSuite {
    @Suite("Beside a real libvirtd: virsh sees one set of machines through our door")
    struct LibvirtUpstreamTests {
        private let uuid = "11111111-2222-4333-8444-5555555555a1"

        private func machineXML(_ name: String, uuid: String, disk: String) -> String {
            """
            <domain type='qemu'><name>\(name)</name><uuid>\(uuid)</uuid>
            <memory unit='MiB'>32</memory><vcpu>1</vcpu>
            <os><type arch='x86_64' machine='pc'>hvm</type></os>
            <devices>
              <channel type='unix'><source mode='bind'/>
                <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
              \(disk)
            </devices></domain>
            """
        }

        @Test("one URI lists, runs and backs up a machine of libvirtd's on our live export")
        func oneURI() throws {
            let libvirtd = try PrivateLibvirtd()
            let files = try TemporaryDirectory()
            let image = files.file("vda.raw")
            try Images.sparse(image, bytes: 16 << 20)
            let own = files.file("own.xml")
            try Files.write(
                """
                <domain type='qemu'><name>m1</name><uuid>\(uuid)</uuid><devices>
                <disk type='file' device='disk'><driver name='qemu' type='raw'/>
                <source file='\(image)'/><target dev='vda' bus='virtio'/></disk></devices></domain>
                """, to: own)
            let server = try ServerUnderTest(options: [
                "--live-tcp", "127.0.0.1:\(libvirtd.port)", "--domain", own,
                "--libvirt-upstream", libvirtd.socketPath,
            ])
            defer { _ = try? server.stop() }
            let door = Virsh("nbdpull:///system?socket=\(server.runDirectory)/libvirt-sock")
            let direct = Virsh("qemu+unix:///session?socket=\(libvirtd.socketPath)")

            let xml = files.file("machine.xml")
            try Files.write(
                machineXML(
                    "m1", uuid: uuid,
                    disk: """
                        <disk type='network' device='disk'><driver name='qemu' type='raw'/>
                        <source protocol='nbd' name='m1/vda'>
                        <host name='127.0.0.1' port='\(libvirtd.port)'/></source>
                        <target dev='vda' bus='virtio'/></disk>
                        """), to: xml)
            try door.run("define", xml)
            try door.run("start", "m1", "--paused")
            defer { _ = try? direct.run("destroy", "m1") }
            #expect(try direct.run("domstate", "m1").contains("paused"))
            #expect(try door.run("domstate", "m1").contains("paused"))
            #expect(try door.run("list", "--all", "--name").split(separator: "\n") == ["m1"])

            let shown = try door.run("dumpxml", "m1")
            #expect(shown.contains("type='qcow2'"))
            #expect(!shown.contains("protocol='nbd'"))
            #expect(try door.run("dumpxml", "m1", "--inactive").contains("protocol='nbd'"))
            try Files.write(shown, to: files.file("shown.xml"))
            #expect(try door.failure("define", files.file("shown.xml")).contains("stands in"))

            try door.run("checkpoint-create-as", "m1", "c1")
            #expect(try door.run("list", "--all", "--name", "--with-checkpoint").contains("m1"))
            #expect(try !direct.run("checkpoint-list", "m1").contains("c1"))
            // The guest has not been booted, so nobody answers for it.
            #expect(
                try door.failure("checkpoint-create-as", "m1", "c2", "--quiesce")
                    .contains("domain is not running"))
            #expect(try !door.run("checkpoint-list", "m1").contains("c2"))

            let socket = files.file("backup.sock")
            let backup = files.file("backup.xml")
            try Files.write(
                "<domainbackup mode='pull'><server transport='unix' socket='\(socket)'/>"
                    + "</domainbackup>", to: backup)
            try door.run("backup-begin", "m1", backup)
            #expect(try door.run("domjobinfo", "m1").contains("Backup"))
            #expect(try direct.run("domjobinfo", "m1").contains("None"))
            try door.run("domjobabort", "m1")
            try door.run("destroy", "m1")
            try door.run("undefine", "m1")
            // Libvirtd knows it no more; we still do.
            #expect(try door.run("domstate", "m1").contains("shut off"))
            #expect(try direct.failure("domstate", "m1").contains("failed to get domain"))
        }

        /// A machine `m1` of two disks, by a domain of ours, and one of one disk that only we know.
        private func definitions(_ files: TemporaryDirectory) throws -> [String] {
            func disk(_ name: String, _ target: String) throws -> String {
                let image = files.file(name)
                try Images.sparse(image, bytes: 4 << 20)
                return """
                    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
                    <source file='\(image)'/><target dev='\(target)' bus='virtio'/></disk>
                    """
            }
            let own = try disk("vda.raw", "vda") + disk("vdb.raw", "vdb")
            let only = try disk("only.raw", "vda")
            try Files.write(
                "<domain type='qemu'><name>m1</name><uuid>\(uuid)</uuid><devices>\(own)</devices>"
                    + "</domain>", to: files.file("m1.xml"))
            try Files.write(
                "<domain type='qemu'><name>only</name><vcpu>1</vcpu><devices>\(only)</devices>"
                    + "</domain>", to: files.file("only.xml"))
            return ["--domain", files.file("m1.xml"), "--domain", files.file("only.xml")]
        }

        @Test(
            "what clients were shown is what they change: devices, definitions, machines that are off"
        )
        func changes() throws {
            let libvirtd = try PrivateLibvirtd()
            let files = try TemporaryDirectory()
            let server = try ServerUnderTest(
                options: [
                    "--live-tcp", "127.0.0.1:\(libvirtd.port)", "--libvirt-upstream",
                    libvirtd.socketPath,
                ] + definitions(files))
            defer { _ = try? server.stop() }
            let door = Virsh("nbdpull:///system?socket=\(server.runDirectory)/libvirt-sock")
            let direct = Virsh("qemu+unix:///session?socket=\(libvirtd.socketPath)")
            let disks = ["vda", "vdb"].map { target in
                """
                <disk type='network' device='disk'><driver name='qemu' type='raw'/>
                <source protocol='nbd' name='m1/\(target)'>
                <host name='localhost' port='\(libvirtd.port)'/></source>
                <target dev='\(target)' bus='virtio'/></disk>
                """
            }
            let xml = files.file("machine.xml")
            try Files.write(machineXML("m1", uuid: uuid, disk: disks.joined()), to: xml)
            try door.run("define", xml)

            // By the XML that virsh reads itself, and by one that was saved.
            try door.run("detach-disk", "m1", "vdb", "--config")
            #expect(try !direct.run("dumpxml", "m1", "--inactive").contains("m1/vdb"))
            try door.run("define", xml)
            let shown = files.file("shown.xml")
            try Files.write(
                door.run("dumpxml", "m1", "--xpath", "//disk[target/@dev='vdb']"), to: shown)
            #expect(Files.read(shown).contains("stand-ins"))
            try door.run("update-device", "m1", shown, "--config")
            #expect(try direct.run("dumpxml", "m1", "--inactive").contains("m1/vdb"))
            #expect(try !direct.run("dumpxml", "m1", "--inactive").contains("stand-ins"))
            try door.run("detach-device", "m1", shown, "--config")
            #expect(try !direct.run("dumpxml", "m1", "--inactive").contains("m1/vdb"))
            #expect(
                try door.failure("attach-device", "m1", shown, "--config").contains("stands in"))
            #expect(
                try door.failure("detach-device", "m1", shown, "--config")
                    .contains("has no disk of this target"))
            #expect(try door.failure("define", files.file("only.xml")).contains("nbdpull serves"))

            // An editor that is a script.
            let editor = files.file("editor")
            try Files.write(
                "#!/bin/sh\nsed -i 's,</name>,</name><title>t</title>,' \"$1\"\n", to: editor)
            try Command.run("chmod", ["755", editor]).output()
            try Command.run(
                "virsh", ["-c", door.uri, "edit", "m1"], environment: ["EDITOR": editor]
            ).output()
            #expect(try direct.run("dumpxml", "m1", "--inactive").contains("<title>t</title>"))
            let refused = try Command.run(
                "virsh", ["-c", door.uri, "edit", "only"], environment: ["EDITOR": editor])
            #expect(!refused.stdout.contains("'only' XML configuration edited"), "\(refused)")
            #expect(try direct.run("list", "--all", "--name").split(separator: "\n") == ["m1"])

            // Its machine is off, and has backups, one after the other.
            #expect(try door.run("domstate", "m1").contains("shut off"))
            for level in ["full", "inc"] {
                try NBDClient(server.liveURI("m1", "vda")).write([UInt8(level.count)], at: 65536)
                let result = try Command.run(
                    "virtnbdbackup",
                    [
                        "-U", door.uri, "-d", "m1", "-l", level, "-o", files.file("backups"), "-n",
                        "--scratchdir", files.path,
                    ], environment: LibvirtClient.environment, timeout: 60)
                try result.output()
                #expect(result.stderr.contains("Finished successfully"), "\(result)")
            }
            #expect(Files.exists(files.file("backups/vda.inc.virtnbdbackup.1.data")))
        }

        @Test("what is not ours passes: storage with its streams, and the end of libvirtd")
        func passes() throws {
            let libvirtd = try PrivateLibvirtd()
            let server = try ServerUnderTest(options: ["--libvirt-upstream", libvirtd.socketPath])
            defer { _ = try? server.stop() }
            let door = Virsh("nbdpull:///system?socket=\(server.runDirectory)/libvirt-sock")
            let pool = libvirtd.directory.file("pool")
            try libvirtd.makeDirectory(pool)
            try door.run("pool-create-as", "p", "dir", "--target", pool)
            try door.run("vol-create-as", "p", "v", "3M")
            let files = try TemporaryDirectory()
            var generator = SeededGenerator(seed: 12)
            let bytes = generator.bytes(3 << 20)
            try Data(bytes).write(to: URL(fileURLWithPath: files.file("in")))
            try door.run("vol-upload", "v", files.file("in"), "--pool", "p")
            try door.run("vol-download", "v", files.file("out"), "--pool", "p")
            #expect(try Bytes.ofFile(files.file("out")) == bytes)
            libvirtd.kill()
            #expect(try door.failure("list").contains("Failed to connect socket"))
            #expect(server.isRunning)
        }
    }
}

/// virsh on one URI.
private struct Virsh {
    let uri: String
    init(_ uri: String) { self.uri = uri }

    @discardableResult
    func run(_ arguments: String...) throws -> String {
        try Command.run("virsh", ["-q", "-c", uri] + arguments).output()
    }

    /// The error of a command that must fail.
    func failure(_ arguments: String...) throws -> String {
        let result = try Command.run("virsh", ["-q", "-c", uri] + arguments)
        guard !result.succeeded else { throw TestFailure("it went well: \(result)") }
        return result.stderr
    }
}
