import Disk
import Foundation
import PointInTime
import ScratchFiles
import Synchronization
import SystemLayer
import Testing

@testable import NBDServer
@testable import ServerInterface

/// What an earlier process has left of a job with one disk, and a server that is to go on with it.
private final class LeftFixture: Sendable {
    static let id = "left"
    let directory: String
    let memory: String
    let server: NBDServer
    let resumption: JobResumption

    func path(_ name: String) -> String { directory + "/" + name }

    init(
        endpoint: ListenEndpoint? = nil, hangs: Bool = false, doubt: SourceDoubt? = nil
    ) async throws {
        let name = "np-\(UInt32.random(in: 0...UInt32.max))"
        directory = FileManager.default.temporaryDirectory.path + "/" + name
        memory = "/dev/shm/" + name
        for made in [directory, memory] {
            try FileManager.default.createDirectory(
                atPath: made, withIntermediateDirectories: false,
                attributes: [.posixPermissions: 0o700])
        }
        for name in hangs ? ["disk"] : ["disk", "scratch"] { try Self.make(directory, name) }
        var configuration = ServerConfiguration(rings: 1)
        configuration.scratchReserve = .bytes(0)
        server = try NBDServer(configuration: configuration)
        let socket = ListenEndpoint.unix(path: directory + "/left.sock", mode: 0o600)
        resumption = JobResumption(
            configuration: JobConfiguration(
                id: Self.id,
                disks: [
                    JobDiskConfiguration(
                        disk: DiskID(number: 0), target: "vda", exportName: "vda",
                        scratch: ScratchConfiguration(
                            kind: .file, path: directory + "/scratch", reuseExternal: true))
                ], endpoint: endpoint ?? socket),
            liveExports: ["vm1/vda"], holdNanoseconds: 1, memory: memory)
        try leave(doubt)
        await server.expectJobs([resumption])
    }

    static func make(_ directory: String, _ name: String) throws {
        let file = try FileCalls.open(directory + "/" + name, [.write, .createNew])
        try FileCalls.setSize(file.raw, bytes: ServerFixture.diskBytes)
    }

    private func node(_ name: String) throws -> String {
        let file = try FileCalls.open(path(name), [])
        return FileCalls.node(file.raw)?.text ?? ""
    }

    private func leave(_ doubt: SourceDoubt?) throws {
        let hasScratch = FileManager.default.fileExists(atPath: path("scratch"))
        let facts = LedgerFacts(
            bootID: StateFiles.bootID(), jobID: Self.id, target: "vda",
            sizeBytes: ServerFixture.diskBytes, source: try node("disk"),
            scratch: hasScratch ? try node("scratch") : "0:0")
        let file = try #require(ledger.ledgerFile(facts))
        file.keep(
            LedgerFile.Figures(
                wallTime: MonotonicClock.wallTime() + 60_000_000_000, bytesRead: 0,
                isAboveWatermark: false, doubt: doubt))
    }

    var ledger: JobMemory { JobMemory(directory: memory, jobID: Self.id, disk: 0) }
    var hasLedger: Bool { FileManager.default.fileExists(atPath: memory + "/left.0.ledger") }

    func attach(
        _ name: String = "vm1/vda", _ file: String = "disk"
    ) async throws(ServerFault) -> DiskID {
        try await server.attachDisk(
            DiskConfiguration(
                exportName: name, path: path(file), kind: .file, readOnly: false,
                cacheMode: .buffered, discardMode: .unmap))
    }

    func job(
        _ disk: DiskID, scratch: String, endpoint: ListenEndpoint? = nil
    ) -> JobConfiguration {
        JobConfiguration(
            id: "next",
            disks: [
                JobDiskConfiguration(
                    disk: disk, target: "vdb", exportName: "vdb",
                    scratch: ScratchConfiguration(
                        kind: .file, path: path(scratch), reuseExternal: true))
            ], endpoint: endpoint ?? .unix(path: path("next.sock"), mode: 0o600))
    }

    func close() async {
        await server.shutdown()
        for made in [directory, memory] { try? FileManager.default.removeItem(atPath: made) }
    }
}

/// Jobs of an earlier process while they wait for their disks.
@Suite struct LeftJobTests {
    @Test("P1: a job goes on when its disk is there")
    func goesOn() async throws {
        let fixture = try await LeftFixture()
        _ = try await fixture.attach()
        _ = try await fixture.server.resumeJob(id: LeftFixture.id)
        _ = try await fixture.server.endJob(id: LeftFixture.id)
        #expect(!fixture.hasLedger)
        await fixture.close()
    }

    @Test(
        "P1: a job on whose disk its server had a doubt does not go on, and says which",
        arguments: [
            (SourceDoubt.hungSync, "had not ended when its server did"),
            (SourceDoubt.lostWrites, "were lost while its server let go"),
        ])
    func doubted(doubt: SourceDoubt, words: String) async throws {
        let fixture = try await LeftFixture(doubt: doubt)
        _ = try await fixture.attach()
        do throws(ServerFault) {
            _ = try await fixture.server.resumeJob(id: LeftFixture.id)
            Issue.record("it goes on")
        } catch {
            #expect("\(error)".contains(words), "\(error)")
        }
        await fixture.close()
    }

