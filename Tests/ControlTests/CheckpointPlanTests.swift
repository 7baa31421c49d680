import Control
import Foundation
import Testing

@Suite struct CheckpointPlanTests {
    private static func create(
        _ inner: String, tree: CheckpointTree = CheckpointTree(),
        domain: DomainDefinition = makeDomain()
    ) throws(ControlError) -> CheckpointMetadata {
        try CheckpointPlan.create(
            try CheckpointRequest.parse("<domaincheckpoint>\(inner)</domaincheckpoint>"),
            domain: domain, tree: tree, now: 1_525_889_631)
    }

    private static func redefine(
        _ inner: String, tree: CheckpointTree = CheckpointTree()
    ) throws(ControlError) -> CheckpointMetadata {
        try CheckpointPlan.redefine(
            try CheckpointRequest.parse("<domaincheckpoint>\(inner)</domaincheckpoint>"),
            domain: makeDomain(), tree: tree)
    }

    private static func tree(_ names: String...) throws -> CheckpointTree {
        var tree = CheckpointTree()
        for name in names { try tree.redefine(CheckpointMetadata(name: name)) }
        return tree
    }

    @Test func everythingIsDefaulted() throws {
        let planned = try Self.create("")
        #expect(planned.name == "1525889631")
        #expect(planned.disks.map(\.target) == ["vda", "vdb", "vdc", "hda", "vdd"])
        #expect(
            planned.disks.map(\.bitmap)
                == ["1525889631", "1525889631", "1525889631", nil, nil])
        let next = try Self.create("", tree: try Self.tree("1525889631"))
        #expect(next.name == "1525889632")
        #expect(next.parent == "1525889631")
    }

    @Test func disksAreNamedByTargetOrByPathAndTheOthersAreLeftOut() throws {
        let planned = try Self.create(
            "<name>c2</name><parent><name>ignored</name></parent><creationTime>1</creationTime>"
                + "<disks><disk name='/dev/vg/vdc'/><disk name='vda' bitmap='c2'/>"
                + "<disk name='hda' checkpoint='no'/></disks>", tree: try Self.tree("c1"))
        #expect(planned.disks.map(\.bitmap) == ["c2", nil, "c2", nil, nil])
        #expect(planned.parent == "c1")
        #expect(planned.creationTime == 1_525_889_631)
    }

    @Test func theDumpHasLibvirtsOrder() throws {
        let domain = DomainDefinition(
            name: "vm1",
            disks: [.init(target: "vda", path: "/a"), .init(target: "hda", path: nil)])
        var planned = try Self.create(
            "<name>c2</name><description>a &amp; b</description>", tree: try Self.tree("c1"),
            domain: domain)
        planned.domainXML = "<?xml version='1.0'?>\n<domain>\n  <name>vm1</name>\n</domain>\n"
        #expect(
            planned.xml(sizes: ["vda": 1_048_576], withDomain: true) == """
                <domaincheckpoint>
                  <name>c2</name>
                  <description>a &amp; b</description>
                  <parent>
                    <name>c1</name>
                  </parent>
                  <creationTime>1525889631</creationTime>
                  <disks>
                    <disk name='vda' checkpoint='bitmap' bitmap='c2' size='1048576'/>
                    <disk name='hda' checkpoint='no'/>
                  </disks>
                  <domain>
                  <name>vm1</name>
                </domain>
                </domaincheckpoint>

                """)
        let again = try CheckpointRequest.parse(planned.xml(withDomain: true))
        #expect(again.parent == "c1")
        #expect(!planned.xml(withDomain: false).contains("<domain>"))
    }

    @Test(arguments: [
        ("<disks><disk name='vdz'/></disks>", 67, "unsupported configuration: no disk named 'vdz'"),
        (
            "<disks><disk name='vda'/><disk name='/img/vda.raw'/></disks>", 67,
            "unsupported configuration: disk 'vda' specified twice"
        ),
        (
            "<disks><disk name='hda'/></disks>", 67,
            "unsupported configuration: disk 'hda' is empty or readonly"
        ),
        (
            "<disks><disk name='/img/vdd.raw'/></disks>", 67,
            "unsupported configuration: disk 'vdd' is empty or readonly"
        ),
        (
            "<name>c5</name><disks><disk name='vda' bitmap='b'/></disks>", 67,
            "unsupported configuration: bitmap for disk 'vda' must match checkpoint name 'c5'"
        ),
        (
            "<disks><disk name='vda' bitmap='b'/></disks>", 67,
            "unsupported configuration: bitmap for disk 'vda' must match checkpoint name "
                + "'1525889631'"
        ),
        (
            "<disks>" + (0..<6).map { "<disk name='vd\($0)'/>" }.joined() + "</disks>", 67,
            "unsupported configuration: too many disk checkpoint requests for domain"
        ),
        ("<name>c1</name>", 9, "operation failed: domain moment c1 already exists"),
    ])
    func refused(inner: String, number: Int, message: String) throws {
        let tree = try Self.tree("c1")
        let error = refusal { () throws(ControlError) in try Self.create(inner, tree: tree) }
        #expect(error?.libvirtCode == number)
        #expect(error?.message == message)
    }

    @Test func namesThatCannotNameFilesAndDomainsWithoutDisksAreRefused() {
        let long = String(repeating: "n", count: CheckpointMetadata.nameBytesMax + 1)
        let error = refusal { () throws(ControlError) in
            try Self.create("<name>\(long)</name>")
        }
        #expect(error?.code == "checkpoint-name-too-long")
        let empty = DomainDefinition(name: "e", disks: [])
        let other = refusal { () throws(ControlError) in try Self.create("", domain: empty) }
        #expect(
            other?.message == "unsupported configuration: domain must have at least one disk to "
                + "perform checkpoints")
    }

    @Test(arguments: [
        (
            "<creationTime>1</creationTime>", 27,
            "XML error: a redefined checkpoint must have a name"
        ),
        (
            "<name>r1</name>", 1, "internal error: missing creationTime from existing checkpoint"
        ),
        (
            "<name>r2</name><creationTime>1</creationTime><parent><name>r2</name></parent>", 8,
            "invalid argument: cannot set moment r2 as its own parent"
        ),
        (
            "<name>r3</name><creationTime>1</creationTime><parent><name>nope</name></parent>", 8,
            "invalid argument: parent nope for moment r3 not found"
        ),
        (
            "<name>r4</name><creationTime>1</creationTime><domain><uuid>"
                + "11111111-1111-4111-8111-111111111111</uuid></domain>", 8,
            "invalid argument: definition for checkpoint r4 must use uuid "
                + makeDomain().uuid
        ),
    ])
    func redefinitionsRefused(inner: String, number: Int, message: String) {
        let error = refusal { () throws(ControlError) in try Self.redefine(inner) }
        #expect(error?.libvirtCode == number)
        #expect(error?.message == message)
    }

    @Test func aRedefinitionIsTakenAsItIs() throws {
        let made = try Self.redefine(
            "<name>r</name><creationTime>5</creationTime><parent><name>p</name></parent><disks>"
                + "<disk name='vdz'/><disk name='/img/vdb.raw' bitmap='old'/></disks>"
                + "<domain><name>x</name><uuid>\(makeDomain().uuid.uppercased())</uuid></domain>",
            tree: try Self.tree("p"))
        #expect(made.creationTime == 5)
        #expect(made.parent == "p")
        #expect(made.disks.map(\.target) == ["vda", "vdb", "vdc", "hda", "vdd", "vdz"])
        #expect(made.disks.map(\.bitmap) == [nil, "old", nil, nil, nil, "r"])
        #expect(made.domainXML?.hasPrefix("<domain><name>x</name>") == true)
    }

    @Test func diskspecsAreRead() throws {
        let xml = try CheckpointDiskSpec.document(
            name: "c1", description: nil,
            diskspecs: ["vda,checkpoint=bitmap,bitmap=c1", "/a,,b,checkpoint=no"])
        #expect(
            xml == """
                <domaincheckpoint>
                  <name>c1</name>
                  <disks>
                    <disk name='vda' checkpoint='bitmap' bitmap='c1'/>
                    <disk name='/a,b' checkpoint='no'/>
                  </disks>
                </domaincheckpoint>

                """)
        #expect(
            try CheckpointDiskSpec.document(name: nil, description: nil, diskspecs: [])
                == "<domaincheckpoint>\n</domaincheckpoint>\n")
        for bad in ["", ",bitmap=x", "vda,no", "vda,bitmap=a,bitmap=b"] {
            #expect(throws: ControlError.self) {
                try CheckpointDiskSpec.document(name: nil, description: nil, diskspecs: [bad])
            }
        }
    }

    @Test func uuidsDerivedFromNamesAreStable() {
        let uuid = UUIDText.derived(fromDomain: "default")
        #expect(uuid == DomainDefinition(name: "default", disks: []).uuid)
        #expect(UUIDText.normalized(uuid) == uuid)
        #expect(uuid.dropFirst(14).first == "8")
        #expect(uuid != UUIDText.derived(fromDomain: "default2"))
    }

    @Test(arguments: [UInt64(0), 1, 2048, 4097, 4 << 20, 1 << 33])
    func granularityHasLimits(bytes: UInt64) {
        let error = refusal { () throws(ControlError) in try TrackingGranularity.checked(bytes) }
        #expect(error?.libvirtCode == 8)
        #expect(error?.message.contains("between 4096 (4 KiB) and 2097152 (2 MiB)") == true)
    }
}
