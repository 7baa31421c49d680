import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Clients of Debian 13, which speak extended headers: qemu 10, libnbd 1.22, nbdkit 1.42.
    @Suite struct CurrentClientTests {
        @Test("qemu-io 10 uses every command, aligned and not", arguments: ["vda", "vdb"])
        func qemuIO(target: String) throws {
            let fixture = try LiveFixture()
            let last = fixture.sizeBytes - 1
            let steps = [
                "write 0 64k", "read -P 0xcd 0 64k", "write -P 0x5a 1023 4097",
                "read -P 0x5a 1023 4097", "read -P 0xcd 0 1023", "write -f -P 7 8M 64k",
                "read -P 7 8M 64k", "writev -P 9 1M 4k 8k", "read -P 9 1M 12k",
                "write -z 100k 333k", "read -P 0 100k 333k", "write -z -u 2M 2M",
                "read -P 0 2M 2M", "discard 4M 1M", "read -P 0 4M 1M", "write -P 1 \(last) 1",
                "read -P 1 \(last) 1", "aio_write -P 3 9M 4M", "aio_flush", "read -P 3 9M 4M",
                "flush", "map",
            ]
            let output = try CurrentClients.run(
                "qemu-io",
                ["-f", "raw"] + steps.flatMap { ["-c", $0] } + [fixture.uri(target)])
            #expect(!output.contains("failed"), "\(output)")
            let found = try Bytes.ofFile(fixture.path(target))
            #expect(found[0..<1023].allSatisfy { $0 == 0xcd } && found[last] == 1)
            #expect(found[(9 << 20)..<(13 << 20)].allSatisfy { $0 == 3 })
            try fixture.server.stop()
        }

        @Test("qemu-img 10 and nbdcopy 1.22 copy into a live export", arguments: [false, true])
        func copiesIn(tcp: Bool) throws {
            let fixture = try LiveFixture()
            let new = fixture.directory.file("new")
            try Images.mixed(new, bytes: fixture.sizeBytes, seed: 5)
            try CurrentClients.run(
                "qemu-img",
                ["convert", "-n", "-f", "raw", "-O", "raw", new, fixture.uri("vda", tcp: tcp)])
            try Images.expectEqual(new, fixture.path("vda"))
            try CurrentClients.run("nbdcopy", ["--flush", new, fixture.uri("vdb", tcp: tcp)])
            try Images.expectEqual(new, fixture.path("vdb"))
            try fixture.server.stop()
        }

        @Test(
            "P1: qemu-img 10 and nbdcopy 1.22 agree on a backup export", arguments: [false, true])
        func backupCopies(tcp: Bool) throws {
            let fixture = try LiveFixture()
            let before = fixture.directory.file("before")
            try Command.run("cp", [fixture.path("vda"), before]).output()
            let job = try fixture.begin(tcp: tcp)
            try CurrentClients.run(
                "qemu-io", ["-f", "raw", "-c", "write -P 1 3M 5M", fixture.uri("vda")])
            let uri = try job.uri("vda")
            let info = try CurrentClients.run("nbdinfo", [uri])
            #expect(info.contains("extended packets"), "\(info)")
            for (name, arguments) in [
                ("nbdcopy", [uri]), ("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri]),
            ] {
                let copy = fixture.directory.file(name)
                try CurrentClients.run(name, arguments + [copy])
                try Images.expectEqual(copy, before)
            }
            try CurrentClients.run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, before])
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("P3: qemu-img 10 and nbdinfo 1.22 see what changed since a checkpoint")
        func dirtyMaps() throws {
            let fixture = try LiveFixture()
            let full = try fixture.server.begin(
                "vm1", disks: ["vda"], tag: "full", checkpoint: "c1")
            try fixture.server.end("vm1", full)
            try CurrentClients.run(
                "qemu-io", ["-f", "raw", "-c", "write 1M 64k", fixture.uri("vda")])
            let job = try fixture.server.begin(
                "vm1", disks: ["vda"], tag: "inc", incremental: "c1")
            let context = "qemu:dirty-bitmap:backup-vda"
            let map = try CurrentClients.run(
                "nbdinfo", ["--map=" + context, try job.uri("vda")])
            let rows = map.split(separator: "\n").map {
                $0.split(separator: " ").prefix(3).map(String.init)
            }
            #expect(
                rows == [
                    ["0", "1048576", "0"], ["1048576", "65536", "1"],
                    ["1114112", "\(fixture.sizeBytes - 1_114_112)", "0"],
                ])
            let socket = try fixture.socket(of: job)
            let image =
                "driver=nbd,server.type=unix,server.path=\(socket),export=vda"
                + ",x-dirty-bitmap=\(context)"
            let dirty = try CurrentClients.run(
                "qemu-img", ["map", "--output=json", "--image-opts", image])
            #expect(dirty.contains("\"start\": 1048576, \"length\": 65536"), "\(dirty)")
            try fixture.server.stop()
        }

        @Test("an nbdsh 1.22 script uses every command", arguments: ["vda", "vdb"])
        func nbdsh(target: String) throws {
            let fixture = try LiveFixture(bytes: 40 << 20)
            let script = """
                assert h.get_extended_headers_negotiated()
                assert h.can_block_status_payload()
                h.pwrite(b'A' * 5000, 1234, nbd.CMD_FLAG_FUA)
                h.zero(1000, 2000, nbd.CMD_FLAG_NO_HOLE)
                h.trim(65536, 131072)
                h.cache(65536, 0)
                h.flush()
                data = h.pread(5000, 1234)
                assert data == b'A' * 766 + bytes(1000) + b'A' * 3234, 'wrong bytes'
                for count in 1 << 20, (1 << 20) + 1, 32 << 20:
                    chunks = []
                    data = h.pread_structured(count, 777, lambda buf, offset, status, error:
                        chunks.append((offset, len(buf), status)), nbd.CMD_FLAG_DF)
                    assert chunks == [(777, count, nbd.READ_DATA)], chunks
                    assert data == b''.join(
                        h.pread(min(4096 * 100, count - p), 777 + p)
                        for p in range(0, count, 4096 * 100)), 'not what plain reads say'
                """
            try CurrentClients.run("nbdsh", ["-u", fixture.uri(target), "-c", script])
            try fixture.server.stop()
        }

        @Test("nbdkit 1.42 passes an export on")
        func nbdkit() throws {
            let fixture = try LiveFixture()
            let plugin = try CurrentClients.path("nbdkit-nbd-plugin.so")
            let socket = fixture.directory.file("kit.sock")
            let kit = try Command(
                try CurrentClients.path("nbdkit"),
                ["-f", "-U", socket, plugin, "uri=" + fixture.uri("vda")])
            try kit.wait(for: "socket") { _ in Files.isListening(socket) }
            let new = fixture.directory.file("new")
            try Images.mixed(new, bytes: fixture.sizeBytes, seed: 8)
            try CurrentClients.run("nbdcopy", [new, "nbd+unix:///?socket=" + socket])
            try Images.expectEqual(new, fixture.path("vda"))
            kit.terminate()
            _ = try kit.result()
            try fixture.server.stop()
        }

        @Test("P1: a guest of qemu 10 makes a file system, survives a killed server, is backed up")
        func guest() throws {
            try GuestMachine.backUpMidst(
                qemu: try CurrentClients.path("qemu-system-x86_64"),
                run: { _ = try CurrentClients.run($0, $1) },
                meanwhile: { guest, server in
                    try guest.wait(for: "first mark", timeout: 240) {
                        $0.stdout.contains("GUEST:MARK 1")
                    }
                    // The guest's qemu connects again and repeats what was not answered.
                    server.kill()
                    try server.start()
                })
        }
    }
}
