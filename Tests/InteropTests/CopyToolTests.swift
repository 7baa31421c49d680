import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// The programs that people copy disks with.
    @Suite struct CopyToolTests {
        @Test("nbdcopy copies out of and into a live export", arguments: [false, true])
        func nbdcopyBothWays(tcp: Bool) throws {
            let fixture = try LiveFixture()
            for target in ["vda", "vdb"] {
                let uri = fixture.uri(target, tcp: tcp)
                let copy = fixture.directory.file("copy-\(target)")
                try Command.run("nbdcopy", [uri, copy]).output()
                try Images.expectEqual(copy, fixture.path(target))
                let new = fixture.directory.file("new-\(target)")
                try Images.mixed(new, bytes: fixture.sizeBytes, seed: 99)
                try Command.run("nbdcopy", ["--flush", new, uri]).output()
                try Images.expectEqual(new, fixture.path(target))
            }
            try fixture.server.stop()
        }

        @Test("nbdcopy and qemu-img agree on a backup export", arguments: [false, true])
        func backupCopies(tcp: Bool) throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin(tcp: tcp)
            let before = fixture.directory.file("before")
            try Command.run("cp", ["--sparse=always", fixture.path("vda"), before]).output()
            let writer = try NBDClient(fixture.uri("vda"))
            for index in 0..<200 {
                try writer.write(randomBytes(10_000, seed: UInt64(index)), at: index * 70_001)
            }
            let uri = try job.uri("vda")
            let first = fixture.directory.file("first")
            let second = fixture.directory.file("second")
            try Command.run("nbdcopy", [uri, first]).output()
            try Command.run("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, second]).output()
            try Images.expectEqual(first, before)
            try Images.expectEqual(second, before)
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("qemu-img reads, compares and maps a live export")
        func qemuImg() throws {
            let fixture = try LiveFixture()
            let uri = fixture.uri("vda")
            let info = try Command.run("qemu-img", ["info", "--output=json", uri]).output()
            #expect(info.contains("\"virtual-size\": \(fixture.sizeBytes)"))
            let image = fixture.directory.file("image.qcow2")
            try Command.run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", uri, image])
                .output()
            try Command.run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", uri, image])
                .output()
            let map = try Command.run("qemu-img", ["map", "-f", "raw", "--output=json", uri])
            #expect(try map.output().contains("\"data\": true"))
            try Command.run(
                "qemu-img",
                ["convert", "-n", "-f", "qcow2", "-O", "raw", image, fixture.uri("vdb")]
            ).output()
            try Images.expectEqual(fixture.path("vdb"), fixture.path("vda"))
            try fixture.server.stop()
        }

        @Test("qemu-io reads back its patterns, aligned and not", arguments: ["vda", "vdb"])
        func qemuIO(target: String) throws {
            let fixture = try LiveFixture()
            let steps = [
                "write -P 0xa5 0 1M", "read -P 0xa5 0 1M",
                "write -P 0x5a 1023 4097", "read -P 0x5a 1023 4097", "read -P 0xa5 0 1023",
                "read -P 0xa5 5120 4096",
                "write -z 100k 333k", "read -P 0 100k 333k", "write -z -u 2M 2M", "read -P 0 2M 2M",
                "discard 4M 1M", "read -P 0 4M 1M", "write -f -P 7 8M 64k", "read -P 7 8M 64k",
                "write -P 1 64M-1 1", "flush",
            ].map { $0.replacing("64M-1", with: String(fixture.sizeBytes - 1)) }
            let arguments = steps.flatMap { ["-c", $0] }
            let result = try Command.run(
                "qemu-io", ["-f", "raw"] + arguments + [fixture.uri(target)])
            try result.output()
            #expect(!result.stdout.contains("verification failed"), "\(result)")
            try fixture.server.stop()
        }

        @Test("an nbdsh script uses every command")
        func nbdsh() throws {
            let fixture = try LiveFixture()
            let script = """
                import nbd
                assert h.get_size() == \(fixture.sizeBytes)
                h.pwrite(b'A' * 5000, 1234)
                h.zero(1000, 2000, nbd.CMD_FLAG_NO_HOLE)
                h.trim(65536, 131072)
                h.cache(65536, 0)
                h.flush()
                data = h.pread(5000, 1234)
                assert data == b'A' * 766 + bytes(1000) + b'A' * 3234, 'wrong bytes'
                chunks = []
                h.pread_structured(65536, 131072, lambda buf, offset, status, error:
                    chunks.append((offset, len(buf), status)), nbd.CMD_FLAG_DF)
                assert len(chunks) == 1, chunks
                """
            try Command.run(
                "/usr/bin/python3", ["-m", "nbd", "-u", fixture.uri("vda"), "-c", script]
            ).output()
            try fixture.server.stop()
        }

        @Test("fio verifies random writes and trims", arguments: ["vda", "vdb"])
        func fio(target: String) throws {
            let fixture = try LiveFixture()
            let common = [
                "--name=t", "--ioengine=nbd", "--uri=\(fixture.uri(target))", "--size=16m",
                "--iodepth=16", "--verify_fatal=1", "--randseed=7",
            ]
            let verify = ["--rw=randrw", "--bsrange=4k-64k", "--verify=crc32c"]
            try Command.run("fio", common + verify, timeout: 120).output()
            let trims = ["--rw=randtrimwrite", "--bs=16k", "--io_size=32m"]
            try Command.run("fio", common + trims, timeout: 120).output()
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }
    }
}
