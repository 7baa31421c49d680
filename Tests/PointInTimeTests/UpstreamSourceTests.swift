import TestSupport
import Testing

extension PointInTimeSuite {
    /// Disks whose bytes another NBD server has, which goes and comes.
    @Suite struct UpstreamSourceTests {
        @Test(
            "P1: an upstream is killed and started again under a pull and a busy guest",
            arguments: [true, false])
        func killedUnderPull(hasCache: Bool) throws {
            // With a cache, whatever was answered and not flushed is gone with the process. So is
            // what it had shown of a trimmed range, which the filter goes on to read from its cache.
            let rig = try StressRig(
                .upstream, mebibytes: 16, largestBytes: 1 << 18,
                upstream: .nbdkit(hasCache ? ["--filter=cache"] : []), discards: !hasCache)
            try rig.writer.run(seconds: 0.3)
            let (full, window) = try rig.begin(tag: "c0", checkpoint: "c0")
            try rig.writer.run(seconds: 0.2)
            for upstream in rig.upstreams { upstream.kill() }
            try rig.writer.run(seconds: 0.3)
            for upstream in rig.upstreams { try upstream.start() }
            try rig.writer.run(seconds: 0.3)
            var images = try rig.verify(full, window, name: "full")
            try rig.end(full)

            let (job, next) = try rig.begin(tag: "c1", checkpoint: "c1", incremental: "c0")
            for upstream in rig.upstreams {
                upstream.kill()
                try upstream.start()
            }
            try rig.writer.run(seconds: 0.3)
            for (index, target) in StressRig.targets.enumerated() {
                images[index] = try rig.apply(job, target, to: images[index]).image
                try next.verify(
                    disk: index, image: images[index], name: "c1 \(target), seed \(rig.seed)")
            }
            try next.verifyOneInstant()
            try rig.end(job)
            try rig.finish()
        }

        @Test("P1: an upstream that takes one connection serves guest, copies and backup clients")
        func oneConnection() throws {
            let rig = try StressRig(.upstream, mebibytes: 8, upstream: .qemu(["-e", "1"]))
            try rig.writer.run(seconds: 0.2)
            let (job, window) = try rig.begin(tag: "one")
            try rig.writer.run(seconds: 0.3)
            _ = try rig.verify(job, window, name: "job")
            try rig.end(job)
            try rig.finish()
        }

        @Test("P3: a kill -9 of the server keeps checkpoints of an upstream's disk, and its job")
        func serverKilled() throws {
            let rig = try StressRig(.upstream, mebibytes: 8, largestBytes: 1 << 16)
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
            try rig.server.stop()
        }

        @Test("P1, P2: an upstream that is slow, fails now and then and is asked again")
        func filtered() throws {
            let rig = try StressRig(
                .upstream, mebibytes: 8, largestBytes: 1 << 16,
                upstream: .nbdkit([
                    "--filter=retry-request", "--filter=delay", "--filter=error",
                    "error-rate=0.2%", "retry-request-delay=1", "retry-request-retries=9",
                    "rdelay=1ms", "wdelay=2ms",
                ]))
            try rig.fullAndIncremental()
        }

        @Test("P2: old content that an upstream does not give breaks the job, and no guest's write")
        func unreadable() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("vda.img")
            let old = try Images.mixed(path, bytes: 4 << 20, seed: RunSettings.seed)
            let trigger = directory.file("fail")
            let upstream = try UpstreamServer(
                .nbdkit([
                    "--filter=error", "error-pread=EIO", "error-pread-rate=1",
                    "error-pread-file=\(trigger)",
                ]), over: path)
            var disk = DiskDescription("vda", path)
            disk.upstreamSocket = upstream.socket
            let server = try ServerUnderTest([DomainDescription("vm1", [disk])])
            let job = try server.begin("vm1", disks: ["vda"], tag: "first")
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try Files.write("", to: trigger)
            let new = [UInt8](repeating: 0xAB, count: 64 << 10)
            for place in stride(from: 0, to: old.count, by: 1 << 20) {
                try guest.write(new, at: place)
            }
            try guest.flush()
            #expect(try !server.cli(["backup-end", "vm1", "--job", job.id]).succeeded)
            Files.remove(trigger)
            var expected = old
            for place in stride(from: 0, to: old.count, by: 1 << 20) {
                expected.replaceSubrange(place..<place + new.count, with: new)
            }
            let second = try server.begin("vm1", disks: ["vda"], tag: "second")
            let copy = directory.file("copy")
            try Command.run("nbdcopy", [try second.uri("vda"), copy]).output()
            #expect(try Bytes.ofFile(copy) == expected)
            try server.end("vm1", second)
            try guest.disconnect()
            try server.stop()
        }
    }
}
