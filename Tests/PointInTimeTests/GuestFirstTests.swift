import Foundation
import Glibc
import TestSupport
import Testing

extension PointInTimeSuite {
    /// A job that goes wrong breaks, and the guest goes on.
    @Suite struct GuestFirstTests {
        /// Fails unless the job is broken on every surface.
        private func expectBroken(_ rig: StressRig, _ job: BegunJob, _ target: String) throws {
            let client = try NBDClient(try job.uri(target))
            var failure: NBDFailure?
            do { _ = try client.read(0, 4096) } catch { failure = error }
            #expect(failure?.code == EIO, "a broken job's read: \(String(describing: failure))")
            for command in [["backup-list", "vm1"], ["domjobinfo", "vm1", "--job", job.id]] {
                let text = try rig.server.cli(command).output().lowercased()
                #expect(
                    text.contains("broken") || text.contains("failed") || text.contains("error"),
                    "\(command): \(text)")
            }
        }

        /// Keeps writing until the job's reads fail.
        private func runUntilBroken(_ rig: StressRig, _ job: BegunJob) throws {
            let client = try NBDClient(try job.uri("vda"))
            var ticket: NBDTicket?
            try rig.writer.run(timeout: 60) {
                NBDClient.waitForActivity([client], milliseconds: 0)
                guard let waiting = ticket else {
                    ticket = try client.startRead(0, 4096)
                    return false
                }
                switch client.outcome(of: waiting) {
                case nil: return false
                case .failed: return true
                case .done:
                    ticket = nil
                    return false
                }
            }
        }

        @Test("P2: full scratch breaks the job, never the guest", arguments: GuestKind.allCases)
        func scratchFull(guest: GuestKind) throws {
            let small = try TinyFileSystem(mebibytes: 8)
            let rig = try StressRig(guest: guest, mebibytes: 32)
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "full")
            backup.disks[0].scratch = small.path + "/scratch"
            let (job, _) = try rig.begin(backup)
            try runUntilBroken(rig, job)
            try rig.writer.run(seconds: 0.5)
            try expectBroken(rig, job, "vda")
            let text = try rig.server.cli(["backup-list", "vm1"]).output()
            #expect(text.localizedStandardContains("space"), "the reason is missing: \(text)")
            _ = try rig.server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            #expect(Files.listing(small.path).filter { $0.hasPrefix("scratch") }.isEmpty)

            // The next job begins as if nothing had been.
            let (next, window) = try rig.begin(tag: "next")
            _ = try rig.verify(next, window, name: "next")
            try rig.end(next)
            try rig.finish()
        }

        @Test("P2: one broken job leaves the others whole", arguments: GuestKind.allCases)
        func neighbours(guest: GuestKind) throws {
            let small = try TinyFileSystem(mebibytes: 8)
            // Large enough that scratch fills up whatever part of the disk is zeros at the instant.
            let rig = try StressRig(guest: guest, mebibytes: 32)
            let (whole, window) = try rig.begin(tag: "whole")
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "small")
            backup.disks[0].scratch = small.path + "/scratch"
            let (job, _) = try rig.begin(backup)
            try runUntilBroken(rig, job)
            try expectBroken(rig, job, "vda")
            _ = try rig.verify(whole, window, name: "whole")
            _ = try rig.server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            try rig.end(whole)
            try rig.finish()
        }

        @Test(
            "P2: frozen scratch holds a guest write for the limit only",
            arguments: GuestKind.allCases)
        func scratchFrozen(guest: GuestKind) throws {
            let frozen = try TinyFileSystem(mebibytes: 64)
            let rig = try StressRig(guest: guest, mebibytes: 16, options: ["--copy-timeout", "2"])
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "frozen")
            backup.disks[0].scratch = frozen.path + "/scratch"
            let (job, _) = try rig.begin(backup)
            try rig.writer.drain()
            try frozen.freeze()
            rig.writer.resetSlowest()
            try rig.writer.run(seconds: 6)
            try rig.writer.drain(timeout: 20)
            #expect(
                rig.writer.slowest < .seconds(6),
                "\(rig.writer.slowestSummary) took \(rig.writer.slowest)")
            try expectBroken(rig, job, "vda")
            try frozen.thaw()
            try rig.writer.run(seconds: 0.3)
            _ = try rig.server.cli(["backup-end", "vm1", "--job", job.id, "--failed"])
            try rig.finish()
        }

        @Test(
            "P4: a client that stops reading does not hold the guest", arguments: GuestKind.allCases
        )
        func stalledReader(guest: GuestKind) throws {
            let rig = try StressRig(guest: guest, mebibytes: 32)
            let (job, window) = try rig.begin(tag: "stalled")
            let stalled = try NBDClient(try job.uri("vda"))
            for index in 0..<16 { _ = try stalled.startRead(index << 20, 1 << 20) }
            rig.writer.resetSlowest()
            try rig.writer.run(seconds: 1)
            #expect(
                rig.writer.slowest < .seconds(5),
                "\(rig.writer.slowestSummary) took \(rig.writer.slowest)")
            _ = try rig.verify(job, window, name: "beside a stalled reader")
            try rig.end(job)
            withExtendedLifetime(stalled) {}
            try rig.finish()
        }
    }
}
