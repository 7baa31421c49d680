import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// virsh of libvirt 9 and 11, as it is: what it shows of domains and their disks.
    @Suite struct LibvirtVirshTests {
        @Test(
            "virsh finds a domain by name and uuid, and shows what it is",
            arguments: LibvirtClient.allCases)
        func domain(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let list = try fixture.virsh("list", "--all")
            #expect(VirshText.words(list.line(0)) == ["Id", "Name", "State"])
            #expect(list.count == 3 && VirshText.words(list.line(2)).line(1) == "vm1", "\(list)")
            #expect(try fixture.virsh("list", "--all", "--name") == ["vm1"])
            #expect(try fixture.virsh("list", "--all", "--uuid") == [LibvirtFixture.uuid])
            #expect(try fixture.virsh("domuuid", "vm1") == [LibvirtFixture.uuid])
            #expect(try fixture.virsh("domname", LibvirtFixture.uuid) == ["vm1"])
            for name in ["vm1", LibvirtFixture.uuid] {
                let info = try fixture.virsh("dominfo", name)
                #expect(VirshText.value("Name", in: info) == "vm1")
                #expect(VirshText.value("UUID", in: info) == LibvirtFixture.uuid)
                #expect(VirshText.value("OS Type", in: info) == "hvm")
                #expect(VirshText.value("Persistent", in: info) == "yes")
                #expect(VirshText.value("Autostart", in: info) == "disable")
            }
            for unknown in ["vm2", "1b4e28ba-2fa1-41d2-883f-0016d3cca428"] {
                #expect(
                    try fixture.refusal("dominfo", unknown).line(0)
                        == "error: failed to get domain '\(unknown)'")
            }
            try fixture.server.stop()
        }

        @Test(
            "a domain's state is what the server knows: whether its machine is connected",
            arguments: LibvirtClient.allCases)
        func state(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let machine = try NBDClient(fixture.server.liveURI("vm1", "vda"))
            #expect(machine.sizeBytes == 16 << 20)
            #expect(try fixture.virsh("domstate", "vm1") == ["running"])
            #expect(try fixture.virsh("list", "--name") == ["vm1"])
            #expect(VirshText.value("State", in: try fixture.virsh("dominfo", "vm1")) == "running")
            let list = try fixture.virsh("list")
            #expect(VirshText.words(list.line(2)).suffix(2) == ["vm1", "running"], "\(list)")
            try fixture.server.stop()
        }

        @Test("virsh lists a domain's disks and their sizes", arguments: LibvirtClient.allCases)
        func disks(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let list = try fixture.virsh("domblklist", "vm1")
            #expect(VirshText.words(list.line(0)) == ["Target", "Source"])
            #expect(list.dropFirst(2).map { VirshText.words($0).line(0) } == ["vda", "vdb"])
            let details = try fixture.virsh("domblklist", "vm1", "--details")
            #expect(VirshText.words(details.line(0)) == ["Type", "Device", "Target", "Source"])
            #expect(
                details.dropFirst(2).map { Array(VirshText.words($0).prefix(3)) }
                    == [["file", "disk", "vda"], ["file", "disk", "vdb"]])
            for (target, bytes) in LibvirtFixture.sizes {
                let info = try fixture.virsh("domblkinfo", "vm1", target)
                #expect(VirshText.value("Capacity", in: info) == "\(bytes)")
                let source = fixture.directory.file(target + ".img")
                let allocated = try Images.allocatedBytes(source)
                #expect(VirshText.value("Allocation", in: info) == "\(allocated)")
                #expect(VirshText.value("Physical", in: info) == "\(bytes)")
            }
            let all = try fixture.virsh("domblkinfo", "vm1", "--all")
            #expect(
                VirshText.words(all.line(0)) == ["Target", "Capacity", "Allocation", "Physical"])
            #expect(VirshText.words(all.line(2)).prefix(2) == ["vda", "16777216"])
            #expect(
                try fixture.refusal("domblkinfo", "vm1", "vdz")
                    == ["error: invalid argument: invalid path vdz not assigned to domain"])
            try fixture.server.stop()
        }

        @Test("virsh counts what the machine reads and writes", arguments: LibvirtClient.allCases)
        func statistics(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let machine = try NBDClient(fixture.server.liveURI("vm1", "vda"))
            for _ in 0..<3 { _ = try machine.read(0, 65_536) }
            try machine.write([UInt8](repeating: 1, count: 4096), at: 0)
            try machine.flush()
            let lines = try fixture.virsh(
                "domblkstat", "vm1", "vda", until: "vda wr_bytes 4096")
            func figure(_ name: String) -> String? {
                lines.first { $0.hasPrefix("vda \(name) ") }.map { VirshText.words($0).line(2) }
            }
            #expect(figure("rd_req") == "3" && figure("rd_bytes") == "196608", "\(lines)")
            #expect(figure("wr_req") == "1" && figure("wr_bytes") == "4096", "\(lines)")
            let all = try fixture.virsh("domstats", "vm1", "--block")
            #expect(all.first == "Domain: 'vm1'", "\(all)")
            for line in [
                "block.count=2", "block.0.name=vda", "block.1.name=vdb", "block.0.rd.bytes=196608",
                "block.0.wr.reqs=1", "block.0.capacity=16777216", "block.1.wr.bytes=0",
            ] {
                #expect(all.contains("  " + line), "\(line) is not in \(all)")
            }
            try fixture.server.stop()
        }

        @Test(
            "the domain's XML is one that libvirt's own schemas accept, 9 and 11",
            arguments: LibvirtClient.allCases)
        func domainXML(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let xml = try fixture.virsh("dumpxml", "vm1")
            #expect(xml.line(0).hasPrefix("<domain "))
            for schemas in try LibvirtSchemas.all() {
                try schemas.expectValid("domain.rng", xml.joined(separator: "\n"))
            }
            #expect(
                try fixture.virsh("dumpxml", "vm1", "--xpath", "/domain/name")
                    == ["<name>vm1</name>"])
            #expect(try fixture.virsh("dumpxml", "vm1", "--inactive").line(0).hasPrefix("<domain "))
            try fixture.server.stop()
        }

        @Test("virsh asks the server itself", arguments: LibvirtClient.allCases)
        func server(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let version = try fixture.virsh("version")
            #expect(version.count == 4, "\(version)")
            let name = try Command.run("uname", ["-n"]).output()
            #expect(try fixture.virsh("hostname") == [name.trimmingCharacters(in: .newlines)])
            #expect(try fixture.virsh("uri") == [fixture.server.libvirtURI])
            #expect(try fixture.virsh("capabilities").line(0) == "<capabilities>")
            let node = try fixture.virsh("nodeinfo")
            #expect(VirshText.value("CPU model", in: node) != nil, "\(node)")
            try fixture.server.stop()
        }

        @Test("any driver's name in the URI leads to the server", arguments: LibvirtClient.allCases)
        func drivers(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            for address in [
                "nbdpull:///system", "nbdpull:///", "nbdpull+unix:///system", "qemu:///system",
                "qemu+unix:///system", "nbdpull:///anything",
            ] {
                let result = try fixture.server.virsh(
                    ["list", "--all", "--name"], by: client,
                    uri: fixture.server.libvirtURI(address))
                #expect(result.lines == ["vm1"], "\(address): \(result)")
            }
            try fixture.server.stop()
        }

        @Test(
            "over ssh the same, with what libvirt runs on the other side",
            arguments: LibvirtClient.allCases)
        func ssh(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            // Runs what ssh would run on HOST, on this machine.
            let command = fixture.directory.file("ssh")
            try Files.write(
                """
                #!/bin/bash
                while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
                shift 2
                exec bash -c "$*"

                """, to: command)
            try Command.run("chmod", ["+x", command]).output()
            let uri =
                fixture.server.libvirtURI("nbdpull+ssh://elsewhere/system") + "&command=" + command
            let result = try fixture.server.virsh(
                ["list", "--all", "--name"], by: client, uri: uri)
            #expect(result.lines == ["vm1"], "\(result)")
            try fixture.server.stop()
        }

        @Test(
            "what is not there is refused with libvirt's error, and the connection goes on",
            arguments: LibvirtClient.allCases)
        func unsupported(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            for command in [
                ["suspend", "vm1"], ["net-list", "--all"], ["pool-list", "--all"],
                ["snapshot-create-as", "vm1", "s1"], ["blockresize", "vm1", "vda", "32M"],
            ] {
                let result = try fixture.server.virsh(command, by: client)
                #expect(!result.succeeded, "\(result)")
                #expect(
                    result.stderr.contains(
                        "this function is not supported by the connection driver"),
                    "\(result)")
            }
            // Several commands on one connection.
            let script = "net-list; list --all --name; pool-list; domuuid vm1"
            let result = try fixture.server.virsh([script], by: client)
            #expect(result.stdout.contains("vm1") && result.stdout.contains(LibvirtFixture.uuid))
            try fixture.server.stop()
        }
    }
}

/// The schemas of libvirt that judge documents, of the versions that are there.
struct LibvirtSchemas {
    private let directory: String

    static func all() throws -> [LibvirtSchemas] {
        let installed = "/usr/share/libvirt/schemas"
        guard Files.exists(installed + "/domain.rng") else {
            throw TestFailure("no \(installed): run `apt-get install libvirt0`")
        }
        return [
            LibvirtSchemas(directory: installed),
            LibvirtSchemas(directory: try CurrentClients.path("libvirt-schemas")),
        ]
    }

    /// Fails unless the document is valid.
    func expectValid(_ schema: String, _ xml: String) throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("document.xml")
        try Files.write(xml, to: file)
        try Command.run(
            "xmllint", ["--noout", "--relaxng", "\(self.directory)/\(schema)", file]
        ).output()
    }
}
