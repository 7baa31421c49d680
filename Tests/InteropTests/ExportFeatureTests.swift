import Foundation
import TestSupport
import Testing

/// What `nbdinfo --json` says about one server.
private struct ServerInfo: Decodable {
    struct Export: Decodable {
        let exportName: String
        let contexts: [String]?
        let exportSize: Int
        let isReadOnly: Bool?
        let canMultiConn: Bool?
        let canTrim: Bool?
        let canZero: Bool?
        let canFastZero: Bool?

        enum CodingKeys: String, CodingKey {
            case exportName = "export-name"
            case contexts
            case exportSize = "export-size"
            case isReadOnly = "is_read_only"
            case canMultiConn = "can_multi_conn"
            case canTrim = "can_trim"
            case canZero = "can_zero"
            case canFastZero = "can_fast_zero"
        }
    }

    let exports: [Export]

    init(_ arguments: [String]) throws {
        let text = try Command.run("nbdinfo", ["--json"] + arguments).output()
        self = try JSONDecoder().decode(ServerInfo.self, from: Data(text.utf8))
    }
}

extension InteropSuite {
    /// What each kind of export advertises, as an independent client sees it.
    @Suite struct ExportFeatureTests {
        private func expectFeatures(_ uri: String, _ expected: [String: Bool]) throws {
            for (feature, isThere) in expected.sorted(by: { $0.key < $1.key }) {
                let option =
                    ["read-only", "rotational", "tls"].contains(feature) ? "--is" : "--can"
                let result = try Command.run("nbdinfo", [option, feature, uri])
                #expect(result.status == (isThere ? 0 : 2), "\(feature): \(result)")
            }
        }

        @Test("a live export offers every write command", arguments: [false, true])
        func liveFeatures(tcp: Bool) throws {
            let fixture = try LiveFixture()
            for target in ["vda", "vdb"] {
                try expectFeatures(
                    fixture.uri(target, tcp: tcp),
                    [
                        "connect": true, "structured-reply": true, "multi-conn": true,
                        "flush": true,
                        "fua": true, "trim": true, "zero": true, "fast-zero": true, "df": true,
                        "cache": true, "read-only": false, "write": true, "tls": false,
                    ])
            }
            try fixture.server.stop()
        }

        @Test("a read-only live disk offers no write command")
        func readOnlyLiveFeatures() throws {
            let fixture = try LiveFixture()
            try expectFeatures(
                fixture.uri("vdc"),
                [
                    "read-only": true, "trim": false, "zero": false, "write": false,
                    "multi-conn": true,
                ])
            try fixture.server.stop()
        }

        @Test("a read-only export offers no write command and several connections")
        func readOnlyExport() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            let content = try Images.mixed(path, bytes: 8 << 20, seed: 5)
            let export = try ExportUnderTest(path, options: ["--read-only"])
            try expectFeatures(
                export.uri,
                [
                    "read-only": true, "multi-conn": true, "trim": false, "zero": false,
                    "fast-zero": false, "write": false, "df": true, "flush": true,
                ])
            #expect(try NBDClient(export.uri).read(0, content.count) == content)
            try export.stop()
        }

