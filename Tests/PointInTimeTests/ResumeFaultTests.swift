import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// The server is killed at every single step that a begin or an end makes in its directories:
    /// the job goes on whole, or has failed, and a checkpoint stands only for a job that ended
    /// well.
    @Suite struct ResumeFaultTests {
        enum Change: String, CaseIterable { case begin, end }
        /// Where the steps are counted: in the state directory, or in memory.
        enum Place: String, CaseIterable { case state, memory }

        /// Every step when the walk is full, else every fourth; the seed says with which it begins.
        private static let stride = RunSettings.isFullWalk ? 1 : 4
        /// More than any of them takes.
        private static let stepsMax = 120

        private final class Rig {
            let plan: FaultPlan
            let server: ServerUnderTest
            let content: [UInt8]
            var scratch: String { server.directory.file("scratch-r-vda") }

            init(_ place: Place) throws {
                let directory = try TemporaryDirectory()
                plan = try FaultPlan(
                    under: place == .state
                        ? directory.path + "/state" : "/dev/shm/nbdpull-\(geteuid())")
                let disk = directory.file("disk")
                content = try Images.random(disk, bytes: 4 << 20, seed: 9)
                server = try ServerUnderTest(
                    [DomainDescription("vm1", [DiskDescription("vda", disk)])],
                    options: ["--rings", "1"], in: directory, environment: plan.environment)
            }

            func begin() throws -> CommandResult {
                let backup = server.standardBackup(disks: ["vda"], tag: "r")
                return try server.cli(
                    try server.beginArguments("vm1", backup, checkpoint: "c1") + ["--json"])
            }

            func write() throws {
                try NBDClient(server.liveURI("vm1", "vda")).write(
                    [UInt8](repeating: 7, count: 1 << 20), at: 0)
            }

            var names: String {
                get throws { try server.cli(["checkpoint-list", "vm1", "--name"]).output() }
            }

            /// The server is there again: what has become of the job is one of few things.
            func expectSane(_ place: String, _ job: BegunJob?, mayHaveEnded: Bool) throws {
                try server.start()
                let info = try server.cli(["domjobinfo", "vm1"]).output()
                if info.contains("Unbounded") {
                    let uri = "nbd+unix:///vda?socket=\(server.directory.file("job-r.sock"))"
                    let image = try NBDClient(uri).read(0, content.count)
                    #expect(image == content, "\(place): another instant is served")
                    try server.cli(["backup-end", "vm1"]).output()
                    #expect(try names.contains("c1"), "\(place): its checkpoint is lost")
                } else {
                    let isGood = try names.contains("c1")
                    #expect(!isGood || mayHaveEnded, "\(place): a failed job has a checkpoint")
                    if let job, !isGood {
                        let ended = try server.cli(
                            ["domjobinfo", "vm1", "--completed", "--job", job.id])
                        #expect(ended.stdout.contains("Failed"), "\(place): \(ended)")
                    }
                }
                #expect(!Files.exists(scratch), "\(place): its scratch is left")
                let list = try server.cli(["list"])
                #expect(list.succeeded && list.stderr.isEmpty, "\(place): \(list)")
                try server.stop()
            }
        }

        @Test(
            "P3: killed at every step of a begin and of an end", arguments: Change.allCases,
            Place.allCases)
        func killed(_ change: Change, _ counted: Place) throws {
            print("seed \(RunSettings.seed)")
            var step = 1 + Int(RunSettings.seed % UInt64(Self.stride))
            while step < Self.stepsMax {
                let rig = try Rig(counted)
                let place = "\(change), \(counted), step \(step), seed \(RunSettings.seed)"
                var job: BegunJob?
                if change == .end {
                    job = try BegunJob(json: rig.begin().output())
                    try rig.write()
                }
                try rig.plan.arm(.killed, at: step)
                if change == .begin {
                    _ = try rig.begin()
                } else {
                    _ = try rig.server.cli(["backup-end", "vm1"])
                }
                let steps = rig.plan.disarm()
                rig.server.kill()
                try rig.expectSane(place, job, mayHaveEnded: change == .end)
                if steps < step {
                    #expect(steps > 0, "the library saw nothing")
                    return
                }
                step += Self.stride
            }
            Issue.record("\(change) takes more than \(Self.stepsMax) steps")
        }
    }
}
