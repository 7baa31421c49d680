import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Images that another program opens.
    @Suite struct AdapterTests {
        private static let bytes = 4 << 20

        private func image(
            _ directory: TemporaryDirectory, _ format: String, _ options: [String] = []
        ) throws -> (path: String, content: [UInt8]) {
            let raw = directory.file("disk.raw")
            let content = try Images.random(raw, bytes: Self.bytes, seed: 9)
            let path = directory.file("disk." + format)
            try Command.run("qemu-img", ["convert", "-O", format] + options + [raw, path]).output()
            return (path, content)
        }

        /// A server whose machine has one qcow2 image.
        private func serverWithImage(
            _ directory: TemporaryDirectory
        ) throws -> (ServerUnderTest, DiskDescription) {
            var disk = DiskDescription("vda", try image(directory, "qcow2").path)
            disk.format = "qcow2"
            let server = try ServerUnderTest([])
            let file = directory.file("vm1.xml")
            try Files.write(DomainDescription("vm1", [disk]).xml, to: file)
            try server.cli(["define", file]).output()
            return (server, disk)
        }

        private func content(
            _ path: String, _ format: String, _ directory: TemporaryDirectory
        ) throws -> [UInt8] {
            let copy = directory.file("copy.raw")
            try Command.run("qemu-img", ["convert", "-f", format, "-O", "raw", path, copy]).output()
            return try Bytes.ofFile(copy)
        }

        @Test(
            "P5: the bytes of an image are those that qemu finds in it, also when written here",
            arguments: ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
        func formats(format: String) throws {
            let directory = try TemporaryDirectory()
            // A VHD's size is rounded up, but for this.
            let options = format == "vpc" ? ["-o", "force_size"] : []
            var (path, expected) = try image(directory, format, options)
            let export = try ExportUnderTest(path, options: ["--format", format])
            let client = try NBDClient(export.uri)
            #expect(try client.read(0, Self.bytes) == expected)
            let new = [UInt8](repeating: 0x5A, count: 100_000)
            try client.write(new, at: 1_000_000)
            expected.replaceSubrange(1_000_000..<1_100_000, with: new)
            try client.flush()
            #expect(try client.read(0, Self.bytes) == expected)
            try client.disconnect()
            try export.stop()
            #expect(try content(path, format, directory) == expected)
        }

        @Test("P5: compressed clusters, and data in a file of its own that the disk names")
        func compressedAndDataFile() throws {
            let directory = try TemporaryDirectory()
            let (path, expected) = try image(directory, "qcow2", ["-c"])
            let export = try ExportUnderTest(path, options: ["--format", "qcow2"])
            let client = try NBDClient(export.uri)
            #expect(try client.read(0, Self.bytes) == expected)
            try client.disconnect()
            try export.stop()

            let outside = directory.file("outside.qcow2")
            let data = directory.file("outside.data")
            try Command.run(
                "qemu-img",
                [
                    "create", "-q", "-f", "qcow2", "-o", "data_file=\(data),data_file_raw=on",
                    outside, "4M",
                ]
            ).output()
            let refused = try Command.run(
                try ServerUnderTest.binary(),
                ["export", "--format", "qcow2", "--socket", directory.file("s"), outside])
            #expect(refused.status == 1 && refused.stderr.contains("<dataStore>"), "\(refused)")
        }

        @Test("P5: nothing is opened because an image names it")
        func unnamedBacking() throws {
            let directory = try TemporaryDirectory()
            let (base, _) = try image(directory, "qcow2")
            let top = directory.file("top.qcow2")
            try Command.run(
                "qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top]
            ).output()
            let flat = directory.file("flat.vmdk")
            try Command.run(
                "qemu-img",
                ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "4M"]
            ).output()
            let child = directory.file("child.vmdk")
            let parent = directory.file("parent.vmdk")
            try Command.run("qemu-img", ["create", "-q", "-f", "vmdk", parent, "4M"]).output()
            try Command.run(
                "qemu-img", ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", parent, child]
            ).output()
            for (path, format, words) in [
                (child, "vmdk", "builds on another"),
                (top, "qcow2", "<backingStore>"), (flat, "vmdk", "names others"),
                (base, "vmdk", "no VMDK image"), (flat, "qcow2", "not a qcow2 image"),
                (directory.file("none"), "qcow2", "does not exist"),
                ("/dev/null", "qcow2", "neither a file nor"),
            ] {
                let refused = try Command.run(
                    try ServerUnderTest.binary(),
                    ["export", "--format", format, "--socket", directory.file("s"), path])
                #expect(refused.status == 1 && refused.stderr.contains(words), "\(refused)")
            }
        }

        @Test(
            "P5: an encrypted image is opened with the passphrase in a file",
            arguments: [true, false])
        func encrypted(isQcow2: Bool) throws {
            let directory = try TemporaryDirectory()
            let secret = directory.file("secret")
            try Files.write("open sesame", to: secret)
            let path = directory.file("disk.luks")
            let options =
                isQcow2
                ? [
                    "-f", "qcow2", "-o",
                    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                ]
                : ["-f", "luks", "-o", "key-secret=s,iter-time=10"]
            try Command.run(
                "qemu-img",
                ["create", "-q", "--object", "secret,id=s,file=\(secret)"] + options + [path, "4M"]
            ).output()
            let xml = """
                <domain type='none'><name>vm1</name><devices>
                  <disk type='file' device='disk'>
                    <driver name='qemu' type='\(isQcow2 ? "qcow2" : "raw")'/>
                    <source file='\(path)'>
                      <encryption format='luks'>
                        <secret xmlns='urn:nbdpull:disk:1' file='\(secret)'/>
                      </encryption>
                    </source>
                    <target dev='vda'/>
                  </disk>
                </devices></domain>
                """
            let file = directory.file("vm1.xml")
            try Files.write(xml, to: file)
            let server = try ServerUnderTest([])
            try server.cli(["define", file]).output()
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            let new = [UInt8](repeating: 0x77, count: 65_536)
            try client.write(new, at: 65_536)
            try client.flush()
            #expect(try client.read(65_536, 65_536) == new)
            #expect(client.sizeBytes == 4 << 20)
            try client.disconnect()
            let job = try server.begin("vm1", disks: ["vda"], tag: "one")
            let copy = directory.file("copy")
            try Command.run("nbdcopy", [try job.uri("vda"), copy]).output()
            #expect(Array(try Bytes.ofFile(copy)[65_536..<131_072]) == new)
            try server.end("vm1", job)
            try server.stop()
        }

        /// Starts commands and waits for all of them.
        private func run(
            _ client: NBDClient, _ begin: () throws -> [NBDTicket]
        ) throws {
            for ticket in try begin() {
                var outcome = client.outcome(of: ticket)
                while outcome == nil {
                    NBDClient.waitForActivity([client], milliseconds: 100)
                    outcome = client.outcome(of: ticket)
                }
                if case .failed(let failure) = outcome { throw failure }
            }
        }

        /// Zeroes one part of each cluster while another one is written; both must last.
        private func changeParts(_ client: NBDClient, round: Int = 0) throws {
            let clusters = client.sizeBytes / 65_536
            let zeroed = 4096 + round * 512
            func bytes(_ index: Int) -> [UInt8] {
                [UInt8](repeating: UInt8(1 + index % 255), count: 4096)
            }
            try run(client) {
                try (0..<clusters).flatMap { index throws in
                    [
                        try client.startWrite(bytes(index), at: index * 65_536),
                        try client.startZero(index * 65_536 + 8192, zeroed),
                    ]
                }
            }
            for index in 0..<clusters {
                #expect(try client.read(index * 65_536, 4096) == bytes(index), "\(index)")
                let zeros = try client.read(index * 65_536 + 8192, zeroed)
                #expect(zeros.allSatisfy { $0 == 0 }, "\(index)")
            }
        }

        @Test(
            "P1: a part of a cluster is zeroed while another part of it is written",
            arguments: ["adapter", "upstream"])
        func partOfCluster(by way: String) throws {
            let directory = try TemporaryDirectory()
            let (path, _) = try image(directory, "qcow2")
            var upstream: UpstreamServer?
            let export: ExportUnderTest
            if way == "adapter" {
                export = try ExportUnderTest(path, options: ["--format", "qcow2"])
            } else {
                let server = try UpstreamServer(.qemu(["-f", "qcow2"]), over: path)
                upstream = server
                export = try ExportUnderTest(server.uri)
            }
            let client = try NBDClient(export.uri)
            for round in 0..<4 {
                // Clusters that are zeros and have room: qemu would free them, and what is being
                // written to them.
                try run(client) {
                    try (0..<(Self.bytes / 65_536)).map { index throws in
                        try client.startZero(index * 65_536, 65_536, .noHole)
                    }
                }
                try changeParts(client, round: round)
            }
            try client.disconnect()
            try export.stop()
            upstream?.kill()
            try Command.run("qemu-img", ["check", "-q", path]).output()
        }

        @Test("P1: the same where the cluster comes from the image below")
        func partOfClusterBelow() throws {
            let directory = try TemporaryDirectory()
            let (base, path) = (directory.file("base"), directory.file("top"))
            var content = [UInt8](repeating: 0, count: 32 << 20)
            for cluster in stride(from: 8192, to: content.count, by: 65_536) {
                for index in cluster..<cluster + 4096 { content[index] = 7 }
            }
            try Data(content).write(to: URL(fileURLWithPath: base))
            // Zeros are holes, so that qemu knows them for zeros.
            try Command.run("fallocate", ["--dig-holes", base]).output()
            try Command.run(
                "qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path]
            ).output()
            let server = try UpstreamServer(.qemu(["-f", "qcow2"]), over: path)
            let export = try ExportUnderTest(server.uri)
            let client = try NBDClient(export.uri)
            try changeParts(client)
            try client.disconnect()
            try export.stop()
            server.kill()
        }

        @Test(
            "P2: a program that opens an image ends with its server, and does not keep the next out"
        )
        func ends() throws {
            let directory = try TemporaryDirectory()
            let (server, disk) = try serverWithImage(directory)
            for _ in 0..<3 {
                let client = try NBDClient(server.liveURI("vm1", "vda"))
                try client.write([1, 2, 3], at: 5)
                try client.flush()
                server.kill()
                try server.start()
            }
            try server.stop()
            // Every program has let go of it.
            try Command.run("qemu-img", ["check", "-q", disk.path]).output()
            #expect(Array(try content(disk.path, "qcow2", directory)[5..<8]) == [1, 2, 3])
        }

        @Test(
            "P1: what dies with server and program is told, and only what was not durable",
            arguments: [false, true])
        func diesWithBoth(isFlushed: Bool) throws {
            func notes() -> Set<String> {
                Set(
                    Files.listing("/dev/shm/nbdpull-\(getuid())").filter {
                        $0.hasPrefix("unflushed-")
                    })
            }
            let before = notes()
            let directory = try TemporaryDirectory()
            let (server, disk) = try serverWithImage(directory)
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            var client = try NBDClient(server.liveURI("vm1", "vda"))
            try client.write([1, 2, 3], at: 5)
            if isFlushed { try client.flush() }
            // At once: the server would write to the next program what was not durable.
            Foundation.kill(server.processID, SIGSTOP)
            try Command.run("pkill", ["-9", "-f", "qemu-storage-daemon.*\(disk.path)"]).output()
            server.kill()
            try server.start()
            #expect(server.stderr.contains("older checkpoints are given up") != isFlushed)
            for _ in 0..<2 {
                client = try NBDClient(server.liveURI("vm1", "vda"))
                try client.write([4], at: 100_000)
                if isFlushed {
                    try client.flush()
                } else {
                    #expect(throws: NBDFailure.self) { try client.flush() }
                }
                try client.disconnect()
                // It is kept, and not told of a disk that has lost nothing.
                server.kill()
                try server.start()
            }
            try server.cli(["detach-disk", "vm1", "vda"]).output()
            let disks = directory.file("disk.xml")
            try Files.write(disk.xml, to: disks)
            try server.cli(["attach-device", "vm1", disks]).output()
            client = try NBDClient(server.liveURI("vm1", "vda"))
            try client.write([4], at: 100_000)
            try client.flush()
            try client.disconnect()
            try server.stop()
            #expect(notes().isSubset(of: before))
        }

        @Test("P3: an image that was changed while no server had it is dirty as a whole")
        func changedMeanwhile() throws {
            let directory = try TemporaryDirectory()
            let (base, _) = try image(directory, "qcow2")
            let path = directory.file("top.qcow2")
            try Command.run(
                "qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path]
            ).output()
            let server = try ServerUnderTest([])
            let file = directory.file("vm1.xml")
            let xml = """
                <domain type='none'><name>vm1</name><devices>
                  <disk type='file' device='disk'>
                    <driver name='qemu' type='qcow2'/>
                    <source file='\(path)'/>
                    <backingStore type='file'>
                      <format type='qcow2'/><source file='\(base)'/><backingStore/>
                    </backingStore>
                    <target dev='vda'/>
                  </disk>
                </devices></domain>
                """
            try Files.write(xml, to: file)
            try server.cli(["define", file]).output()
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            func expectDirty(_ bytes: Int, _ comment: Comment) throws {
                let report = try server.cli([
                    "checkpoint-dumpxml", "vm1", "c1", "--size", "--no-domain",
                ]).output()
                #expect(report.contains("size='\(bytes)'"), "\(comment): \(report)")
            }
            let client = try NBDClient(server.liveURI("vm1", "vda"))
            try client.write([1, 2, 3], at: 200_000)
            try client.disconnect()
            // Whatever it costs the file, a stop in order is no change.
            for _ in 0..<2 {
                try server.stop()
                try server.start()
                try expectDirty(65_536, "nobody had it")
            }
            try server.stop()
            try Command.run("qemu-io", ["-f", "qcow2", "-c", "write -P 7 1M 64k", path]).output()
            try server.start()
            try expectDirty(Self.bytes, "the image was written")
            try server.cli(["checkpoint-delete", "vm1", "c1"]).output()
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            try server.stop()
            // An image below is read only, and changes what the disk holds as well.
            try Command.run(
                "qemu-io", ["-f", "qcow2", "-c", "write -P 9 2M 64k", base]
            ).output()
            try server.start()
            try expectDirty(Self.bytes, "the image below was written")
            try server.stop()
        }

        @Test("P2: a disk that is detached leaves its image to others at once")
        func detached() throws {
            let directory = try TemporaryDirectory()
            let (path, _) = try image(directory, "qcow2")
            let server = try ServerUnderTest([])
            let file = directory.file("vm1.xml")
            var disk = DiskDescription("vda", path)
            disk.format = "qcow2"
            try Files.write(DomainDescription("vm1", [disk]).xml, to: file)
            for _ in 0..<2 {
                try server.cli(["define", file]).output()
                let held = try Command.run("qemu-img", ["check", "-q", path])
                #expect(!held.succeeded, "another writer must be kept out")
                try server.cli(["undefine", "vm1"]).output()
                try Command.run("qemu-img", ["check", "-q", path]).output()
            }
            try server.stop()
        }
    }
}