        @Test("a writable export takes writes, and its file is free afterwards")
        func writableExport() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 8 << 20)
            let export = try ExportUnderTest(path)
            let client = try NBDClient(export.uri)
            let bytes = randomBytes(1 << 20, seed: 3)
            try client.write(bytes, at: 12_345, .forceUnitAccess)
            try client.disconnect()
            try export.stop()
            #expect(Array(try Bytes.ofFile(path)[12_345..<12_345 + bytes.count]) == bytes)
            try Command.run("qemu-io", ["-f", "raw", "-c", "write 0 4k", path]).output()
        }

        @Test("an export's name and its printed URI lead to it")
        func namedExport() throws {
            let directory = try TemporaryDirectory()
            let path = directory.file("disk")
            try Images.sparse(path, bytes: 1 << 20)
            let socket = directory.file("named.sock")
            let process = try Command(
                try ServerUnderTest.binary(),
                ["export", "--socket", socket, "--name", "disk one", "--print-uri", path])
            try process.wait(for: "URI") { $0.stdout.contains("nbd+unix://") }
            let uri = process.stdout.trimmingCharacters(in: .whitespacesAndNewlines)
            #expect(try NBDClient(uri).sizeBytes == 1 << 20)
            #expect(throws: NBDFailure.self) { try NBDClient("nbd+unix:///other?socket=\(socket)") }
        }

        @Test("a backup export is what backup tools expect of one", arguments: [false, true])
        func backupFeatures(tcp: Bool) throws {
            let fixture = try LiveFixture()
            let job = try fixture.begin(tcp: tcp)
            for target in ["vda", "vdb"] {
                try expectFeatures(
                    try job.uri(target),
                    [
                        "structured-reply": true, "multi-conn": true, "flush": true, "fua": true,
                        "trim": false, "zero": false, "fast-zero": false, "df": true, "cache": true,
                        "read-only": true, "write": false,
                    ])
                let client = try NBDClient(try job.uri(target))
                #expect(client.minimumBlockSize == 1)
                #expect(client.preferredBlockSize == 4096)
                #expect(client.maximumBlockSize >= 32 << 20)
                #expect(client.sizeBytes == fixture.sizeBytes)
            }
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("lists name every export of a socket and no other")
        func lists() throws {
            let fixture = try LiveFixture()
            let live = try ServerInfo([
                "--list", "nbd+unix:///?socket=\(fixture.server.liveSocket)",
            ])
            #expect(live.exports.map(\.exportName).sorted() == ["vm1/vda", "vm1/vdb", "vm1/vdc"])
            #expect(live.exports.allSatisfy { $0.exportSize == fixture.sizeBytes })
            let job = try fixture.begin()
            let uri = try job.uri("vda").replacing("/vda?", with: "/?")
            var options = NBDClientOptions()
            options.optionMode = true
            #expect(try NBDClient(uri, options).listExports().sorted() == ["vda", "vdb"])
            let info = try ServerInfo([try job.uri("vda")])
            #expect(info.exports.first?.contexts == ["base:allocation"])
            #expect(info.exports.first?.isReadOnly == true)
            try fixture.server.stop()
        }

        @Test("a dirty bitmap is offered by incremental jobs only")
        func bitmapContext() throws {
            let fixture = try LiveFixture()
            let server = fixture.server
            let full = try server.begin("vm1", disks: ["vda"], tag: "full", checkpoint: "c1")
            #expect(try full.export("vda").bitmap == nil)
            try server.end("vm1", full)
            try NBDClient(fixture.uri("vda")).write([1, 2, 3], at: 70_000)
            let job = try server.begin("vm1", disks: ["vda"], tag: "inc", incremental: "c1")
            #expect(try job.export("vda").bitmap == "backup-vda")
            let context = "qemu:dirty-bitmap:backup-vda"
            let client = try NBDClient(try job.uri("vda"), .contexts("base:allocation", context))
            #expect(client.hasContext(context) && client.hasContext("base:allocation"))
            #expect(
                try client.map(context).filter(\.isDirty)
                    == [NBDExtent(offset: 65_536, count: 65_536, flags: 1)])
            let map = try Command.run("nbdinfo", ["--map=\(context)", try job.uri("vda")]).output()
            #expect(map.contains("dirty"))
            try server.stop()
        }

        @Test("unknown names are refused and leave the server well")
        func unknownExport() throws {
            let fixture = try LiveFixture()
            for name in ["", "vda", "vm1", "vm1/vdz", "vm2/vda"] {
                #expect(throws: NBDFailure.self, "\(name)") {
                    try NBDClient("nbd+unix:///\(name)?socket=\(fixture.server.liveSocket)")
                }
            }
            let text = try Command.run(
                "nbdinfo", ["nbd+unix:///nope?socket=\(fixture.server.liveSocket)"])
            #expect(text.status == 1)
            try fixture.server.stop()
        }
    }
}
