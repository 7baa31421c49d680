import Control
import Foundation
import ServerInterface
import Testing

/// Disks over which servers crash again and again.
@Suite struct SetAsideTests {
    private static func crash(_ export: String) -> CrashReport {
        CrashReport(
            build: "1", processID: "7", signal: 4, time: 1_000_000_000, secondsServed: 1,
            thread: "nbdpull-ring-0", program: "0x1", address: 0,
            subject: .disk(export: CrashReport.Subject.beginning(of: export)), doing: "",
            others: [])
    }

    /// A state directory with a domain of this name.
    private static func fixture(_ name: String) async throws -> ControlFixture {
        let fixture = try ControlFixture()
        let definition = try DomainDefinition.parse(
            fixture.domainXML(name), hasStableUUID: true)
        let state = try StateDirectory(path: fixture.stateDirectory)
        try state.save(
            StoredDomain(name: name, uuid: definition.uuid, xml: definition.xml))
        state.release()
        return fixture
    }

    /// The next server, whose predecessor crashed over this disk; how many of the domain's disks it
    /// serves.
    private static func start(
        _ fixture: ControlFixture, _ crash: CrashReport?, counts: Bool = true,
        _ body: (JobManager) async throws -> Void = { _ in }
    ) async throws -> Int {
        #expect(
            try await eventually {
                guard let state = try? StateDirectory(path: fixture.stateDirectory) else {
                    return false
                }
                state.release()
                return true
            })
        fixture.engine.change {
            $0.attached = [:]
            $0.crash = crash
        }
        let manager = try await fixture.manager(stored: true) { $0.countsCrashes = counts }
        _ = await manager.restore()
        let served = fixture.engine.attachedCount
        try await body(manager)
        return served
    }

    private static func records(_ fixture: ControlFixture) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: fixture.stateDirectory + "/crashes")
            .filter { $0.hasSuffix(".state") }
    }

    static let names = [
        "vm1", String(repeating: "long", count: 30), String(repeating: "\u{E4}", count: 60),
    ]

    @Test(
        "P2: a disk that was set aside is served again when it is attached anew", arguments: names)
    func bringBack(name: String) async throws {
        let fixture = try await Self.fixture(name)
        let crash = Self.crash("\(name)/vda")
        // A name that a crash report has no room for may be that of either disk: both are set
        // aside.
        let isCut = CrashReport.Subject.beginning(of: "\(name)/vda") != "\(name)/vda"
        let others = isCut ? 0 : 1
        for time in 1...3 {
            let served = try await Self.start(fixture, crash)
            #expect(served == (time < 3 ? 2 : others), "crash \(time)")
        }
        // It stays so over a start without a crash.
        let served = try await Self.start(fixture, nil) { manager in
            let disks = try await manager.disks(of: name)
            let reason = disks.first { $0.disk == "vda" }?.errorMessage ?? ""
            #expect(reason.contains("set aside: the server crashed 3 times"), "\(reason)")
            try await manager.detachDisk("vda", from: name)
            _ = try await manager.attachDisk(
                xml: "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                    + "<source file='\(fixture.root)/\(name)-a.raw'/><target dev='vda'/></disk>",
                to: name)
            #expect(fixture.engine.attachedCount == others + 1)
        }
        #expect(served == others)
        #expect(try Self.records(fixture).isEmpty)
        #expect(try await Self.start(fixture, nil) == 2)
    }

    @Test("P2: crashes of a server that failed to take over set nothing aside")
    func newcomers() async throws {
        let fixture = try await Self.fixture("vm1")
        let crash = Self.crash("vm1/vda")
        for _ in 1...4 {
            let served = try await Self.start(fixture, crash, counts: false) { manager in
                let events = manager.events.recent
                #expect(events.contains { $0.event == .serverCrashed }, "it is not told of")
            }
            #expect(served == 2)
        }
        #expect(try Self.records(fixture).isEmpty)
    }
}
