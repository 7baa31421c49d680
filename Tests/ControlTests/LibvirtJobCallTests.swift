import Foundation
import LibvirtProtocol
import ServerInterface
import Testing

@testable import Control

@Suite("The libvirt door's calls on jobs")
struct LibvirtJobCallTests {
    private func backup(_ socket: String, _ inner: String = "") -> String {
        """
        <domainbackup mode='pull'><server transport='unix' socket='\(socket)'/>\(inner)\
        </domainbackup>
        """
    }

    private func started() async throws -> (ControlFixture, JobManager) {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        return (fixture, manager)
    }

    @Test("a job is begun, described, measured and aborted as libvirt's clients do it")
    func life() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        #expect(try await client.figures().0 == 0)
        try await client.begin(backup("\(fixture.root)/a"), flags: 2)
        #expect(try await client.socket() == "\(fixture.root)/a")
        let (type, figures) = try await client.figures()
        #expect(type == 2)
        #expect(
            figures.keys.sorted() == [
                "disk_processed", "disk_remaining", "disk_temp_total", "disk_temp_used",
                "disk_total", "operation", "time_elapsed",
            ])
        #expect(figures["operation"] == .int(9))
        #expect(figures["disk_total"] == .uhyper(32_768))
        #expect(figures["disk_processed"] == .uhyper(8192))
        #expect(figures["disk_remaining"] == .uhyper(24_576))
        try await client.abort()
        #expect(try await client.figures().0 == 0)
        let (ended, last) = try await client.figures(1)
        #expect(ended == 3)
        #expect(last["success"] == .bool(true))
        #expect(last["errmsg"] == .string("Operation canceled"))
        #expect(try await client.figures(1).0 == 0)
    }

    @Test("the older call for figures has the same numbers in its own places")
    func info() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        let domain = try await client.domain()
        try await client.begin(backup("\(fixture.root)/a"))
        var reply = try await client.call(.domainGetJobInfo) { $0.domain(domain) }
        #expect(try reply.int() == 2)
        var figures: [UInt64] = []
        for _ in 0..<11 { figures.append(try reply.uhyper()) }
        #expect(figures[1...] == [0, 32_768, 8192, 24_576, 0, 0, 0, 32_768, 8192, 24_576])
    }

    @Test("two clients that work at once each end their own job, a third one the newest")
    func several() async throws {
        let (fixture, manager) = try await started()
        let clients = ["a", "b"].map { ($0, LibvirtClient(manager)) }
        for (name, client) in clients { try await client.begin(backup("\(fixture.root)/\(name)")) }
        for (name, client) in clients {
            #expect(try await client.socket() == "\(fixture.root)/\(name)")
        }
        let other = LibvirtClient(manager)
        #expect(try await other.socket() == "\(fixture.root)/b")
        try await clients[0].1.abort()
        #expect(try await clients[0].1.socket() == "\(fixture.root)/b")
        #expect(try await manager.listJobs(domain: "vm1").count == 1)
        try await other.abort()
        #expect(try await manager.listJobs(domain: "vm1").isEmpty)
        let error = try await client(clients[1].1, error: .domainAbortJob)
        #expect(error.code == 55)
        #expect(error.domain == 10)
        #expect(error.detail == "no job is active on the domain")
    }

    private func client(_ client: LibvirtClient, error: Procedure) async throws -> WireError {
        let domain = try await client.domain()
        return try await client.error(error) { $0.domain(domain) }
    }

    @Test("a read-only client takes the figures of an ended job from nobody")
    func readOnly() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        try await client.begin(backup("\(fixture.root)/a"))
        try await client.abort()
        let looker = LibvirtClient(manager, isReadOnly: true)
        for _ in 0..<2 { #expect(try await looker.figures(1).0 == 3) }
        #expect(try await client.figures(3).0 == 3)
        #expect(try await client.figures(1).0 == 3)
        #expect(try await looker.figures(1).0 == 0)
    }

    @Test("of jobs that have ended a client is shown its own, once, and not another tool's")
    func completedOwn() async throws {
        let (fixture, manager) = try await started()
        let context = LibvirtContext(manager: manager)
        let one = LibvirtClient(context, process: 11)
        let two = LibvirtClient(context, process: 12)
        try await one.begin(backup("\(fixture.root)/a"))
        try await two.begin(backup("\(fixture.root)/b"))
        try await one.abort()
        // The newest of the domain is the second tool's.
        try await manager.end(domain: "vm1", job: nil, cause: .success)
        let own = try await one.figures(3)
        #expect(own.1["errmsg"] == .string("Operation canceled"))
        #expect(try await one.figures(1).1["errmsg"] == .string("Operation canceled"))
        #expect(try await one.figures(1).0 == 0)
        // A connection that its process has opened since means the same.
        let again = try await LibvirtClient(context, process: 12).figures(1)
        #expect(again.0 == 3 && again.1["errmsg"] == nil)
        #expect(try await two.figures(1).0 == 0)
        #expect(try await LibvirtClient(context, process: 13).figures(1).0 == 0)
    }

    @Test("a client without a job of its own is shown its user's, else the domain's newest")
    func completedOfUser() async throws {
        let (fixture, manager) = try await started()
        let context = LibvirtContext(manager: manager)
        try await LibvirtClient(context, process: 11).begin(backup("\(fixture.root)/a"))
        try await manager.end(domain: "vm1", job: nil, cause: .abort)
        try await LibvirtClient(context, user: 1000, process: 12)
            .begin(backup("\(fixture.root)/b"))
        try await manager.end(domain: "vm1", job: nil, cause: .success)
        let other = LibvirtClient(context, process: 13)
        #expect(try await other.figures(1).1["errmsg"] == .string("Operation canceled"))
        let newest = try await other.figures(1)
        #expect(newest.0 == 3 && newest.1["errmsg"] == nil)
        #expect(try await other.figures(1).0 == 0)
    }

    @Test("a tool that cleans up after a backup of its own that did not begin ends nobody's else")
    func cleaningUp() async throws {
        let (fixture, manager) = try await started()
        let context = LibvirtContext(manager: manager)
        let one = LibvirtClient(context)
        let two = LibvirtClient(context)
        try await one.begin(backup("\(fixture.root)/a"))
        await #expect(throws: WireError.self) { try await two.begin("<domainbackup") }
        let refusal = try await client(two, error: .domainAbortJob)
        #expect(refusal.code == 55 && refusal.detail == "no job is active on the domain")
        let domain = try await two.domain()
        let block = try await two.error(.domainBlockJobAbort) {
            $0.domain(domain)
            $0.string("vda")
            $0.uint(0)
        }
        #expect(block.code == 8)
        #expect(try await manager.listJobs(domain: "vm1").count == 1)
        // And so after one of its own that has ended.
        try await two.begin(backup("\(fixture.root)/b"))
        try await two.abort()
        #expect(try await client(two, error: .domainAbortJob).code == 55)
        #expect(try await one.socket() == "\(fixture.root)/a")
        // Who has asked for no backup may end any, as with libvirt.
        try await LibvirtClient(context).abort()
        #expect(try await manager.listJobs(domain: "vm1").isEmpty)
    }

    @Test("P6: figures of too many domains are refused with what to do, and fewer are answered")
    func manyStatistics() async throws {
        let (fixture, manager) = try await started()
        for number in 0..<40 { try await manager.define(xml: fixture.domainXML("d\(number)")) }
        let client = LibvirtClient(LibvirtContext(manager: manager, replyBytesMax: 16 << 10))
        func ask(_ domains: [WireDomain], _ kinds: UInt32) async throws -> UInt32 {
            var reply = try await client.call(.getAllDomainStats) {
                $0.domains(domains)
                $0.uint(kinds)
                $0.uint(0)
            }
            return try reply.uint()
        }
        let refusal = await #expect(throws: WireError.self) { try await ask([], 0) }
        #expect(refusal?.code == WireErrorCode.rpc)
        #expect(refusal?.message.contains("ask for fewer domains") == true)
        #expect(try await ask([], 1) == 41)
        let named = [try await client.domain("d3"), try await client.domain("d7")]
        #expect(try await ask(named, 0) == 2)
    }

    private func blockJob(_ client: LibvirtClient, _ disk: String) async throws -> [UInt64] {
        let domain = try await client.domain()
        var reply = try await client.call(.domainGetBlockJobInfo) {
            $0.domain(domain)
            $0.string(disk)
            $0.uint(1)
        }
        var found = [UInt64(try reply.uint()), UInt64(try reply.uint())]
        for _ in 0..<3 { found.append(try reply.uhyper()) }
        return found
    }

    @Test("each disk of a job has a block job; to end one ends the job, and leaves others alone")
    func blockJobs() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        #expect(try await blockJob(client, "vda") == [0, 0, 0, 0, 0])
        let part = "<disks><disk name='vda'><scratch file='\(fixture.root)/s'/></disk></disks>"
        try await client.begin(backup("\(fixture.root)/a", part))
        for name in ["vda", "\(fixture.root)/vm1-a.raw"] {
            #expect(try await blockJob(client, name) == [1, 5, 0, 4096, 16_384])
        }
        #expect(try await blockJob(client, "vdb") == [0, 0, 0, 0, 0])
        let domain = try await client.domain()
        func abort(_ disk: String, _ flags: UInt32) async throws {
            try await client.call(.domainBlockJobAbort) {
                $0.domain(domain)
                $0.string(disk)
                $0.uint(flags)
            }
        }
        let cases: [(String, UInt32, Int32, String)] = [
            ("vdb", 0, 8, "disk vdb does not have an active block job"),
            ("vdz", 0, 8, "disk 'vdz' not found in domain"),
            ("vda", 2, 83, "block job 'backup-vda' not ready for pivot yet"),
            ("vda", 4, 8, "flags"),
        ]
        for (disk, flags, code, detail) in cases {
            let error = await #expect(throws: WireError.self) { try await abort(disk, flags) }
            #expect(error?.code == code)
            #expect(error?.detail == detail)
        }
        try await abort("vda", 1)
        #expect(try await client.figures(1).1["errmsg"] == .string("Operation canceled"))
    }

    @Test("a job that broke says so before it is ended, and has failed after")
    func broken() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        try await client.begin(backup("\(fixture.root)/a"))
        let id = try #require(try await manager.listJobs(domain: "vm1").first?.id)
        fixture.engine.breakJob(id, "scratch of disk 'vda' is full")
        let (type, figures) = try await client.figures()
        #expect(type == 4)
        #expect(figures["errmsg"] == .string("scratch of disk 'vda' is full"))
        try await client.abort()
        let (ended, last) = try await client.figures(1)
        #expect(ended == 4)
        #expect(last["success"] == .bool(false))
    }

    @Test("what cannot be begun is refused with libvirt's numbers, and leaves no job")
    func refused() async throws {
        let (fixture, manager) = try await started()
        let client = LibvirtClient(manager)
        let disk = "<disks><disk name='vdz'/></disks>"
        let cases: [(String, String?, UInt32, Int32, Int32)] = [
            ("<domainbackup/>", nil, 0, 67, 10),
            (backup("/s", disk), nil, 0, 67, 20),
            (backup("/s", "<incremental>nope</incremental>"), nil, 0, 103, 10),
            (backup("/s"), nil, 4, 8, 10),
            ("<domainbackup", nil, 0, 35, 20),
            (backup("/s"), "<domaincheckpoint", 0, 35, 69),
            (backup("/s", "<x/>"), nil, 0, 92, 5),
        ]
        for (xml, checkpoint, flags, code, domain) in cases {
            let error = await #expect(throws: WireError.self) {
                try await client.begin(xml, checkpoint: checkpoint, flags: flags)
            }
            #expect(error?.code == code, "\(xml)")
            #expect(error?.domain == domain, "\(xml)")
        }
        #expect(fixture.engine.jobCount == 0)
    }
}