    @Test("P2: a disk that comes in the moment when its job is given up keeps no ledger")
    func late() async throws {
        let fixture = try await LeftFixture()
        let server = fixture.server
        try LeftFixture.make(fixture.directory, "other")
        let disk = try await fixture.attach("vm1/other", "other")
        // Its ledger is attached already when the job goes.
        let live = try #require(server.state.withLock { $0.disks[disk] })
        let source = try RawSource(
            path: fixture.path("disk"), expected: .regular, readOnly: false, direct: false)
        let prepared = try #require(await server.openExpected("vm1/vda", source).first)
        let found = try prepared.found.get()
        let export = try server.attach(found, prepared, to: live).get()
        await server.forgetJob(id: LeftFixture.id)
        server.enter(export, prepared)
        #expect(!fixture.hasLedger)
        try await server.detachDisk(disk)
        await fixture.close()
    }

    @Test("P2: scratch that hangs costs its job, and keeps the machine's disk in use for nobody")
    func hungScratch() async throws {
        let fixture = try await LeftFixture(hangs: true)
        let hung = try LeasedFile(fixture.path("scratch"))
        let disk = try await fixture.attach()
        try await fixture.server.detachDisk(disk)
        _ = try await fixture.attach()
        do throws(ServerFault) {
            _ = try await fixture.server.resumeJob(id: LeftFixture.id)
            Issue.record("it goes on")
        } catch {
            #expect("\(error)".contains("does not answer"), "\(error)")
        }
        hung.giveBack()
        await fixture.close()
    }

    @Test("P5: nobody else gets the scratch or a disk of a job that waits, by whatever name")
    func nodes() async throws {
        let fixture = try await LeftFixture()
        for name in ["scratch", "disk"] {
            try FileManager.default.linkItem(
                atPath: fixture.path(name), toPath: fixture.path(name + "-too"))
        }
        try LeftFixture.make(fixture.directory, "other")
        let other = try await fixture.attach("vm2/vda", "other")
        for (scratch, reason) in [
            ("scratch-too", "keeps old content for backup job left"),
            ("disk-too", "is a disk of backup job left"),
        ] {
            do throws(ServerFault) {
                _ = try await fixture.server.beginJob(fixture.job(other, scratch: scratch))
                Issue.record("\(scratch) is scratch of another job")
            } catch {
                #expect("\(error)".contains(reason), "\(error)")
            }
        }
        do throws(ServerFault) {
            _ = try await fixture.attach("vm3/vda", "scratch-too")
            Issue.record("scratch is served")
        } catch {
            #expect("\(error)".contains("keeps old content for backup job left"), "\(error)")
        }
        _ = try await fixture.attach()
        _ = try await fixture.server.resumeJob(id: LeftFixture.id)
        await fixture.close()
    }

    @Test("P1: a job whose disk is served under another name meanwhile does not go on")
    func renamed() async throws {
        let fixture = try await LeftFixture()
        try FileManager.default.linkItem(
            atPath: fixture.path("disk"), toPath: fixture.path("disk-too"))
        let disk = try await fixture.attach("vm1/sda", "disk-too")
        try await fixture.server.detachDisk(disk)
        _ = try await fixture.attach()
        do throws(ServerFault) {
            _ = try await fixture.server.resumeJob(id: LeftFixture.id)
            Issue.record("it goes on")
        } catch {
            #expect("\(error)".contains("vm1/sda"), "\(error)")
        }
        // The next server must not go on either.
        #expect(!fixture.hasLedger)
        await fixture.close()
    }

    @Test("P1: a job whose ledger cannot be attached goes on with no later server either")
    func refusedAttach() async throws {
        let fixture = try await LeftFixture()
        let server = fixture.server
        try LeftFixture.make(fixture.directory, "other")
        let other = try await fixture.attach("vm1/other", "other")
        let live = try #require(server.state.withLock { $0.disks[other] })
        // The name is another's in the job's scope.
        let scope = try #require(server.state.withLock { $0.expected[LeftFixture.id]?.scope })
        let taken = LiveExport(
            DiskConfiguration(
                exportName: "vda", path: fixture.path("other"), kind: .file, readOnly: true,
                cacheMode: .buffered, discardMode: .ignore),
            disk: DiskID(number: 99), source: live.source, homeRing: 0)
        #expect(scope.add(.live(taken)))
        let disk = try await fixture.attach()
        // The machine has its disk, and what it writes is preserved by nobody.
        #expect(server.live.target(named: "vm1/vda") != nil)
        #expect(!fixture.hasLedger)
        do throws(ServerFault) {
            _ = try await server.resumeJob(id: LeftFixture.id)
            Issue.record("it goes on")
        } catch {
            #expect("\(error)".contains("two exports of one name"), "\(error)")
        }
        try await server.detachDisk(disk)
        await fixture.close()
    }

    @Test("P1: the port of a job that waits for its disks is nobody else's")
    func port() async throws {
        // One that is free now, found as a job finds it.
        let probe = try await LeftFixture()
        let disk = try await probe.attach()
        try LeftFixture.make(probe.directory, "free")
        let started = try await probe.server.beginJob(
            probe.job(disk, scratch: "free", endpoint: .tcp(host: "127.0.0.1", port: nil)))
        await probe.close()
        let fixture = try await LeftFixture(endpoint: started.endpoint)
        for name in ["other", "free"] { try LeftFixture.make(fixture.directory, name) }
        let other = try await fixture.attach("vm2/vda", "other")
        let begun = try await fixture.server.beginJob(
            fixture.job(other, scratch: "free", endpoint: .tcp(host: "127.0.0.1", port: nil)))
        #expect(begun.endpoint != started.endpoint)
        _ = try await fixture.server.endJob(id: "next")
        do throws(ServerFault) {
            _ = try await fixture.server.beginJob(
                fixture.job(other, scratch: "free", endpoint: started.endpoint))
            Issue.record("another job has its port")
        } catch {
            #expect("\(error)".contains("in use"), "\(error)")
        }
        await fixture.close()
    }
}
