import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// A begin that is refused leaves nothing behind.
    @Suite struct RefusedBeginTests {
        /// One reason to refuse a begin.
        enum Case: String, CaseIterable, Sendable {
            case unknownDisk, diskTwice, scratchExists, scratchFolderMissing, sameScratchTwice
            case unknownCheckpoint, checkpointExists, relativeSocket, socketFolderMissing, portTaken
            case notXML, wrongSchema, missingBlockScratch

            var needsCheckpoint: Bool { self == .checkpointExists }

            /// What the text must say.
            var expectedText: String {
                switch self {
                case .unknownDisk: "no disk named 'vdz'"
                case .diskTwice: "specified twice"
                case .scratchExists, .sameScratchTwice: "exists"
                case .scratchFolderMissing: "No such file or directory"
                case .unknownCheckpoint: "'nope'"
                case .checkpointExists: "c0"
                case .relativeSocket, .notXML, .wrongSchema, .missingBlockScratch: "error: "
                case .socketFolderMissing: "No such file or directory"
                case .portTaken: "in use"
                }
            }
        }

        /// Everything that a begin might leave behind.
        private struct Traces: Equatable {
            let files: [String]
            let jobs: String
            let checkpoints: String

            init(_ rig: StressRig) throws {
                // The begin's own XML files are the test's, not the server's.
                files =
                    rig.directory.listing()
                    + rig.server.directory.listing().filter { !$0.hasPrefix("begin-") }
                jobs = try rig.server.cli(["backup-list", "vm1"]).output()
                checkpoints = try rig.server.cli(["checkpoint-list", "vm1"]).stdout
            }
        }

        @Test("a refused begin changes nothing", arguments: Case.allCases)
        func refused(_ reason: Case) throws {
            let rig = try StressRig(mebibytes: 4)
            if reason.needsCheckpoint {
                let (first, _) = try rig.begin(tag: "first", checkpoint: "c0")
                try rig.end(first)
            }
            try rig.writer.drain()
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "refused")
            let checkpoint = reason.needsCheckpoint ? "c0" : nil
            var listener: Command?
            switch reason {
            case .unknownDisk: backup.disks[1].target = "vdz"
            case .diskTwice: backup.disks[1].target = "vda"
            case .scratchExists: try Files.write("mine", to: backup.disks[1].scratch)
            case .scratchFolderMissing: backup.disks[1].scratch = "/nonexistent/scratch"
            case .sameScratchTwice: backup.disks[1].scratch = backup.disks[0].scratch
            case .unknownCheckpoint: backup.incremental = "nope"
            case .checkpointExists: break
            case .relativeSocket: backup.endpoint = .unix("relative.sock")
            case .socketFolderMissing: backup.endpoint = .unix("/nonexistent/job.sock")
            case .portTaken:
                let port = Ports.free()
                let taken = try Command(
                    "nbdkit", ["-f", "-i", "127.0.0.1", "-p", "\(port)", "null"])
                Thread.sleep(forTimeInterval: 0.5)
                try taken.wait(for: "listener") { $0.isRunning }
                listener = taken
                backup.endpoint = .tcp(port)
            case .notXML, .wrongSchema: break
            case .missingBlockScratch:
                backup.disks[1].scratch = "/dev/nonexistent"
                backup.disks[1].scratchIsBlockDevice = true
            }
            let before = try Traces(rig)
            let arguments = try rig.server.beginArguments("vm1", backup, checkpoint: checkpoint)
            if reason == .notXML { try Files.write("<domainbackup", to: arguments[2]) }
            if reason == .wrongSchema {
                try Files.write(
                    "<domainbackup mode='pull'><what/></domainbackup>", to: arguments[2])
            }
            let result = try rig.server.cli(arguments)
            #expect(result.status == 1, "\(result)")
            #expect(result.stderr.contains("error: "), "\(result)")
            #expect(result.stderr.contains(reason.expectedText), "\(result)")
            #expect(try Traces(rig) == before)

            // The guest and the next job do not notice.
            if reason == .scratchExists {
                #expect(Files.read(backup.disks[1].scratch) == "mine")
            }
            try rig.writer.run(seconds: 0.05)
            let (next, window) = try rig.begin(tag: "next")
            _ = try rig.verify(next, window, name: "after a refusal")
            try rig.end(next)
            try rig.finish()
            withExtendedLifetime(listener) {}
        }
    }
}
