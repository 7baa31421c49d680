import TestSupport
import Testing

extension PointInTimeSuite {
    /// Disks that are qcow2 images, each by a program of its own.
    @Suite struct AdapterTests {
        /// Kills the programs that have the rig's images open.
        private func killPrograms(_ rig: StressRig) throws {
            for path in rig.paths {
                try Command.run("pkill", ["-9", "-f", "qemu-storage-daemon.*\(path)"]).output()
            }
        }

        @Test("P1, P3: full and incremental backups of a busy qcow2 image with a backing image")
        func chain() throws {
            let rig = try StressRig(.overlay, mebibytes: 16, largestBytes: 1 << 18)
            try rig.fullAndIncremental()
        }

        @Test(
            "P1, P2, P3: images of a Ceph cluster through a pull and kills of programs and server")
        func ceph() throws {
            let rig = try StressRig(.rbd, mebibytes: 8, largestBytes: 1 << 18, discards: true)
            try rig.writer.run(seconds: 0.3)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            try rig.writer.run(seconds: 0.2)
            for target in StressRig.targets {
                try Command.run(
                    "pkill", ["-9", "-f", "qemu-storage-daemon.*\"image\":\"\(target)\""]
                )
                .output()
            }
            try rig.writer.run(seconds: 0.3)
            let images = try rig.verify(full, window, name: "full")
            rig.server.kill()
            try rig.restart()
            try rig.writer.run(seconds: 0.2)
            _ = try rig.verify(full, window, name: "after the kill")
            try rig.end(full)
            try rig.writer.drain()
            let job = try rig.server.begin(
                "vm1", disks: StressRig.targets, tag: "after", incremental: "c0")
            for (index, target) in StressRig.targets.enumerated() {
                let image = try rig.apply(job, target, to: images[index]).image
                #expect(image == rig.writer.oracle[index], "seed \(rig.seed)")
            }
            try rig.server.end("vm1", job)
            try rig.finish()
        }

        @Test("P1, P2: the images' programs are killed under a pull and a busy guest")
        func programsKilled() throws {
            // What a range reads as after a trim may be another thing after the kill.
            let rig = try StressRig(
                .overlay, mebibytes: 16, largestBytes: 1 << 18, discards: false)
            try rig.writer.run(seconds: 0.3)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            try rig.writer.run(seconds: 0.2)
            try killPrograms(rig)
            try rig.writer.run(seconds: 0.3)
            _ = try rig.verify(full, window, name: "full")
            try killPrograms(rig)
            try rig.end(full)
            try rig.writer.run(seconds: 0.2)
            try rig.finish()
        }

        @Test("P3: a kill -9 of the server keeps checkpoints of a qcow2 disk, and its job")
        func serverKilled() throws {
            let rig = try StressRig(.overlay, mebibytes: 8, largestBytes: 1 << 16)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            let images = try rig.verify(full, window, name: "full")
            try rig.writer.run(seconds: 0.3)
            rig.server.kill()
            try rig.restart()
            try rig.writer.run(seconds: 0.2)
            _ = try rig.verify(full, window, name: "after the kill")
            try rig.end(full)
            try rig.writer.drain()
            let job = try rig.server.begin(
                "vm1", disks: StressRig.targets, tag: "after", incremental: "c0")
            for (index, target) in StressRig.targets.enumerated() {
                let image = try rig.apply(job, target, to: images[index]).image
                #expect(image == rig.writer.oracle[index], "seed \(rig.seed)")
            }
            try rig.server.end("vm1", job)
            try rig.finish()
        }
    }
}
