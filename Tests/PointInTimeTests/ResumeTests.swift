import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// Jobs go on when their server is killed and started again.
    @Suite struct ResumeTests {
        /// A backup client that connects again whenever its connection is lost.
        private final class Puller {
            let uri: String
            private var client: NBDClient?
            private(set) var reconnects = -1

            init(_ uri: String) { self.uri = uri }

            func read(_ offset: Int, _ count: Int) throws -> [UInt8] {
                let end = Date(timeIntervalSinceNow: 20)
                while true {
                    do {
                        if client == nil {
                            client = try NBDClient(uri)
                            reconnects += 1
                        }
                        if let bytes = try client?.read(offset, count) { return bytes }
                    } catch {
                        client = nil
                        guard Date() < end else { throw error }
                        Thread.sleep(forTimeInterval: 0.02)
                    }
                }
            }
        }

        private static func kill(_ rig: StressRig) throws {
            rig.server.kill()
            try rig.restart()
        }

        /// The job as it is listed; fails unless it runs.
        private static func expectRunning(_ rig: StressRig, _ job: BegunJob) throws {
            let text = try rig.server.cli(["domjobinfo", "vm1", "--job", job.id]).output()
            #expect(text.contains("Unbounded"), "\(text)\n\(rig.server.stderr)")
        }

        @Test("P1: a job goes on after kill -9", arguments: StressRig.Source.allCases)
        func killed(_ source: StressRig.Source) throws {
            let rig = try StressRig(source)
            let (job, window) = try rig.begin(tag: "r")
            for _ in 0..<3 {
                try rig.writer.run(seconds: 0.3)
                try Self.kill(rig)
                try Self.expectRunning(rig, job)
            }
            try rig.writer.run(seconds: 0.3)
            _ = try rig.verify(job, window, name: "resumed")
            try rig.end(job)
            #expect(!Files.exists(rig.server.directory.file("scratch-r-vda")))
            try rig.finish()
        }

        @Test("P1: a client that connects again pulls one instant over many kills")
        func pulled() throws {
            let rig = try StressRig(mebibytes: 16)
            let (job, window) = try rig.begin(tag: "r")
            let pullers = try StressRig.targets.map { Puller(try job.uri($0)) }
            var images = [[UInt8]](repeating: [], count: 2)
            let step = 1 << 20
            for offset in stride(from: 0, to: 16 << 20, by: step) {
                try rig.writer.run(seconds: 0.05)
                if offset % (3 << 20) == 0 { try Self.kill(rig) }
                for (index, puller) in pullers.enumerated() {
                    images[index] += try puller.read(offset, step)
                }
            }
            #expect(pullers.allSatisfy { $0.reconnects >= 5 })
            for (index, image) in images.enumerated() {
                try window.verify(disk: index, image: image, name: "seed \(rig.seed)")
            }
            try window.verifyOneInstant()
            try rig.end(job)
            try rig.finish()
        }

        @Test("P1: several jobs, full and incremental, on unix and TCP; the bitmap stays as it was")
        func several() throws {
            let rig = try StressRig(mebibytes: 16, largestBytes: 1 << 16)
            let (base, baseWindow) = try rig.begin(tag: "c0", checkpoint: "c0")
            var images = try rig.verify(base, baseWindow, name: "base")
            try rig.end(base)
            try rig.writer.run(seconds: 0.3)
            let (first, firstWindow) = try rig.begin(tag: "inc", incremental: "c0")
            try rig.writer.run(seconds: 0.2)
            var overTCP = rig.server.standardBackup(disks: StressRig.targets, tag: "tcp")
            overTCP.endpoint = .tcp(0)
            let (second, secondWindow) = try rig.begin(overTCP, checkpoint: "c1")
            let maps = try StressRig.targets.map { try Self.map(first, $0) }
            for _ in 0..<2 {
                try rig.writer.run(seconds: 0.3)
                try Self.kill(rig)
            }
            #expect(try StressRig.targets.map { try Self.map(first, $0) } == maps)
            _ = try rig.verify(second, secondWindow, name: "over TCP")
            try rig.follow(first, firstWindow, name: "incremental", images: &images)
            try rig.end(first)
            // A checkpoint of a job that goes on is no base before its end, and one after it.
            let early = try rig.server.cli(
                try rig.server.beginArguments("vm1", Self.incremental(rig, "early")))
            #expect(!early.succeeded && early.stderr.contains("has not ended"), "\(early)")
            try rig.end(second)
            let (last, lastWindow) = try rig.begin(Self.incremental(rig, "last"))
            try rig.writer.run(seconds: 0.2)
            var after = images
            for (index, target) in StressRig.targets.enumerated() {
                after[index] = try rig.pullWithNBDCopy(last, target)
                try lastWindow.verify(disk: index, image: after[index], name: "last")
            }
            try rig.end(last)
            try rig.finish()
        }

        private static func incremental(_ rig: StressRig, _ tag: String) -> BackupDescription {
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: tag)
            backup.incremental = "c1"
            return backup
        }

        private static func map(_ job: BegunJob, _ target: String) throws -> [String] {
            let export = try job.export(target)
            let context = "qemu:dirty-bitmap:" + (export.bitmap ?? "")
            return try NBDClient(export.uri, .contexts(context)).map(context).map {
                "\($0.offset) \($0.count) \($0.isDirty)"
            }
        }

        @Test("P1: scratch on a block device goes on")
        func deviceScratch() throws {
            let rig = try StressRig(mebibytes: 16)
            let files = StressRig.targets.map { rig.directory.file("device-" + $0) }
            for file in files { try Images.sparse(file, bytes: 24 << 20) }
            let loops = try files.map { try LoopDevice(over: $0) }
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "r")
            for (index, loop) in loops.enumerated() {
                backup.disks[index].scratch = loop.path
                backup.disks[index].scratchIsBlockDevice = true
            }
            let (job, window) = try rig.begin(backup)
            try rig.writer.run(seconds: 0.3)
            try Self.kill(rig)
            try rig.writer.run(seconds: 0.3)
            _ = try rig.verify(job, window, name: "device")
            try rig.end(job)
            try rig.finish()
        }

        @Test("P5: what a client let go of stays so, and its scratch is used again")
        func released() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            let content = try Images.random(path, bytes: 16 << 20, seed: 9)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let backup = server.standardBackup(disks: ["vda"], tag: "r")
            let job = try BegunJob(
                json: server.cli(
                    try server.beginArguments("vm1", backup) + ["--client-release", "--json"]
                ).output())
            let mebibyte = 1 << 20
            let fill = [UInt8](repeating: 0x5A, count: 4 * mebibyte)
            try NBDClient(server.liveURI("vm1", "vda")).write(fill, at: 0)
            try NBDClient(try job.uri("vda"), .unchecked).trim(0, 2 * mebibyte)
            server.kill()
            try server.start()
            let client = try NBDClient(try job.uri("vda"), .unchecked)
            var failure: NBDFailure?
            do { _ = try client.read(mebibyte, 1) } catch { failure = error }
            #expect(failure?.code == EIO)
            // Two slots' worth is free again: scratch does not grow.
            let scratch = server.directory.file("scratch-r-vda")
            try NBDClient(server.liveURI("vm1", "vda")).write(
                [UInt8](repeating: 1, count: 2 * mebibyte), at: 8 * mebibyte)
            let facts = try FileManager.default.attributesOfItem(atPath: scratch)
            #expect(facts[.size] as? Int == 4 * mebibyte)
            for place in [2, 3, 8, 9, 15] {
                let read = try client.read(place * mebibyte, mebibyte)
                #expect(read == Array(content[place * mebibyte..<(place + 1) * mebibyte]))
            }
            try server.end("vm1", job)
            try server.stop()
        }

        @Test("figures and the time to live go on")
        func continued() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            _ = try Images.random(path, bytes: 8 << 20, seed: 9)
            let server = try ServerUnderTest([
                DomainDescription("vm1", [DiskDescription("vda", path)])
            ])
            let backup = server.standardBackup(disks: ["vda"], tag: "r")
            let begun = Date()
            let job = try BegunJob(
                json: server.cli(
                    try server.beginArguments("vm1", backup) + ["--ttl", "6", "--json"]
                ).output())
            try NBDClient(server.liveURI("vm1", "vda")).write([1], at: 0)
            _ = try NBDClient(try job.uri("vda")).read(0, 4 << 20)
            Thread.sleep(forTimeInterval: 2)
            server.kill()
            try server.start()
            let text = try server.cli(["domjobinfo", "vm1", "--rawstats"]).output()
            #expect(text.contains("disk_temp_used: 16384"), "\(text)")
            #expect(text.contains("disk_processed: 4194304"), "\(text)")
            while try server.cli(["domjobinfo", "vm1"]).output().contains("Unbounded") {
                guard Date().timeIntervalSince(begun) < 20 else { break }
                Thread.sleep(forTimeInterval: 0.1)
            }
            let age = Date().timeIntervalSince(begun)
            #expect(age > 5.5 && age < 8, "its time was over after \(age) s")
            try server.stop()
        }
    }
}
