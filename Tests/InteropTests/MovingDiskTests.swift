import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Disks that go from one server to another, with their checkpoints.
    @Suite struct MovingDiskTests {
        /// Where the disk's bytes are, reached by both servers.
        enum Storage: String, CaseIterable, Sendable { case file, upstream, overlay }

        /// What serves an upstream lives as long as the test.
        private final class Upstreams {
            var servers: [UpstreamServer] = []
        }

        private func pair(_ storage: Storage, _ upstreams: Upstreams) throws -> MovingPair {
            try MovingPair(seed: 16) { path, host in
                var disk = DiskDescription("vda", path)
                switch storage {
                case .file: break
                case .upstream:
                    if upstreams.servers.isEmpty {
                        upstreams.servers.append(try UpstreamServer(.nbdkit([]), over: path))
                    }
                    disk.upstreamSocket = upstreams.servers[0].socket
                case .overlay:
                    if host == 0 {
                        try disk.becomeOverlay()
                    } else {
                        disk.backing = path
                        disk.path = path + ".qcow2"
                        disk.format = "qcow2"
                    }
                }
                return disk
            }
        }

        private func pair(_ make: (DiskDescription) -> DiskDescription = { $0 }) throws
            -> MovingPair
        {
            try MovingPair(seed: 17) { path, _ in make(DiskDescription("vda", path)) }
        }

        private func expectRefused(
            _ result: CommandResult, _ words: String, line: Int = #line
        ) {
            #expect(
                result.status == 1 && result.stderr.contains(words), "line \(line): \(result)")
        }

        @Test(
            "P3: a chain goes on with another server, there and back, from any base",
            arguments: Storage.allCases)
        func chain(on storage: Storage) throws {
            let upstreams = Upstreams()
            let pair = try pair(storage, upstreams)
            let (a, b) = (pair.here, pair.there)
            let old = try pair.full(on: a, checkpoint: "c0")
            try pair.write(on: a)
            let one = try pair.incremental(on: a, from: "c0", over: old, checkpoint: "c1").image
            try pair.write(on: a)

            let first = pair.directory.file("first.state")
            let move = try pair.export(from: a, to: first)
            #expect(move.disks[0].checkpoints == ["c0", "c1"] && move.disks[0].generation == 1)
            // It is served here no more, whatever happens.
            #expect((try? NBDClient(a.liveURI("vm1", "vda"))) == nil)
            a.kill()
            try a.start()
            #expect((try? NBDClient(a.liveURI("vm1", "vda"))) == nil)
            expectRefused(
                try a.cli(["checkpoint-create-as", "vm1", "--name", "none"]),
                "disk-import-state brings it back")

            try pair.define(on: b).output()
            // A machine may be faster than its administrator.
            try pair.write(on: b, times: 3)
            // Nothing tells of changes where a server of another's is between.
            let word = storage == .upstream ? ["--unchanged"] : []
            let taken = try pair.importState(to: b, from: first, word)
            #expect(taken.disks[0].allChanged == nil, "\(taken)")
            try pair.write(on: b)
            var result = try pair.incremental(on: b, from: "c1", over: one)
            #expect(result.dirtyBytes < MovingPair.bytes)
            result = try pair.incremental(on: b, from: "c0", over: old, checkpoint: "c2")
            #expect(result.dirtyBytes < MovingPair.bytes)
            try pair.write(on: b)
            b.kill()
            try b.start()

            let second = pair.directory.file("second.state")
            #expect(try pair.export(from: b, to: second).disks[0].generation == 2)
            #expect(try pair.importState(to: a, from: second, word).disks[0].allChanged == nil)
            try pair.write(on: a)
            for (base, image) in [("c0", old), ("c1", one), ("c2", result.image)] {
                let back = try pair.incremental(on: a, from: base, over: image)
                #expect(back.dirtyBytes < MovingPair.bytes, "\(base)")
            }
            let names = try a.cli(["checkpoint-list", "vm1", "--name"]).output()
            #expect(names.split(separator: "\n").map(String.init) == ["c0", "c1", "c2"])
            try a.stop()
            try b.stop()
        }

        @Test(
            "P3: what a server has written and has no bits of is not missed",
            arguments: [
                Storage.file, .upstream,
            ])
        func writtenBefore(on storage: Storage) throws {
            let upstreams = Upstreams()
            let pair = try pair(storage, upstreams)
            let (a, b) = (pair.here, pair.there)
            let old = try pair.full(on: a, checkpoint: "c0")
            let first = pair.directory.file("first.state")
            try pair.export(from: a, to: first)
            try pair.define(on: b).output()
            try pair.write(on: b)
            try b.cli(["undefine", "vm1"]).output()
            try pair.define(on: b).output()
            #expect(try pair.importState(to: b, from: first).disks[0].allChanged != nil)
            _ = try pair.incremental(on: b, from: "c0", over: old)
            // Taken back by the old file where it came from.
            guard storage == .upstream else { return }
            try pair.write(on: b)
            try b.stop()
            #expect(try pair.importState(to: a, from: first).disks[0].allChanged != nil)
            _ = try pair.incremental(on: a, from: "c0", over: old)
        }

        @Test("P3: a refused import where a disk came from takes nothing from it")
        func refusedAtHome() throws {
            let pair = try pair()
            let (a, b) = (pair.here, pair.there)
            let old = try pair.full(on: a, checkpoint: "c0")
            try pair.write(on: a)
            let first = pair.directory.file("first.state")
            try pair.export(from: a, to: first)
            let path = pair.disks[0].path
            try FileManager.default.moveItem(atPath: path, toPath: path + ".away")
            _ = try Images.random(path, bytes: 1 << 20, seed: 1)
            expectRefused(try a.cli(["disk-import-state", "vm1", first]), "1048576 bytes here")
            try FileManager.default.removeItem(atPath: path)
            try FileManager.default.moveItem(atPath: path + ".away", toPath: path)
            try FileManager.default.removeItem(atPath: first)
            let move = try pair.export(from: a, to: first)
            #expect(move.disks[0].checkpoints == ["c0"])
            try pair.define(on: b).output()
            try pair.importState(to: b, from: first)
            _ = try pair.incremental(on: b, from: "c0", over: old)
        }

        @Test("P3: a file is used once, by one server, and no older one after it")
        func usedOnce() throws {
            let pair = try pair()
            let (a, b) = (pair.here, pair.there)
            let old = try pair.full(on: a, checkpoint: "c0")
            let first = pair.directory.file("first.state")
            try pair.export(from: a, to: first)
            try pair.define(on: b).output()
            try pair.importState(to: b, from: first)
            expectRefused(try b.cli(["disk-import-state", "vm1", first]), "a file is used once")
            // A third one learns from the file, while a second one has it and after that.
            let c = try pair.third()
            #expect(try pair.define(on: c).status == 1)
            try pair.write(on: b)
            try b.stop()
            try pair.define(on: c).output()
            expectRefused(
                try c.cli(["disk-import-state", "vm1", first]), "another server has taken it over")
            // As does the first.
            expectRefused(
                try a.cli(["disk-import-state", "vm1", first]), "in use by another process")
            try c.cli(["undefine", "vm1"]).output()
            expectRefused(
                try a.cli(["disk-import-state", "vm1", first]), "another server has taken it over")
            try b.start()
            let second = pair.directory.file("second.state")
            try pair.export(from: b, to: second)
            try pair.importState(to: a, from: second)
            expectRefused(try a.cli(["disk-import-state", "vm1", first]), "take the newest file")
            expectRefused(try b.cli(["disk-import-state", "vm1", first]), "take the newest file")
            try pair.write(on: a)
            _ = try pair.incremental(on: a, from: "c0", over: old)
        }

        @Test("P3: what does not fit is refused, and nothing has changed")
        func refused() throws {
            let pair = try pair()
            let (a, b) = (pair.here, pair.there)
            let old = try pair.full(on: a, checkpoint: "c0")
            let file = pair.directory.file("disk.state")
            let export = ["disk-export-state", "vm1", "vda", file]
            let guest = try NBDClient(a.liveURI("vm1", "vda"))
            expectRefused(try a.cli(export), "1 client")
            try guest.disconnect()
            let job = try a.begin("vm1", disks: ["vda"], tag: "job")
            expectRefused(try a.cli(export), job.id)
            try a.end("vm1", job)
            expectRefused(
                try a.cli(["disk-export-state", "vm1", "vdz", file]), "vdz")
            expectRefused(
                try a.cli(["disk-export-state", "vm1", "/nowhere/disk.state"]), "/nowhere")
            #expect(!Files.exists(file))
            try pair.write(on: a)
            _ = try pair.incremental(on: a, from: "c0", over: old)
            try pair.export(from: a, to: file)
            let bytes = try Bytes.ofFile(file)

            expectRefused(try b.cli(["disk-import-state", "vm1", file]), "Domain not found")
            try pair.define(on: b, uuid: "11111111-2222-3333-4444-555555555555").output()
            expectRefused(try b.cli(["disk-import-state", "vm1", file]), "with the same uuid")
            try b.cli(["undefine", "vm1"]).output()
            var other = pair.disks[1]
            other.path = pair.directory.file("small.img")
            _ = try Images.random(other.path, bytes: 1 << 20, seed: 1)
            try pair.define(on: b, disk: other).output()
            expectRefused(try b.cli(["disk-import-state", "vm1", file]), "1048576 bytes here")
            try b.cli(["undefine", "vm1"]).output()
            other.path = pair.disks[1].path
            other.target = "vdb"
            try pair.define(on: b, disk: other).output()
            expectRefused(try b.cli(["disk-import-state", "vm1", file]), "vda")
            try b.cli(["undefine", "vm1"]).output()

            try pair.define(on: b).output()
            let damaged = pair.directory.file("damaged.state")
            for (change, words) in [
                ({ (bytes: inout [UInt8]) in bytes[bytes.count / 2] ^= 1 }, "checksum"),
                ({ $0.removeLast() }, "cut off"), ({ $0.append(0) }, "longer"),
                ({ $0[19] = UInt8(ascii: "9") }, "newer version"), ({ $0 = [] }, "no state"),
            ] as [((inout [UInt8]) -> Void, String)] {
                var changed = bytes
                change(&changed)
                try Data(changed).write(to: URL(fileURLWithPath: damaged))
                expectRefused(try b.cli(["disk-import-state", "vm1", damaged]), words)
            }
            let machine = try NBDClient(b.liveURI("vm1", "vda"))
            expectRefused(try b.cli(["disk-import-state", "vm1", file]), "1 client")
            try machine.disconnect()
            try b.cli(["checkpoint-create-as", "vm1", "--name", "own"]).output()
            expectRefused(
                try b.cli(["disk-import-state", "vm1", file]), "checkpoints of its own here (own)")
            try b.cli(["checkpoint-delete", "vm1", "own"]).output()
            // Nobody knows what was written before that checkpoint.
            let move = try pair.importState(to: b, from: file)
            #expect(move.disks[0].allChanged?.contains("did not record all") == true)
            #expect(
                try pair.incremental(on: b, from: "c0", over: old).dirtyBytes == MovingPair.bytes)
        }

        @Test("P3: a disk that was changed on the way counts as changed, but for the caller's word")
        func changedOnTheWay() throws {
            for isVouchedFor in [false, true] {
                let pair = try pair()
                let (a, b) = (pair.here, pair.there)
                let old = try pair.full(on: a, checkpoint: "c0")
                let file = pair.directory.file("disk.state")
                try pair.export(from: a, to: file)
                let disk = try FileHandle(forUpdating: URL(fileURLWithPath: pair.disks[0].path))
                try disk.seek(toOffset: 5_000_000)
                try disk.write(contentsOf: [pair.content[5_000_000] ^ 0xFF])
                try disk.close()
                pair.noteForeignWrite(pair.content[5_000_000] ^ 0xFF, at: 5_000_000)
                try pair.define(on: b).output()
                let move = try pair.importState(
                    to: b, from: file, isVouchedFor ? ["--unchanged"] : [])
                #expect((move.disks[0].allChanged == nil) == isVouchedFor, "\(move)")
                if !isVouchedFor { _ = try pair.incremental(on: b, from: "c0", over: old) }
            }
        }

        @Test("P3: a move is taken back, and given up")
        func takenBack() throws {
            let pair = try pair()
            let a = pair.here
            let old = try pair.full(on: a, checkpoint: "c0")
            let file = pair.directory.file("disk.state")
            try pair.export(from: a, to: file)
            // Nobody was told that it was done.
            #expect(try pair.export(from: a, to: file).disks[0].checkpoints == ["c0"])
            // The file is lost on the way: it is written once more.
            let again = pair.directory.file("again.state")
            #expect(try pair.export(from: a, to: again).disks[0].generation == 1)
            #expect(try pair.importState(to: a, from: again).disks[0].allChanged == nil)
            try pair.write(on: a)
            _ = try pair.incremental(on: a, from: "c0", over: old)
            expectRefused(try a.cli(["disk-import-state", "vm1", file]), "a file is used once")
            // All is lost: the disk is defined anew, without checkpoints.
            let last = pair.directory.file("last.state")
            #expect(try pair.export(from: a, to: last).disks[0].generation == 2)
            try a.cli(["undefine", "vm1", "--checkpoints"]).output()
            try pair.define(on: a, disk: pair.disks[0]).output()
            try pair.write(on: a)
            a.kill()
            try a.start()
            _ = try pair.full(on: a, checkpoint: "c0")
        }

        @Test("P3: a kill -9 in the midst of an export or import leaves one owner at most")
        func killedMidway() throws {
            let pair = try pair()
            let (a, b) = (pair.here, pair.there)
            var image = try pair.full(on: a, checkpoint: "c0")
            try pair.define(on: b)
            var (from, to) = (a, b)
            for round in 0..<16 {
                let file = pair.directory.file("move-\(round).state")
                let cut = Double(round % 8) * 0.025
                let export = try from.startCLI(["disk-export-state", "vm1", "vda", file])
                Thread.sleep(forTimeInterval: 0.01 + cut)
                from.kill()
                _ = try export.result(timeout: 20)
                let isComplete = Files.exists(file)
                try from.start()
                let serves = (try? NBDClient(from.liveURI("vm1", "vda"))) != nil
                #expect(!(serves && isComplete), "round \(round): two owners")
                if serves {
                    image = try pair.incremental(on: from, from: "c0", over: image).image
                }
                if !isComplete { try pair.export(from: from, to: file) }
                #expect((try? NBDClient(from.liveURI("vm1", "vda"))) == nil)

                if round < 1 { try pair.define(on: to).output() }
                let arrival = try to.startCLI(["disk-import-state", "vm1", file])
                Thread.sleep(forTimeInterval: 0.01 + cut)
                to.kill()
                _ = try arrival.result(timeout: 20)
                try to.start()
                let again = try to.cli(["disk-import-state", "vm1", file, "--force"])
                #expect(
                    again.succeeded || again.stderr.contains("a file is used once"), "\(again)")
                try pair.write(on: to)
                image = try pair.incremental(on: to, from: "c0", over: image).image
                (from, to) = (to, from)
            }
        }
    }
}
