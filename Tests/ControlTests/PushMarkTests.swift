import Control
import Disk
import Foundation
import Glibc
import ServerInterface
import Testing

/// What pushes that have ended leave at their targets: no good one is marked, no foreign one
/// touched, and what could not be marked is tried again.
@Suite struct PushMarkTests {
    private static let mark = "nbdpull: this is no backup"

    private static func content(_ fixture: ControlFixture, _ name: String) -> String {
        let data = FileManager.default.contents(atPath: "\(fixture.root)/\(name)") ?? Data()
        return String(decoding: data, as: UTF8.self)
    }

    private static func records(_ fixture: ControlFixture) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: fixture.stateDirectory + "/jobs")
    }

    /// A push to two files that are there already and hold their names.
    private static func beginOverFiles(
        _ fixture: ControlFixture, _ manager: JobManager
    ) async throws -> BegunJob {
        for name in ["t.a", "t.b"] {
            try String(repeating: name, count: 1000).write(
                toFile: "\(fixture.root)/\(name)", atomically: false, encoding: .utf8)
        }
        return try await manager.begin(
            domain: "vm1",
            BeginRequest(backupXML: PushJobTests.xml(fixture), reuseExternal: true))
    }

    @Test("a push whose record cannot be removed is not completed, and its targets say so")
    func recordStays() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let manager = try await PushJobTests.manager(fixture, pusher)
        let begun = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: PushJobTests.xml(fixture)))
        // What a newer version wrote is never removed.
        let record = "\(fixture.stateDirectory)/jobs/\(begun.id).state"
        try "nbdpull-state 999 job 0 0\n".write(
            toFile: record, atomically: false, encoding: .utf8)
        for run in pusher.all { run.hear(.done) }
        let ended = try await PushJobTests.ended(manager, begun.id)
        #expect(ended.outcome == "failed", "\(ended)")
        #expect(ended.errorMessage?.contains("the verdict cannot be kept") == true, "\(ended)")
        for name in ["t.a", "t.b"] {
            #expect(!PushJobTests.exists(fixture, name))
            #expect(PushJobTests.exists(fixture, name + ".failed"))
        }
    }
}
