import TestSupport
import Testing

extension PointInTimeSuite {
    /// Full backup plus dirty extents is the next full backup.
    @Suite struct IncrementalTests {
        @Test(
            "P3: full plus dirty extents is the disk at the next instant, over three rounds",
            arguments: GuestKind.allCases)
        func rounds(guest: GuestKind) throws {
            let rig = try StressRig(guest: guest, mebibytes: 16, largestBytes: 1 << 16)
            try rig.writer.run(seconds: 0.3)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            let start = try rig.verify(full, window, name: "full")
            try rig.end(full)
            var images = start
            for round in 1...3 {
                try rig.writer.run(seconds: 0.1)
                let (job, window) = try rig.begin(
                    tag: "c\(round)", checkpoint: "c\(round)", incremental: "c\(round - 1)")
                try rig.writer.run(seconds: 0.2)
                for (index, target) in StressRig.targets.enumerated() {
                    images[index] = try rig.apply(job, target, to: images[index]).image
                    let name = "round \(round) \(target), seed \(rig.seed)"
                    try window.verify(disk: index, image: images[index], name: name)
                }
                try window.verifyOneInstant()
                let pulled = try rig.verify(job, window, name: "round \(round)")
                #expect(pulled == images)
                try rig.end(job)
            }

            // The oldest checkpoint still leads from the first full backup to now.
            let (job, last) = try rig.begin(tag: "again", incremental: "c0")
            for (index, target) in StressRig.targets.enumerated() {
                let image = try rig.apply(job, target, to: start[index]).image
                try last.verify(disk: index, image: image, name: "from c0, seed \(rig.seed)")
            }
            try rig.end(job)
            try rig.finish()
        }

        @Test("a quiet disk has nothing dirty, and a write makes one block dirty")
        func precision() throws {
            let rig = try StressRig(mebibytes: 8)
            let (full, _) = try rig.begin(tag: "c0", checkpoint: "c0")
            try rig.end(full)
            try rig.writer.drain()
            let (settle, _) = try quietBegin(rig, tag: "c1", checkpoint: "c1")
            try rig.server.end("vm1", settle)
            let (clean, cleanImage) = try quietBegin(rig, tag: "clean", incremental: "c1")
            let none = try rig.apply(clean, "vda", to: cleanImage)
            #expect(none.dirtyBytes == 0 && none.image == cleanImage)
            try rig.server.end("vm1", clean)

            try NBDClient(rig.server.liveURI("vm1", "vda")).write([7], at: 65_536 * 3 + 5)
            let (dirty, _) = try quietBegin(rig, tag: "dirty", incremental: "c1")
            let one = try rig.apply(dirty, "vda", to: cleanImage)
            #expect(one.dirtyBytes == 65_536)
            #expect(one.image[65_536 * 3 + 5] == 7)
            try rig.server.end("vm1", dirty)
            try rig.server.stop()
        }

        /// Begins a job while nothing writes.
        private func quietBegin(
            _ rig: StressRig, tag: String, checkpoint: String? = nil, incremental: String? = nil
        ) throws -> (BegunJob, [UInt8]) {
            let job = try rig.server.begin(
                "vm1", disks: ["vda"], tag: tag, checkpoint: checkpoint, incremental: incremental)
            return (job, rig.writer.oracle[0])
        }

        @Test("P3: a kill -9 keeps the checkpoints, and no change is missed")
        func killed() throws {
            let rig = try StressRig(mebibytes: 16, largestBytes: 1 << 16)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            let images = try rig.verify(full, window, name: "full")
            try rig.end(full)
            try rig.writer.run(seconds: 0.3)
            // In the middle of traffic: whatever is on the disk now must follow from the full
            // backup.
            rig.server.kill()
            try rig.server.start()
            #expect(try rig.server.cli(["checkpoint-list", "vm1"]).output().contains("c0"))
            let job = try rig.server.begin(
                "vm1", disks: StressRig.targets, tag: "after", incremental: "c0")
            for (index, target) in StressRig.targets.enumerated() {
                let image = try rig.apply(job, target, to: images[index]).image
                #expect(image == (try Bytes.ofDisk(rig.paths[index])), "seed \(rig.seed)")
            }
            try rig.server.end("vm1", job)
            try rig.server.stop()
        }
    }
}
