import TestSupport
import Testing

extension PointInTimeSuite {
    /// A full backup once and incremental ones for ever, whatever happens to the server.
    @Suite struct ChainTests {
        private static let mebibytes = 48
        private static let allBytes = 2 * mebibytes << 20

        /// Two disks whose traffic leaves most clusters alone between two backups.
        private func rig(_ guest: GuestKind = .nbd) throws -> StressRig {
            try StressRig(
                guest: guest, mebibytes: Self.mebibytes, largestBytes: 1 << 16, inFlight: 2,
                withFileSystem: true)
        }

        private func full(_ rig: StressRig, _ name: String) throws -> [[UInt8]] {
            let (job, window) = try rig.begin(tag: name, checkpoint: name)
            let images = try rig.verify(job, window, name: "full \(name)")
            try rig.end(job)
            return images
        }

        @Test("P3: ten incrementals in a row, checkpoints deleted on the way")
        func tenRounds() throws {
            let rig = try rig()
            var generator = SeededGenerator(seed: rig.seed &+ 10)
            var images = try full(rig, "c0")
            let start = images
            var dirtyBytes = 0
            for round in 1...10 {
                try rig.writer.run(seconds: 0.02)
                let (job, window) = try rig.begin(
                    tag: "c\(round)", checkpoint: "c\(round)", incremental: "c\(round - 1)")
                dirtyBytes += try rig.follow(
                    job, window, name: "round \(round)", images: &images)
                try rig.end(job)
                // The first and the newest stay; of the others any may go.
                let others = try rig.checkpointNames().filter { $0 != "c0" && $0 != "c\(round)" }
                if round % 2 == 0, !others.isEmpty {
                    try rig.deleteCheckpoint(others[generator.below(others.count)])
                }
            }
            #expect(dirtyBytes < 10 * Self.allBytes, "everything is always dirty")
            let (job, window) = try rig.begin(tag: "again", incremental: "c0")
            images = start
            try rig.follow(job, window, name: "from c0", images: &images)
            try rig.end(job)
            try rig.finish()
        }

        /// When the server is killed.
        enum Moment: String, CaseIterable, Sendable {
            case traffic, begin, deleteOlder, deleteNewest, end
        }

        @Test("P3: the chain goes on after a kill -9", arguments: Moment.allCases)
        func killed(moment: Moment) throws {
            let rig = try rig()
            var generator = SeededGenerator(seed: rig.seed &+ 20)
            var images = try full(rig, "c0")
            var base = "c0"
            for round in 1...3 {
                let name = "\(moment.rawValue) \(round)"
                let delay = Double(generator.below(50)) / 1000
                try disturb(rig, moment, round, base: base, delay: delay)
                rig.server.kill()
                try rig.restart()
                #expect(try rig.checkpointNames().contains(base), "\(name), seed \(rig.seed)")
                try rig.writer.run(seconds: 0.02)
                let (job, window) = try rig.begin(
                    tag: "c\(round)", checkpoint: "c\(round)", incremental: base)
                let dirtyBytes = try rig.follow(job, window, name: name, images: &images)
                #expect(dirtyBytes < Self.allBytes, "\(name): a kill made everything dirty")
                try rig.end(job)
                base = "c\(round)"
            }
            try rig.finish()
        }

        @Test("P2, P3: a vhost guest goes on through kill -9: no error, no lost write or change")
        func killedBeneath() throws {
            let rig = try rig(.vhost)
            var generator = SeededGenerator(seed: rig.seed &+ 40)
            var images = try full(rig, "c0")
            for round in 1...2 {
                // Requests go on being sent while there is nobody to take them.
                try rig.writer.run(seconds: 0.03 + Double(generator.below(50)) / 1000)
                rig.server.kill()
                try rig.restartBeneath()
                try rig.writer.run(seconds: 0.05)
                let (job, window) = try rig.begin(
                    tag: "c\(round)", checkpoint: "c\(round)", incremental: "c\(round - 1)")
                let dirtyBytes = try rig.follow(
                    job, window, name: "round \(round)", images: &images)
                #expect(dirtyBytes < Self.allBytes, "round \(round): everything is dirty")
                try rig.end(job)
            }
            try rig.finish()
        }

