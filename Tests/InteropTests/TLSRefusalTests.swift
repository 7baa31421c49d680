import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Who is kept out, and what nobody gets to see.
    @Suite struct TLSRefusalTests {
        @Test("wrong clients are refused, and the right one is served afterwards")
        func wrongClients() throws {
            let fixture = try TLSFixture { pki in
                try pki.makeAuthority("other")
                try pki.client("revoked")
                try pki.revoke("revoked")
                return []
            }
            let pki = fixture.pki
            let keys = pki.directory.file("other.psk")
            try Files.write(
                "mallory:\(TLSFixture.aliceKey)\nalice:\(String(repeating: "00", count: 32))\n",
                to: keys)
            let refused = [
                fixture.uri(
                    "vda", certificates: try pki.client("mallory", authority: "other")),
                fixture.uri("vda", certificates: try pki.client("old", expired: true)),
                fixture.uri("vda", certificates: pki.directory.file("revoked")),
                fixture.uri("vda", certificates: try pki.clientWithoutCertificate()),
                fixture.uri("vda", user: "mallory", keys: keys),
                fixture.uri("vda", user: "alice", keys: keys),
                fixture.live.uri("vda", tcp: true),
            ]
            for uri in refused {
                // With TLS 1.3 a client learns of its refusal with its first read.
                #expect(throws: NBDFailure.self, "\(uri)") { try NBDClient(uri).read(0, 512) }
            }
            for proof in Proof.allCases {
                #expect(
                    try NBDClient(fixture.uri("vda", proof)).sizeBytes == fixture.live.sizeBytes)
            }
            let events = try fixture.server.cli(["event"]).output()
            let lines = events.split(separator: "\n").filter { $0.contains("client-refused") }
            #expect(lines.count == 6, "\(events)")
            for word in ["expired", "revoked", "ertificate"] {
                #expect(lines.contains { $0.contains(word) }, "\(word): \(events)")
            }
            #expect(!events.contains("mallory"), "events repeat what peers say")
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("a plaintext client is told to use TLS, and learns nothing")
        func plaintextPeer() throws {
            let fixture = try TLSFixture()
            let script = """
                import socket, struct
                s = socket.create_connection(('127.0.0.1', \(fixture.live.port)))
                s.settimeout(15)
                assert len(s.recv(18, socket.MSG_WAITALL)) == 18
                s.sendall(struct.pack('>I', 3))
                name = struct.pack('>I', 7) + b'vm1/vda'
                info = name + bytes(2)
                meta = name + bytes(4)
                for code, data in [(3, b''), (6, info), (7, info), (8, b''), (9, meta), (10, meta),
                                   (77, b'x')]:
                    s.sendall(struct.pack('>QII', 0x49484156454F5054, code, len(data)) + data)
                    header = s.recv(20, socket.MSG_WAITALL)
                    magic, echo, type, length = struct.unpack('>QIII', header)
                    text = s.recv(length, socket.MSG_WAITALL)
                    assert (echo, type) == (code, 0x80000005), (code, hex(type), text)
                    assert b'vm1' not in text and b'TLS' in text, text
                """
            try Command.run("/usr/bin/python3", ["-c", script]).output()
            try fixture.server.stop()
        }

        @Test("bytes on the wire: injected plaintext, garbage, half a handshake")
        func rudeBytes() throws {
            let fixture = try TLSFixture()
            let script = """
                import socket, struct, time
                def connect():
                    s = socket.create_connection(('127.0.0.1', \(fixture.live.port)))
                    s.settimeout(15)
                    assert len(s.recv(18, socket.MSG_WAITALL)) == 18
                    return s
                def option(code, data=b''):
                    return struct.pack('>QII', 0x49484156454F5054, code, len(data)) + data
                flags = struct.pack('>I', 3)
                def end(s):
                    got = b''
                    try:
                        while True:
                            piece = s.recv(4096)
                            if not piece: return got
                            got += piece
                    except ConnectionResetError:
                        return got
                # Options behind STARTTLS: no answer at all.
                s = connect()
                s.sendall(flags + option(5) + option(3))
                assert end(s) == b'', 'injected plaintext was answered'
                # The same a little later, where TLS is expected: an alert at most, never a listing.
                s = connect()
                s.sendall(flags + option(5))
                assert len(s.recv(20, socket.MSG_WAITALL)) == 20
                s.sendall(option(3))
                got = end(s)
                assert b'vm1' not in got and len(got) < 64, got
                # A record header that announces more than comes: closed by the deadline.
                begun = time.monotonic()
                s = connect()
                s.sendall(flags + option(5))
                assert len(s.recv(20, socket.MSG_WAITALL)) == 20
                s.sendall(b'\\x16\\x03\\x01\\x02\\x00\\x01')
                assert end(s) == b''
                assert 8 < time.monotonic() - begun < 13, 'deadline'
                # EXPORT_NAME without TLS: closed.
                s = connect()
                s.sendall(flags + option(1, b'vm1/vda'))
                assert end(s) == b''
                """
            try Command.run("/usr/bin/python3", ["-c", script], timeout: 40).output()
            #expect(
                try NBDClient(fixture.uri("vda", .key)).sizeBytes == fixture.live.sizeBytes)
            try fixture.server.requireHealthy()
            try fixture.server.stop()
        }

        @Test("a reload takes a client back while its connection lives on")
        func reload() throws {
            let fixture = try TLSFixture()
            let eve = try fixture.pki.client("eve")
            let uri = fixture.uri("vda", certificates: eve)
            let connected = try NBDClient(uri)
            let keyed = try NBDClient(fixture.uri("vdb", .key))
            try fixture.pki.revoke("eve")
            try fixture.pki.writeKeys(["dave": TLSFixture.aliceKey])
            try fixture.pki.makeCertificate(
                "server", role: "server", extra: ["dns_name = localhost"])
            #expect(try fixture.server.reload().contains("reloaded"))
            #expect(throws: NBDFailure.self) { try NBDClient(uri).read(0, 512) }
            #expect(throws: NBDFailure.self) {
                try NBDClient(
                    fixture.uri("vda", user: "alice", keys: fixture.pki.keys))
            }
            let block = randomBytes(300_000, seed: 3)
            for client in [connected, keyed] {
                try client.write(block, at: 1 << 20)
                #expect(try client.read(1 << 20, block.count) == block)
            }
            _ = try NBDClient(fixture.uri("vda", user: "dave", keys: fixture.pki.keys))
            _ = try NBDClient(fixture.uri("vda", .certificate))

            // What cannot be loaded changes nothing.
            try Files.write("no certificate", to: fixture.pki.server + "/server-cert.pem")
            let answer = try fixture.server.reload()
            #expect(answer.contains("not reloaded") && answer.contains("server-cert.pem"))
            _ = try NBDClient(fixture.uri("vda", .certificate))
            #expect(try connected.read(1 << 20, block.count) == block)
            try fixture.server.stop()
        }

        @Test("plaintext beyond this machine is refused by name, and TLS is not")
        func beyondLoopback() throws {
            let directory = try TemporaryDirectory()
            let pki = try PKI()
            let places = [
                "--state-dir", directory.file("state"), "--run-dir", directory.file("run"),
            ]
            let port = Ports.free()
            let refused = try Command.run(
                try ServerUnderTest.binary(),
                ["serve", "--live-tcp", "0.0.0.0:\(port)"] + places, timeout: 20)
            #expect(refused.status == 1)
            for word in ["0.0.0.0", "--allow-plaintext", "--tls-certs"] {
                #expect(refused.stderr.contains(word), "\(refused)")
            }
            let fixture = try LiveFixture(options: ["--tls-certs", pki.server])
            var backup = fixture.server.standardBackup(disks: ["vda"], tag: "wide")
            backup.endpoint = .tcp(Ports.free())
            backup.host = "0.0.0.0"
            let arguments = try fixture.server.beginArguments("vm1", backup)
            let job = try fixture.server.cli(arguments)
            #expect(job.status == 1 && job.stderr.contains("--allow-plaintext"), "\(job)")
            #expect(job.stderr.contains("tls='yes'"), "\(job)")
            backup.tls = "yes"
            let begun = try fixture.server.begin("vm1", backup)
            let uri = try begun.uri("vda")
            #expect(uri.hasPrefix("nbds://") && !uri.contains("0.0.0.0"), "\(uri)")
            try fixture.server.end("vm1", begun)
            try fixture.server.stop()
        }

        @Test("options that do not fit are refused before anything is served")
        func options() throws {
            let pki = try PKI()
            let image = pki.directory.file("disk.img")
            try Images.sparse(image, bytes: 1 << 20)
            let rules = pki.directory.file("rules")
            try Files.write("psk alice\n", to: rules)
            let named = pki.directory.file("named")
            try Files.write("dn * *\n", to: named)
            for (arguments, words) in [
                (["--tls-certs", pki.directory.file("none")], "server-cert.pem': No such file"),
                (["--tls-certs", pki.server, "--tls-verify-peer", "maybe"], "yes or no"),
                (["--tls-verify-peer", "no"], "it needs --tls-certs"),
                (["--tls-authz", pki.directory.file("none")], "none': No such file"),
                (["--tls-authz", rules], "line 1: it must be KIND"),
                (["--tls-authz", named], "client certificates to be verified"),
            ] {
                let result = try Command.run(
                    try ServerUnderTest.binary(),
                    ["export", "--socket", pki.directory.file("s"), image] + arguments,
                    timeout: 20)
                #expect(result.status == 1 && result.stderr.contains(words), "\(result)")
            }
        }
    }
}
