import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// The checkpoint commands of virsh 9 and 11: what they print is what libvirt itself makes them
    /// print.
    @Suite struct LibvirtCheckpointTests {
        /// Checkpoints c1, c2, c3 in a row; c1 is described, c2 leaves `vdb` out.
        private func chain(_ client: LibvirtClient) throws -> LibvirtFixture {
            let fixture = try LibvirtFixture(client)
            #expect(
                try fixture.virsh(
                    "checkpoint-create-as", "vm1", "c1", "--description", "the first")
                    == ["Domain checkpoint c1 created"])
            #expect(
                try fixture.virsh(
                    "checkpoint-create-as", "vm1", "c2", "--diskspec", "vda,checkpoint=bitmap",
                    "--diskspec", "vdb,checkpoint=no") == ["Domain checkpoint c2 created"])
            let file = try fixture.file(checkpointXML("c3"))
            #expect(
                try fixture.virsh("checkpoint-create", "vm1", file)
                    == ["Domain checkpoint c3 created from '\(file)'"])
            return fixture
        }

        @Test("checkpoints are made and listed in every way", arguments: LibvirtClient.allCases)
        func lists(client: LibvirtClient) throws {
            let fixture = try chain(client)
            func list(_ options: String...) throws -> [String] {
                let result = try fixture.server.virsh(
                    ["checkpoint-list", "vm1"] + options, by: client)
                try result.output()
                return VirshText.normal(result.lines)
            }
            let rule = String(repeating: "-", count: 35)
            #expect(
                try list() == [
                    " Name   Creation Time", rule, " c1     TIME", " c2     TIME", " c3     TIME",
                ])
            #expect(
                try list("--parent") == [
                    " Name   Creation Time               Parent", rule + "---------",
                    " c1     TIME", " c2     TIME   c1", " c3     TIME   c2",
                ])
            #expect(try list("--name") == ["c1", "c2", "c3"])
            #expect(
                try list("--tree") == ["c1", "  |", "  +- c2", "      |", "      +- c3"])
            #expect(try list("--roots", "--name") == ["c1"])
            #expect(try list("--leaves", "--name") == ["c3"])
            #expect(try list("--no-leaves", "--name") == ["c1", "c2"])
            #expect(try list("--topological", "--name") == ["c1", "c2", "c3"])
            #expect(try list("--from", "c1", "--name") == ["c2"])
            #expect(try list("--from", "c1", "--descendants", "--name") == ["c2", "c3"])
            #expect(try list("--from", "c1", "--descendants", "--leaves", "--name") == ["c3"])
            #expect(try list("--from", "c2", "--tree") == ["c2", "  |", "  +- c3"])
            #expect(try fixture.virsh("list", "--all", "--with-checkpoint", "--name") == ["vm1"])
            #expect(try fixture.virsh("list", "--all", "--without-checkpoint", "--name") == [])
            try fixture.server.stop()
        }

        @Test("a checkpoint's details, parent and XML", arguments: LibvirtClient.allCases)
        func details(client: LibvirtClient) throws {
            let fixture = try chain(client)
            #expect(
                try fixture.virsh("checkpoint-info", "vm1", "c1") == [
                    "Name:           c1", "Domain:         vm1", "Parent:         -",
                    "Children:       1", "Descendants:    2",
                ])
            #expect(
                try fixture.virsh("checkpoint-info", "vm1", "c3") == [
                    "Name:           c3", "Domain:         vm1", "Parent:         c2",
                    "Children:       0", "Descendants:    0",
                ])
            #expect(try fixture.virsh("checkpoint-parent", "vm1", "c2") == ["c1"])
            #expect(
                try fixture.refusal("checkpoint-parent", "vm1", "c1")
                    == ["error: checkpoint 'c1' has no parent"])
            #expect(
                VirshText.normal(
                    try fixture.virsh("checkpoint-dumpxml", "vm1", "c1", "--no-domain")) == [
                        "<domaincheckpoint>", "  <name>c1</name>",
                        "  <description>the first</description>",
                        "  <creationTime>TIME</creationTime>", "  <disks>",
                        "    <disk name='vda' checkpoint='bitmap' bitmap='c1'/>",
                        "    <disk name='vdb' checkpoint='bitmap' bitmap='c1'/>", "  </disks>",
                        "</domaincheckpoint>",
                    ])
            #expect(
                VirshText.normal(
                    try fixture.virsh("checkpoint-dumpxml", "vm1", "c2", "--no-domain")) == [
                        "<domaincheckpoint>", "  <name>c2</name>", "  <parent>",
                        "    <name>c1</name>", "  </parent>",
                        "  <creationTime>TIME</creationTime>", "  <disks>",
                        "    <disk name='vda' checkpoint='bitmap' bitmap='c2'/>",
                        "    <disk name='vdb' checkpoint='no'/>", "  </disks>",
                        "</domaincheckpoint>",
                    ])
            let whole = try fixture.virsh("checkpoint-dumpxml", "vm1", "c1")
                .joined(separator: "\n")
            #expect(whole.contains("<domain type="))
            for schemas in try LibvirtSchemas.all() {
                try schemas.expectValid("domaincheckpoint.rng", whole)
            }
            try fixture.server.stop()
        }

        @Test("P3: --size is what was written since", arguments: LibvirtClient.allCases)
        func size(client: LibvirtClient) throws {
            let fixture = try chain(client)
            func sizes(_ name: String) throws -> [String] {
                try fixture.virsh("checkpoint-dumpxml", "vm1", name, "--no-domain", "--size")
                    .filter { $0.contains("<disk ") }.map {
                        $0.trimmingCharacters(in: .whitespaces)
                    }
            }
            #expect(
                try sizes("c1") == [
                    "<disk name='vda' checkpoint='bitmap' bitmap='c1' size='0'/>",
                    "<disk name='vdb' checkpoint='bitmap' bitmap='c1' size='0'/>",
                ])
            try NBDClient(fixture.server.liveURI("vm1", "vda")).write(
                [UInt8](repeating: 7, count: 65_536), at: 65_536 * 3)
            try NBDClient(fixture.server.liveURI("vm1", "vdb")).write([8], at: 5 << 20)
            // The last block of vdb has 512 bytes.
            #expect(
                try sizes("c1") == [
                    "<disk name='vda' checkpoint='bitmap' bitmap='c1' size='65536'/>",
                    "<disk name='vdb' checkpoint='bitmap' bitmap='c1' size='512'/>",
                ])
            #expect(
                try sizes("c2") == [
                    "<disk name='vda' checkpoint='bitmap' bitmap='c2' size='65536'/>",
                    "<disk name='vdb' checkpoint='no'/>",
                ])
            try fixture.server.stop()
        }

        @Test(
            "checkpoints are deleted alone, with their children, or the children alone",
            arguments: LibvirtClient.allCases)
        func deletes(client: LibvirtClient) throws {
            let fixture = try chain(client)
            for name in ["c4", "c5", "c6"] {
                try fixture.virsh("checkpoint-create-as", "vm1", name)
            }
            func names() throws -> [String] {
                try fixture.virsh("checkpoint-list", "vm1", "--name")
            }
            #expect(
                try fixture.virsh("checkpoint-delete", "vm1", "c5", "--children-only")
                    == ["Domain checkpoint c5 children deleted"])
            #expect(try names() == ["c1", "c2", "c3", "c4", "c5"])
            #expect(
                try fixture.virsh("checkpoint-delete", "vm1", "c2")
                    == ["Domain checkpoint c2 deleted"])
            #expect(try fixture.virsh("checkpoint-parent", "vm1", "c3") == ["c1"])
            #expect(
                try fixture.virsh("checkpoint-delete", "vm1", "c5", "--metadata")
                    == ["Domain checkpoint c5 deleted"])
            #expect(
                try fixture.virsh("checkpoint-delete", "vm1", "c3", "--children")
                    == ["Domain checkpoint c3 deleted"])
            #expect(try names() == ["c1"])
            #expect(
                try fixture.virsh("checkpoint-delete", "vm1", "c1")
                    == ["Domain checkpoint c1 deleted"])
            #expect(try names() == [])
            let unknown = [
                "error: Domain checkpoint not found: no domain checkpoint with matching"
                    + " name 'c1'"
            ]
            #expect(try fixture.refusal("checkpoint-delete", "vm1", "c1") == unknown)
            try fixture.server.stop()
        }

        @Test(
            "a checkpoint without a name is named after the second it was made in",
            arguments: LibvirtClient.allCases)
        func unnamed(client: LibvirtClient) throws {
            let fixture = try LibvirtFixture(client)
            let before = Int(Date().timeIntervalSince1970)
            let made = try fixture.virsh("checkpoint-create", "vm1")
            let after = Int(Date().timeIntervalSince1970)
            let name = VirshText.words(made.line(0)).line(2)
            #expect(made == ["Domain checkpoint \(name) created"])
            #expect((before...after).contains(Int(name) ?? 0), "\(name)")
            try fixture.server.stop()
        }

        @Test(
            "P3: a checkpoint is forgotten and defined again from its own XML",
            arguments: LibvirtClient.allCases)
        func redefine(client: LibvirtClient) throws {
            let fixture = try chain(client)
            let xml = try fixture.virsh("checkpoint-dumpxml", "vm1", "c3", "--no-domain")
            let file = try fixture.file(xml.joined(separator: "\n"))
            try NBDClient(fixture.server.liveURI("vm1", "vda")).write([1], at: 0)
            // One that is there is replaced by itself: nothing is lost.
            #expect(
                try fixture.virsh("checkpoint-create", "vm1", file, "--redefine")
                    == ["Domain checkpoint c3 created from '\(file)'"])
            let again = try fixture.virsh(
                "checkpoint-dumpxml", "vm1", "c3", "--no-domain", "--size")
            #expect(again.contains { $0.contains("name='vda'") && $0.contains("size='65536'") })
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == ["c1", "c2", "c3"])
            #expect(
                try fixture.virsh(
                    "checkpoint-create", "vm1", file, "--redefine", "--redefine-validate")
                    == ["Domain checkpoint c3 created from '\(file)'"])
            try fixture.server.stop()
        }

        @Test(
            "what cannot be done is refused in libvirt's words", arguments: LibvirtClient.allCases)
        func refusals(client: LibvirtClient) throws {
            let fixture = try chain(client)
            #expect(
                try fixture.refusal("checkpoint-info", "vm1", "nope") == [
                    "error: Domain checkpoint not found: no domain checkpoint with matching name"
                        + " 'nope'"
                ])
            #expect(
                try fixture.refusal("checkpoint-create-as", "vm1", "c1")
                    == ["error: operation failed: domain moment c1 already exists"])
            #expect(
                try fixture.refusal("checkpoint-create-as", "vm1", "x", "--diskspec", "vdz")
                    == ["error: unsupported configuration: no disk named 'vdz'"])
            #expect(
                try fixture.refusal(
                    "checkpoint-create-as", "vm1", "x", "--diskspec", "vda", "--diskspec", "vda")
                    == ["error: unsupported configuration: disk 'vda' specified twice"])
            let file = try fixture.file("<domaincheckpoint>")
            let broken = try fixture.refusal("checkpoint-create", "vm1", file)
            #expect(broken.line(0).hasPrefix("error: (domain_checkpoint):"), "\(broken)")
            #expect(try fixture.virsh("checkpoint-list", "vm1", "--name") == ["c1", "c2", "c3"])
            try fixture.server.stop()
        }
    }
}
