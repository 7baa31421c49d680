import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Exports with dirty bitmaps from several bases.
    @Suite struct SeveralBitmapsTests {
        private static let bytes = 16 << 20
        private static let prefix = "qemu:dirty-bitmap:"

        /// A server whose disk has checkpoints c0, c1 and c2, with changes after each.
        private func server() throws -> ServerUnderTest {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk.img")
            _ = try Images.random(path, bytes: Self.bytes, seed: 5)
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])], in: directory)
            for index in 0..<3 {
                try server.cli(["checkpoint-create-as", "vm1", "--name", "c\(index)"]).output()
                let client = try NBDClient(server.liveURI("vm1", "vda"))
                try client.write(
                    [UInt8](repeating: 7, count: 100_000), at: index * 4_000_000 + 500_000)
                try client.flush()
                try client.disconnect()
            }
            return server
        }

        private func xml(
            _ server: ServerUnderTest, _ tag: String, attributes: String = "", _ bitmaps: String
        ) -> String {
            """
            <domainbackup mode='pull'>
              <server transport='unix' socket='\(server.directory.file("job-\(tag).sock"))'/>
              <disks>
                <disk name='vda' backup='yes' type='file' \(attributes)>
                  \(bitmaps)
                  <scratch file='\(server.directory.file("scratch-\(tag)"))'/>
                </disk>
              </disks>
            </domainbackup>
            """
        }

        private func bitmap(_ checkpoint: String, _ name: String? = nil) -> String {
            let name = name.map { " name='\($0)'" } ?? ""
            return "<bitmap xmlns='urn:nbdpull:backup:1' checkpoint='\(checkpoint)'\(name)/>"
        }

        private func start(
            _ server: ServerUnderTest, _ tag: String, _ text: String
        ) throws -> CommandResult {
            let file = server.directory.file(tag + ".xml")
            try Files.write(text, to: file)
            return try server.cli(["backup-begin", "vm1", file, "--json"])
        }

        private func begin(
            _ server: ServerUnderTest, _ tag: String, _ text: String
        ) throws -> BegunJob {
            try BegunJob(json: try start(server, tag, text).output())
        }

        /// What an incremental job from a base says: all of its bitmap, and as nbdinfo prints it.
        private func alone(
            _ server: ServerUnderTest, _ base: String
        ) throws -> (map: [NBDExtent], text: String) {
            let job = try server.begin("vm1", disks: ["vda"], tag: "alone", incremental: base)
            let context = Self.prefix + "backup-vda"
            let client = try NBDClient(try job.uri("vda"), .contexts(context))
            let map = try client.map(context)
            try client.disconnect()
            let text = try Command.run(
                "nbdinfo", ["--map=\(context)", try job.uri("vda")]
            ).output()
            try server.end("vm1", job)
            return (map, text)
        }

        private func expectAll(
            _ uri: String, _ names: [String: String], _ server: ServerUnderTest,
            _ expected: [String: (map: [NBDExtent], text: String)], line: Int = #line
        ) throws {
            let contexts = names.keys.sorted().map { Self.prefix + $0 }
            var options = NBDClientOptions()
            options.contexts = ["base:allocation"] + contexts
            let client = try NBDClient(uri, options)
            for (name, base) in names {
                let context = Self.prefix + name
                #expect(try client.map(context) == expected[base]?.map, "\(name), line \(line)")
                let text = try Command.run("nbdinfo", ["--map=\(context)", uri]).output()
                #expect(text == expected[base]?.text, "\(name), line \(line)")
            }
            try client.disconnect()
        }

        @Test("P3: each bitmap of an export is what a job from its base alone would show")
        func several() throws {
            let server = try server()
            var expected: [String: (map: [NBDExtent], text: String)] = [:]
            for base in ["c0", "c1", "c2"] { expected[base] = try alone(server, base) }
            #expect(expected["c0"]?.text != expected["c1"]?.text)
            #expect(expected["c1"]?.text != expected["c2"]?.text)

            let job = try begin(
                server, "inc",
                xml(
                    server, "inc", attributes: "backupmode='incremental' incremental='c2'",
                    bitmap("c0", "since-c0") + bitmap("c1")))
            let uri = try job.uri("vda")
            let names = ["backup-vda": "c2", "since-c0": "c0", "backup-vda-c1": "c1"]
            try expectAll(uri, names, server, expected)
            // What comes later is in none of them, and a base may go.
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.write([UInt8](repeating: 9, count: 70_000), at: 15_000_000)
            try guest.disconnect()
            try server.cli(["checkpoint-delete", "vm1", "c1"]).output()
            try expectAll(uri, names, server, expected)
            let text = try server.cli(["backup-dumpxml", "vm1"]).output()
            #expect(text.contains("checkpoint='c1' name='backup-vda-c1'/>"), "\(text)")
            server.kill()
            try server.start()
            try expectAll(uri, names, server, expected)
            try server.end("vm1", job)

            let later = try alone(server, "c2")
            let full = try begin(
                server, "full", xml(server, "full", attributes: "", bitmap("c2", "x")))
            #expect(try full.export("vda").bitmap == nil)
            try expectAll(try full.uri("vda"), ["x": "c2"], server, ["c2": later])
            let info = try Command.run("nbdinfo", [try full.uri("vda")]).output()
            #expect(info.contains(Self.prefix + "x"))
            let copy = server.directory.file("copy")
            try Command.run("nbdcopy", [try full.uri("vda"), copy]).output()
            try server.end("vm1", full)
            #expect(try Bytes.ofFile(copy) == (try Bytes.ofFile(server.directory.file("disk.img"))))
            // Off unless asked for.
            let plain = try server.begin("vm1", disks: ["vda"], tag: "plain", incremental: "c2")
            let all = try Command.run("nbdinfo", [try plain.uri("vda")]).output()
            #expect(all.components(separatedBy: Self.prefix).count == 2, "\(all)")
            try server.end("vm1", plain)
            try server.stop()
        }

        @Test("P3: bitmaps that cannot be offered refuse the job")
        func refused() throws {
            let server = try server()
            let many = (0..<17).map { bitmap("c0", "n\($0)") }.joined()
            for (index, (attributes, bitmaps, words)) in [
                ("", bitmap("c9"), "c9"), ("", bitmap("c0") + bitmap("c0"), "two bitmaps named"),
                (
                    "backupmode='incremental' incremental='c2'", bitmap("c0", "backup-vda"),
                    "two bitmaps named"
                ),
                ("", "<bitmap xmlns='urn:nbdpull:backup:1'/>", "needs checkpoint="),
                ("", "<bitmap checkpoint='c0'/>", "<bitmap> is not allowed"),
                (
                    "", "<bitmap xmlns='urn:nbdpull:backup:1' checkpoint='c0' nam='x'/>",
                    "attribute 'nam'"
                ),
                ("", many, "16 bitmaps"),
            ].enumerated() {
                let result = try start(
                    server, "r\(index)",
                    xml(server, "r\(index)", attributes: attributes, bitmaps))
                #expect(result.status == 1 && result.stderr.contains(words), "\(result)")
            }
            #expect(try server.cli(["backup-list", "vm1", "--json"]).output().contains("[]"))
            try server.stop()
        }
    }
}
