import Control
import Foundation
import ServerInterface
import Testing

@Suite struct StateTests {
    @Test func aSecondServerOnTheSameDirectoryIsRefused() throws {
        let fixture = try ControlFixture()
        let first = try StateDirectory(path: fixture.stateDirectory)
        let error = #expect(throws: ControlError.self) {
            try StateDirectory(path: fixture.stateDirectory)
        }
        #expect(error?.message.contains("'\(fixture.stateDirectory)'") == true)
        withExtendedLifetime(first) {}
    }

    @Test(arguments: ["vm1", "a.b/c", "..", "größe %2F"])
    func domainsComeBackWhateverTheirName(_ name: String) throws {
        let fixture = try ControlFixture()
        let state = try StateDirectory(path: fixture.stateDirectory)
        let domain = StoredDomain(name: name, xml: "<x/>")
        try state.save(domain)
        try state.save(domain)
        #expect(state.domains().records == [domain])
        try state.removeDomain(name)
        #expect(state.domains().records.isEmpty)
        #expect(state.domains().damaged.isEmpty)
    }

    @Test func everyDamageCostsOnlyItsFile() throws {
        let fixture = try ControlFixture()
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(StoredDomain(name: "good", xml: "<x/>"))
        try state.save(StoredDomain(name: "bad", xml: "<y/>"))
        let path = fixture.stateDirectory + "/domains/bad.state"
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        for length in 0..<whole.count {
            try whole.prefix(length).write(to: URL(fileURLWithPath: path))
            let contents = state.domains()
            #expect(contents.records.map(\.name) == ["good"])
            #expect(contents.damaged.map(\.path) == [path])
        }
        for index in whole.indices {
            var altered = whole
            altered[index] ^= 0x10
            try altered.write(to: URL(fileURLWithPath: path))
            #expect(state.domains().records.map(\.name) == ["good"])
        }
    }

    @Test func aCrashedServersJobIsReportedAndItsScratchRemoved() async throws {
        let fixture = try ControlFixture()
        fixture.engine.change {
            $0.onBegin = { configuration in
                for disk in configuration.disks {
                    _ = FileManager.default.createFile(
                        atPath: disk.scratch.path, contents: Data("old".utf8))
                }
            }
        }
        let foreign = fixture.root + "/vm1-a.raw.other"
        _ = FileManager.default.createFile(atPath: foreign, contents: nil)
        let id: String
        do {
            // Dropped without a shutdown, as a killed server is; only the lock goes.
            let crashed = try await fixture.manager(stored: true)
            try await crashed.define(xml: fixture.domainXML())
            id = try await crashed.begin(domain: "vm1", BeginRequest()).id
        }
        #expect(try await eventually { (try? StateDirectory(path: fixture.stateDirectory)) != nil })
        let scratch = try FileManager.default.contentsOfDirectory(atPath: fixture.root)
            .filter { $0.contains(".raw.") }
        #expect(scratch.count == 3)

        let restarted = try await fixture.manager(FakeEngine(), stored: true)
        #expect(await restarted.restore() == [])
        #expect(await restarted.listDomains().map(\.domain) == ["vm1"])
        let left = try FileManager.default.contentsOfDirectory(atPath: fixture.root)
            .filter { $0.contains(".raw.") }
        #expect(left == ["vm1-a.raw.other"])
        let info = try await restarted.completedJobInfo(domain: "vm1", job: nil, keep: false)
        #expect(info.id == id)
        #expect(info.jobType == "Failed")
        #expect(info.errorMessage == "the server stopped while the job ran")
        let records = try FileManager.default.contentsOfDirectory(
            atPath: fixture.stateDirectory + "/jobs")
        #expect(records.isEmpty)
    }

    @Test func aScratchFileThatIsNoLongerOursIsKept() async throws {
        let fixture = try ControlFixture()
        let path = fixture.root + "/scratch"
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        do {
            let state = try StateDirectory(path: fixture.stateDirectory)
            let identity = SystemCalls.FileIdentity(device: 1, inode: 1)
            try state.save(
                StoredJob(
                    id: "1", domain: "vm1", begun: Date(),
                    scratch: [StoredJob.Scratch(path: path, identity: identity)],
                    socketPath: path))
        }
        let manager = try await fixture.manager(stored: true)
        _ = await manager.restore()
        #expect(FileManager.default.fileExists(atPath: path))
    }

    @Test func aDiskThatCannotBeOpenedAtTheStartIsListedAndRetried() async throws {
        let fixture = try ControlFixture()
        var torn = ""
        do {
            let manager = try await fixture.manager(stored: true)
            try await manager.define(xml: fixture.domainXML("vm1"))
            torn = try await manager.define(xml: fixture.domainXML("vm2")).uuid
            await manager.shutdown()
        }
        try Data("torn".utf8).write(
            to: URL(fileURLWithPath: fixture.stateDirectory + "/domains/\(torn).state"))
        let engine = FakeEngine()
        let bad = fixture.root + "/vm1-b.raw"
        engine.change { $0.unusablePaths = [bad] }
        #expect(try await eventually { (try? StateDirectory(path: fixture.stateDirectory)) != nil })
        let manager = try await fixture.manager(engine, stored: true)
        let warnings = await manager.restore()
        #expect(warnings.count == 2, "\(warnings)")
        #expect(warnings.contains { $0.contains("domains/\(torn).state") })
        #expect(warnings.contains { $0.contains("disk 'vdb' of domain 'vm1'") })
        let disks = try await manager.disks(of: "vm1")
        #expect(disks[0].errorMessage == nil)
        #expect(disks[1].errorMessage?.contains(bad) == true)
        await expectError("disk-unavailable") {
            _ = try await manager.begin(domain: "vm1", BeginRequest())
        }
        engine.change { $0.unusablePaths = [] }
        #expect(try await manager.begin(domain: "vm1", BeginRequest()).exports.count == 2)
        #expect(try await manager.disks(of: "vm1")[1].errorMessage == nil)
    }

    @Test func aStoppedServersJobIsReportedAsCancelled() async throws {
        let fixture = try ControlFixture()
        do {
            let manager = try await fixture.manager(stored: true)
            try await manager.define(xml: fixture.domainXML())
            _ = try await manager.begin(domain: "vm1", BeginRequest())
            await manager.shutdown()
        }
        #expect(try await eventually { (try? StateDirectory(path: fixture.stateDirectory)) != nil })
        let manager = try await fixture.manager(FakeEngine(), stored: true)
        _ = await manager.restore()
        let info = try await manager.completedJobInfo(domain: "vm1", job: nil, keep: false)
        #expect(info.jobType == "Cancelled")
    }
}
