import TestSupport
import Testing

extension PointInTimeSuite {
    /// The central promise, with real disks, a busy guest and other people's clients.
    @Suite struct PointInTimeTests {
        /// Every kind of source, and every kind of guest.
        private static let setups: [(StressRig.Source, GuestKind)] =
            StressRig.Source.allCases.map { ($0, .nbd) }
            + [(.bufferedFile, .vhost), (.directFile, .vhost)]

        @Test("P1: pulls are the disks at one instant", arguments: setups)
        func pulls(source: StressRig.Source, guest: GuestKind) throws {
            let rig = try StressRig(source, guest: guest)
            try rig.writer.run(seconds: RunSettings.stressSeconds(default: 0.5))
            var backup = rig.server.standardBackup(disks: StressRig.targets, tag: "one")
            var scratchDevices: [LoopDevice] = []
            if source == .blockDevice {
                for index in backup.disks.indices {
                    let file = rig.directory.file("scratch-device-\(index)")
                    try Images.sparse(file, bytes: 40 << 20)
                    let device = try LoopDevice(over: file)
                    scratchDevices.append(device)
                    backup.disks[index].scratch = device.path
                    backup.disks[index].scratchIsBlockDevice = true
                }
            }
            let (job, window) = try rig.begin(backup)
            if source != .blockDevice {
                for disk in backup.disks { #expect(try Files.mode(disk.scratch) & 0o777 == 0o600) }
            }
            try rig.writer.run(seconds: RunSettings.stressSeconds(default: 1))
            _ = try rig.verify(job, window, name: "job")
            try rig.end(job)
            for disk in backup.disks where !disk.scratchIsBlockDevice {
                #expect(!Files.exists(disk.scratch))
            }
            try rig.finish()
            withExtendedLifetime(scratchDevices) {}
        }

        @Test(
            "P1: three jobs over the same disks keep an instant each",
            arguments: GuestKind.allCases)
        func overlappingJobs(guest: GuestKind) throws {
            let rig = try StressRig(guest: guest, mebibytes: 16)
            var jobs: [(job: BegunJob, window: InstantWindow)] = []
            for number in 1...3 {
                try rig.writer.run(seconds: RunSettings.stressSeconds(default: 0.3))
                jobs.append(try rig.begin(tag: "job\(number)"))
            }
            try rig.writer.run(seconds: RunSettings.stressSeconds(default: 0.4))
            for number in [1, 0, 2] {
                _ = try rig.verify(jobs[number].job, jobs[number].window, name: "job \(number + 1)")
                try rig.end(jobs[number].job)
            }
            try rig.finish()
        }

        @Test(
            "P1: readers all over the disk see the instant while it is overwritten",
            arguments: GuestKind.allCases)
        func randomReaders(guest: GuestKind) throws {
            let rig = try StressRig(.directFile, guest: guest, mebibytes: 16, largestBytes: 1 << 18)
            let (job, window) = try rig.begin(tag: "random")
            var generator = SeededGenerator(seed: rig.seed &+ 1)
            let clients = try (0..<4).map { _ throws in try NBDClient(try job.uri("vda")) }
            let size = clients[0].sizeBytes
            var image = [UInt8](repeating: 0, count: size)
            var seen = [Bool](repeating: false, count: size / 4096)
            var flying: [(client: Int, offset: Int, count: Int, ticket: NBDTicket)] = []
            var reads = 0
            // Every page is read at least once, most several times; a second look must not differ.
            try rig.writer.run {
                while flying.count < 16, reads < 3000 {
                    let count = 1 << (12 + generator.below(6))
                    let offset = generator.below(size / count) * count
                    let client = reads % clients.count
                    let ticket = try clients[client].startRead(offset, count)
                    flying.append((client, offset, count, ticket))
                    reads += 1
                }
                NBDClient.waitForActivity(clients, milliseconds: 0)
                var remaining: [(client: Int, offset: Int, count: Int, ticket: NBDTicket)] = []
                for read in flying {
                    switch clients[read.client].outcome(of: read.ticket) {
                    case nil: remaining.append(read)
                    case .failed(let failure): throw failure
                    case .done(let bytes):
                        for page in stride(from: 0, to: read.count, by: 4096) {
                            let number = (read.offset + page) / 4096
                            if seen[number] {
                                guard
                                    Bytes.isEqual(
                                        bytes, at: page, image, at: number * 4096, count: 4096)
                                else { throw TestFailure("page \(number) changed between reads") }
                            }
                            seen[number] = true
                            Bytes.copy(bytes, at: page, to: &image, at: number * 4096, count: 4096)
                        }
                    }
                }
                flying = remaining
                return reads == 3000 && flying.isEmpty
            }
            try rig.writer.drain()
            for number in seen.indices where !seen[number] {
                Bytes.copy(
                    try clients[0].read(number * 4096, 4096), at: 0, to: &image, at: number * 4096,
                    count: 4096)
            }
            try window.verify(disk: 0, image: image, name: "random reads, seed \(rig.seed)")
            try window.verifyOneInstant()
            try rig.end(job)
            try rig.finish()
        }

        @Test("P5: holes of a backup export read as zeros", arguments: [false, true])
        func blockStatus(direct: Bool) throws {
            let rig = try StressRig(direct ? .directFile : .bufferedFile, mebibytes: 16)
            try rig.writer.run(seconds: 0.3)
            let (job, window) = try rig.begin(tag: "status")
            try rig.writer.run(seconds: 0.3)
            for (index, target) in StressRig.targets.enumerated() {
                let client = try NBDClient(try job.uri(target), .contexts("base:allocation"))
                let early = try client.map("base:allocation")
                let image = try rig.pullWithNBDCopy(job, target)
                try rig.writer.run(seconds: 0.3)
                let late = try client.map("base:allocation")
                for extent in early + late where extent.readsAsZero {
                    #expect(
                        Bytes.isZero(image, at: extent.offset, count: extent.count),
                        "\(target) \(extent), seed \(rig.seed)")
                }
                try window.verify(disk: index, image: image, name: target)
            }
            try rig.end(job)
            try rig.finish()
        }
    }
}
