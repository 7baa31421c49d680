import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// The same where no host owns the data.
    @Suite struct MovingCephDiskTests {
        @Test("P3: an image of a Ceph cluster is one server's, and its chain goes on with the next")
        func ceph() throws {
            let cluster = try CephCluster()
            let pair = try MovingPair(seed: 18) { path, host in
                if host == 0 { try cluster.add("disk", from: path) }
                var disk = DiskDescription("vda", path)
                disk.rbd = ("disk", cluster.configuration)
                return disk
            }
            let (a, b) = (pair.here, pair.there)
            var image = try pair.full(on: a, checkpoint: "c0")
            try pair.write(on: a)
            let refused = try pair.define(on: b)
            #expect(
                refused.status == 1 && refused.stderr.contains("is open elsewhere: client.")
                    && refused.stderr.contains("exclusive lock"), "\(refused)")
            // The first one is not kept out by what it has left behind itself.
            a.kill()
            try a.start()
            try pair.write(on: a)
            let first = pair.directory.file("first.state")
            try pair.export(from: a, to: first)
            try pair.define(on: b).output()
            let word = ["--unchanged"]
            #expect(try pair.importState(to: b, from: first, word).disks[0].allChanged == nil)
            try pair.write(on: b)
            let there = try pair.incremental(on: b, from: "c0", over: image, checkpoint: "c1")
            #expect(there.dirtyBytes < MovingPair.bytes)
            image = there.image
            let late = try a.cli(["disk-import-state", "vm1", first])
            #expect(late.status == 1 && late.stderr.contains("is open elsewhere"), "\(late)")
            let second = pair.directory.file("second.state")
            try pair.export(from: b, to: second)
            #expect(try pair.importState(to: a, from: second, word).disks[0].allChanged == nil)
            try pair.write(on: a)
            var back = try pair.incremental(on: a, from: "c1", over: image)
            #expect(back.dirtyBytes < MovingPair.bytes)
            // By itself nothing shows whether it was written to meanwhile.
            let third = pair.directory.file("third.state")
            try pair.export(from: a, to: third)
            #expect(try pair.importState(to: b, from: third).disks[0].allChanged != nil)
            back = try pair.incremental(on: b, from: "c1", over: image)
            #expect(back.dirtyBytes == MovingPair.bytes)
            try a.stop()
            try b.stop()
            #expect(try cluster.content("disk") == pair.content)
        }
    }
}
