import LibvirtProtocol
import Testing

@Suite("Upstream: who answers which procedure")
struct UpstreamRouteTests {
    @Test("every procedure that is served has a route, and no other has")
    func table() {
        let served = Set(ProcedureTable.all.map(\.procedure))
        #expect(Set(UpstreamRoute.table.keys) == served)
    }

    @Test("what is not served here is passed")
    func passed() {
        for number in Int32(1)...500 {
            let procedure = Procedure(rawValue: number)
            guard ProcedureTable.entry(procedure) == nil else { continue }
            #expect(UpstreamRoute.of(procedure) == .passed, "\(procedure.function)")
        }
    }

    @Test("what is ours on our domains names its domain first")
    func namesDomain() {
        for entry in ProcedureTable.all {
            guard UpstreamRoute.of(entry.procedure) == .oursOnOurDomains else { continue }
            #expect(
                entry.arguments.first == .domain || entry.arguments.first == .checkpoint,
                "\(entry.procedure.function)")
        }
    }

    @Test(
        "backups, checkpoints and their ends never reach libvirtd on our domains",
        arguments: ["BACKUP", "CHECKPOINT", "ABORT_JOB"])
    func ours(part: String) {
        for entry in ProcedureTable.all
        where entry.procedure.name?.contains(part) == true
            && entry.procedure != .domainBlockJobAbort
        {
            #expect(
                UpstreamRoute.of(entry.procedure) == .oursOnOurDomains,
                "\(entry.procedure.function)")
        }
    }

    @Test(
        "libvirtd is opened by the driver that the client names, or chooses its own",
        arguments: [
            ("nbdpull:///system", nil, ""), ("foo:///bar", nil, ""), ("", nil, ""),
            ("qemu:///system", nil, "qemu:///system"),
            ("qemu+unix:///system", nil, "qemu+unix:///system"),
            ("test:///default", nil, "test:///default"),
            ("QEMU:///session", nil, "QEMU:///session"),
            ("nbdpull:///system", "lxc:///", "lxc:///"),
            ("qemu:///system", "qemu:///session", "qemu:///session"), ("no colon", nil, ""),
        ] as [(String, String?, String)])
    func uri(client: String, configured: String?, expected: String) {
        #expect(UpstreamURI.name(client: client, configured: configured) == expected)
    }

    @Test("serials of the door never leave their range")
    func serials() {
        #expect(UpstreamSerial.next(UInt32.max) == UpstreamSerial.first)
        #expect(UpstreamSerial.next(UpstreamSerial.first) == UpstreamSerial.first + 1)
        #expect(!UpstreamSerial.isOurs(UpstreamSerial.first - 1))
        #expect(UpstreamSerial.isOurs(UInt32.max))
    }
}