        /// Lets the server begin what it is to be killed in.
        private func disturb(
            _ rig: StressRig, _ moment: Moment, _ round: Int, base: String, delay: Double
        ) throws {
            try rig.writer.run(seconds: 0.03)
            let arguments: [String]
            switch moment {
            case .traffic: return try rig.writer.run(seconds: delay)
            case .begin:
                var backup = rig.server.standardBackup(
                    disks: StressRig.targets, tag: "killed\(round)")
                backup.incremental = base
                arguments = try rig.server.beginArguments(
                    "vm1", backup, checkpoint: "killed\(round)")
            case .deleteOlder, .deleteNewest:
                let newer = try rig.begin(
                    tag: "newer\(round)", checkpoint: "newer\(round)", incremental: base)
                try rig.end(newer.job)
                let newest = try rig.begin(
                    tag: "newest\(round)", checkpoint: "newest\(round)", incremental: base)
                try rig.end(newest.job)
                let doomed = moment == .deleteOlder ? "newer" : "newest"
                arguments = ["checkpoint-delete", "vm1", "\(doomed)\(round)"]
            case .end:
                let (job, _) = try rig.begin(
                    tag: "ended\(round)", checkpoint: "ended\(round)", incremental: base)
                arguments = ["backup-end", "vm1", "--job", job.id]
            }
            // The command line itself takes some milliseconds before the server hears of it.
            _ = try rig.server.startCLI(arguments)
            try rig.writer.run(seconds: 0.01 + delay)
        }

        @Test(
            "P3: two consumers with chains of their own delete each other's neighbours",
            arguments: GuestKind.allCases)
        func twoConsumers(guest: GuestKind) throws {
            let rig = try rig(guest)
            var generator = SeededGenerator(seed: rig.seed &+ 30)
            var chains = ["a", "b"].map { (name: $0, count: 0, images: [[UInt8]]()) }
            for index in chains.indices {
                chains[index].images = try full(rig, chains[index].name + "0")
                try rig.writer.run(seconds: 0.02)
            }
            for step in 1...(guest == .nbd ? 8 : 5) {
                try rig.writer.run(seconds: 0.02)
                let index = generator.below(2)
                let name = chains[index].name
                let old = "\(name)\(chains[index].count)"
                let new = "\(name)\(chains[index].count + 1)"
                let (job, window) = try rig.begin(tag: new, checkpoint: new, incremental: old)
                try rig.follow(
                    job, window, name: "step \(step) \(new)", images: &chains[index].images)
                // Sometimes the old one goes while the job that came from it still runs.
                if generator.oneIn(2) {
                    try rig.deleteCheckpoint(old)
                    try rig.end(job)
                } else {
                    try rig.end(job)
                    try rig.deleteCheckpoint(old)
                }
                chains[index].count += 1
                #expect(
                    Set(try rig.checkpointNames())
                        == Set(chains.map { "\($0.name)\($0.count)" }))
            }
            try rig.finish()
        }

        @Test("neither a stop nor a kill of a quiet server makes anything dirty")
        func quiet() throws {
            let rig = try rig()
            try rig.writer.run(seconds: 0.05)
            try rig.writer.drain()
            let first = try rig.server.begin(
                "vm1", disks: StressRig.targets, tag: "c0", checkpoint: "c0")
            try rig.server.end("vm1", first)
            for round in 1...2 {
                if round == 1 { try rig.server.stop() } else { rig.server.kill() }
                try rig.restart()
                let job = try rig.server.begin(
                    "vm1", disks: StressRig.targets, tag: "c\(round)", incremental: "c0")
                for (index, target) in StressRig.targets.enumerated() {
                    let result = try rig.apply(job, target, to: rig.writer.oracle[index])
                    #expect(result.dirtyBytes == 0, "round \(round) \(target)")
                }
                try rig.server.end("vm1", job)
            }
            try rig.finish()
        }
    }
}
