import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// What a push writes is what the disks held at its instant.
    @Suite struct PushTests {
        private static func targets(_ rig: StressRig, _ name: String, _ format: String)
            -> [PushDisk]
        {
            StressRig.targets.map {
                PushDisk($0, rig.directory.file("\(name)-\($0).\(format)"), format: format)
            }
        }

        private static func begin(
            _ rig: StressRig, _ arguments: [String]
        ) throws -> (job: BegunJob, window: InstantWindow) {
            let window = rig.writer.openWindow()
            let command = try rig.server.startCLI(arguments + ["--json"])
            let result = try rig.writer.run(beside: command, timeout: 60)
            try rig.writer.closeWindow(window)
            return (try BegunJob(json: try result.output()), window)
        }

        /// Lets the guest write until the push is over.
        private static func finish(_ rig: StressRig, _ job: BegunJob) throws {
            let watch = try rig.server.startCLI(["domjobinfo", "vm1", "--job", job.id, "--watch"])
            _ = try rig.writer.run(beside: watch, timeout: 60)
            let ended = try rig.server.awaitPush(job.id)
            #expect(ended.jobType == "Completed", "\(ended)\n\(rig.server.stderr)")
            #expect(ended.bytesRead == ended.bytesToRead)
        }

        private static func image(_ rig: StressRig, _ path: String, _ format: String) throws
            -> [UInt8]
        {
            let copy = rig.directory.file("copy-" + UUID().uuidString)
            defer { Files.remove(copy) }
            try Command.run("qemu-img", ["convert", "-f", format, "-O", "raw", path, copy])
                .output()
            return try Bytes.ofFile(copy)
        }

        @Test(
            "P1: a push of two disks is the pull of its instant, bit for bit, under a writing guest",
            arguments: ["raw", "qcow2"])
        func full(format: String) throws {
            let rig = try StressRig()
            let disks = Self.targets(rig, "full", format)
            let (job, window) = try Self.begin(
                rig, try rig.server.pushArguments(disks) + ["--verify", "--bandwidth", "48M"])
            // A pull of the very instant: the exports that the workers read.
            let socket = rig.server.runDirectory + "/push-\(job.id).sock"
            let pulled = rig.directory.file("pulled")
            let pull = try Command("nbdcopy", ["nbd+unix:///vda?socket=\(socket)", pulled])
            try rig.writer.run(beside: pull).output()
            try Self.finish(rig, job)
            for (index, disk) in disks.enumerated() {
                let path = try #require(disk.path)
                let image = try Self.image(rig, path, format)
                try window.verify(disk: index, image: image, name: "\(disk.target) \(format)")
                if index == 0 {
                    try Command.run(
                        "qemu-img", ["compare", "-f", format, "-F", "raw", path, pulled]
                    ).output()
                }
                #expect(try Files.mode(path) & 0o777 == 0o600)
                #expect(!Files.exists(path + ".partial"))
                if format == "qcow2" { try Command.run("qemu-img", ["check", path]).output() }
            }
            try window.verifyOneInstant()
            try rig.finish()
        }

        @Test("P3: a chain of incremental pushes holds only what changed, and rebased is the disk")
        func chain() throws {
            let rig = try StressRig(options: ["--granularity", "4096"])
            var last: [String: String] = [:]
            for round in 0..<3 {
                let disks = Self.targets(rig, "inc\(round)", "qcow2")
                let (job, window) = try Self.begin(
                    rig,
                    try rig.server.pushArguments(
                        disks, incremental: round == 0 ? nil : "c\(round - 1)",
                        checkpoint: "c\(round)") + ["--verify"])
                try Self.finish(rig, job)
                for (index, disk) in disks.enumerated() {
                    let path = try #require(disk.path)
                    try Command.run("qemu-img", ["check", path]).output()
                    if let base = last[disk.target] {
                        let info = try Command.run("qemu-img", ["info", path]).output()
                        #expect(!info.contains("backing file"))
                        try Command.run(
                            "qemu-img",
                            ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, path]
                        ).output()
                    }
                    last[disk.target] = path
                    let image = try Self.image(rig, path, "qcow2")
                    try window.verify(disk: index, image: image, name: "\(disk.target) \(round)")
                }
                try window.verifyOneInstant()
                try rig.writer.run(seconds: 0.1)
            }
            try rig.finish()
        }

        @Test("P1: a push goes on after kill -9 of the server, and with the server that takes over")
        func restarted() throws {
            let rig = try StressRig()
            let disks = [
                PushDisk("vda", rig.directory.file("a.raw"), format: "raw"),
                PushDisk("vdb", rig.directory.file("b.qcow2")),
            ]
            let (job, window) = try Self.begin(
                rig, try rig.server.pushArguments(disks, checkpoint: "c") + ["--bandwidth", "24M"])
            try rig.writer.run(seconds: 0.2)
            let workers = rig.server.pushWorkers
            #expect(workers.count == 3, "\(workers)")
            rig.server.kill()
            try rig.restart()
            #expect(try rig.server.pushInfo(job.id).jobType == "Unbounded")
            for worker in workers { #expect(!Files.exists("/proc/\(worker.process)/exe")) }
            try rig.writer.drain()
            try rig.server.takeOver()
            let ended = try rig.server.awaitPush(job.id)
            #expect(ended.jobType == "Completed", "\(ended)\n\(rig.server.stderr)")
            for (index, disk) in disks.enumerated() {
                let image = try Self.image(
                    rig, try #require(disk.path), index == 0 ? "raw" : "qcow2")
                try window.verify(disk: index, image: image, name: disk.target)
            }
            try rig.server.stop()
        }
    }
}
