import Foundation
import Glibc
import TestSupport
import Testing

extension InteropSuite {
    /// Which peers see and use which exports.
    @Suite struct AccessRulesTests {
        private func fixture(_ rules: String) throws -> TLSFixture {
            try TLSFixture { pki in
                let path = pki.directory.file("rules")
                try Files.write(rules, to: path)
                return ["--tls-authz", path]
            }
        }

        private func names(_ uri: String) throws -> [String] {
            var options = NBDClientOptions()
            options.optionMode = true
            return try NBDClient(uri, options).listExports()
        }

        @Test("each peer lists and uses its own, and finds nothing else")
        func table() throws {
            let fixture = try fixture(
                """
                # who            what
                dn "O=Test,CN=bob" live:vm1/vda backup:vm1
                san dns:ci-*.example.org  vm1/vdb
                psk alice        backup:*
                psk carol        other/*
                """)
            let port = Ports.free()
            var backup = fixture.server.standardBackup(disks: ["vda", "vdb"], tag: "authz")
            backup.endpoint = .tcp(port)
            backup.tls = "yes"
            let job = try fixture.server.begin("vm1", backup)
            let runner = try fixture.pki.client("runner", extra: ["dns_name = ci-7.example.org"])
            func peer(_ user: String, _ query: String) -> (String) -> String {
                { place in "nbds://\(user)localhost:\(place)?\(query)" }
            }
            let keys = "tls-psk-file=\(fixture.pki.keys)"
            let peers: [((String) -> String, live: [String], backup: [String])] = [
                (peer("", fixture.query(.certificate)), ["vm1/vda"], ["vda", "vdb"]),
                (peer("", "tls-certificates=\(runner)"), ["vm1/vdb"], ["vdb"]),
                (peer("alice@", keys), [], ["vda", "vdb"]),
                (peer("carol@", keys), [], []),
            ]
            for (uri, live, backups) in peers {
                let livePort = fixture.live.port
                #expect(try names(uri("\(livePort)/")) == live)
                #expect(try names(uri("\(port)/")) == backups)
                for name in ["vm1/vda", "vm1/vdb", "vm1/vdc"] {
                    let uri = uri("\(livePort)/\(name)")
                    if live.contains(name) {
                        _ = try NBDClient(uri)
                    } else {
                        let failure = #expect(throws: NBDFailure.self) { try NBDClient(uri) }
                        #expect(failure?.code == ENOENT, "\(String(describing: failure))")
                    }
                }
                for name in ["vda", "vdb"] where !backups.contains(name) {
                    #expect(throws: NBDFailure.self) { try NBDClient(uri("\(port)/\(name)")) }
                }
            }
            // The unix socket is guarded by its file's permissions: no rule names users or groups.
            _ = try NBDClient(fixture.live.uri("vda"))
            // A reload takes a right away from new connections.
            let before = try NBDClient(fixture.uri("vda", .certificate))
            try Files.write("psk alice *\n", to: fixture.pki.directory.file("rules"))
            #expect(try fixture.server.reload().contains("reloaded"))
            #expect(throws: NBDFailure.self) {
                try NBDClient(fixture.uri("vda", .certificate))
            }
            _ = try before.read(0, 4096)
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("users and groups on unix sockets")
        func localPeers() throws {
            let fixture = try fixture(
                """
                uid \(getuid()) live:vm1/vda
                gid 4294967294 *
                psk alice live:vm1/vdb
                """)
            #expect(try names("nbd+unix:///?socket=" + fixture.server.liveSocket) == ["vm1/vda"])
            _ = try NBDClient(fixture.live.uri("vda"))
            // Plaintext on a socket that speaks TLS as well: another peer might see the export.
            #expect(throws: NBDFailure.self) { try NBDClient(fixture.live.uri("vdb")) }
            // With a key the process has its user's rights and the key's.
            let both =
                "nbds+unix://alice@/vm1/vdb?socket=\(fixture.server.liveSocket)"
                + "&tls-psk-file=\(fixture.pki.keys)"
            _ = try NBDClient(both)
            #expect(try names(both) == ["vm1/vda", "vm1/vdb"])
            try fixture.server.stop()
        }
    }
}
