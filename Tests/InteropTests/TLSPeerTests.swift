import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// Other programs over TLS, with certificates and with keys.
    @Suite struct TLSPeerTests {
        @Test("nbdinfo and nbdcopy, over TCP and unix sockets", arguments: Proof.allCases)
        func libnbdTools(proof: Proof) throws {
            let fixture = try TLSFixture()
            let socket = fixture.server.liveSocket
            for target in ["vda", "vdb"] {
                let content = fixture.live.path(target)
                let uris = [
                    fixture.uri(target, proof),
                    "nbds+unix://\(fixture.user(proof))/vm1/\(target)?socket=\(socket)"
                        + "&\(fixture.query(proof))",
                ]
                for (index, uri) in uris.enumerated() {
                    let info = try Command.run("nbdinfo", [uri]).output()
                    #expect(info.contains("with TLS") && info.contains("structured packets"))
                    let copy = fixture.live.directory.file("copy-\(target)-\(index)")
                    try Command.run("nbdcopy", [uri, copy]).output()
                    try Images.expectEqual(copy, content)
                    let new = fixture.live.directory.file("new-\(target)-\(index)")
                    try Images.mixed(new, bytes: fixture.live.sizeBytes, seed: UInt64(90 + index))
                    try Command.run("nbdcopy", ["--flush", new, uri]).output()
                    try Images.expectEqual(new, content)
                }
            }
            try fixture.server.stop()
        }

        @Test("every orderly end says close_notify, also to a client that has said it before")
        func closeNotify() throws {
            let fixture = try TLSFixture()
            let script = """
                import socket, ssl, struct, sys, threading, time
                def take(s, n):
                    data = b''
                    while len(data) < n:
                        piece = s.recv(n - len(data))
                        assert piece, 'hung up'
                        data += piece
                    return data
                def option(code, data=b''):
                    return struct.pack('>QII', 0x49484156454F5054, code, len(data)) + data
                def connect(version):
                    s = socket.create_connection(('127.0.0.1', \(fixture.live.port)))
                    s.settimeout(20)
                    take(s, 18)
                    s.sendall(struct.pack('>I', 3) + option(5))
                    take(s, 20)
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    context.maximum_version = version
                    # Some builds of Python forgive a missing goodbye.
                    context.options &= ~getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0)
                    context.load_verify_locations('\(fixture.bob)/ca-cert.pem')
                    context.load_cert_chain(
                        '\(fixture.bob)/client-cert.pem', '\(fixture.bob)/client-key.pem')
                    return context.wrap_socket(
                        s, server_hostname='localhost', suppress_ragged_eofs=False)
                def go(version):
                    s = connect(version)
                    name = b'vm1/vda'
                    s.sendall(option(7, struct.pack('>I', len(name)) + name + bytes(2)))
                    while True:
                        _, _, kind, length = struct.unpack('>QIII', take(s, 20))
                        take(s, length)
                        if kind == 1: break
                    return s
                disconnect = struct.pack('>IHHQQI', 0x25609513, 0, 2, 0, 0, 0)
                for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
                    # DISC alone, ABORT, and a stream that makes no sense: recv throws without the alert.
                    s = go(version); s.sendall(disconnect); assert s.recv(1) == b''
                    s = connect(version); s.sendall(option(2)); take(s, 20); assert s.recv(1) == b''
                    s = go(version); s.sendall(bytes(28)); assert s.recv(1) == b''
                    # DISC and the client's own goodbye in one segment.
                    s = go(version)
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                    s.sendall(disconnect)
                    thread = threading.Thread(target=lambda: (time.sleep(0.05),
                        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)))
                    thread.start(); s.unwrap(); thread.join()
                    # The goodbye alone.
                    go(version).unwrap()
                last = go(ssl.TLSVersion.TLSv1_3)
                print('READY', flush=True)
                assert last.recv(1) == b''
                """
            let client = try Command("/usr/bin/python3", ["-c", script])
            try client.wait(for: "last connection") { $0.stdout.contains("READY") }
            try fixture.server.stop()
            try client.result().output()
        }

        @Test("a guest writes, discards and checks its disk over TLS", arguments: Proof.allCases)
        func guest(proof: Proof) throws {
            let fixture = try TLSFixture()
            let object = fixture.qemu("vm1/vda", port: fixture.live.port, proof).object
            let guest = try GuestMachine.boot(
                "nbds://localhost:\(fixture.live.port)/vm1/vda", tls: object)
            try GuestMachine.expectFinished(guest)
            try fixture.server.stop()
            try Command.run("e2fsck", ["-fn", fixture.live.path("vda")]).output()
        }

        @Test("qemu-img and qemu-io", arguments: Proof.allCases)
        func qemu(proof: Proof) throws {
            let fixture = try TLSFixture()
            let copy = fixture.live.directory.file("copy")
            for target in ["vda", "vdb"] {
                let (object, image) = fixture.qemu(
                    "vm1/" + target, port: fixture.live.port, proof)
                let steps = [
                    "write -P 0xa5 0 3M", "read -P 0xa5 0 3M", "write -P 0x5a 1023 70001",
                    "read -P 0x5a 1023 70001", "write -z 100k 333k", "read -P 0 100k 333k",
                    "discard 4M 1M", "write -f -P 7 8M 64k", "read -P 7 8M 64k", "flush",
                ]
                let result = try Command.run(
                    "qemu-io",
                    ["--object", object] + steps.flatMap { ["-c", $0] } + ["--image-opts", image])
                try result.output()
                #expect(!result.stdout.contains("verification failed"), "\(result)")
                try Command.run(
                    "qemu-img",
                    ["convert", "--object", object, "--image-opts", image, "-O", "raw", copy]
                ).output()
                try Images.expectEqual(copy, fixture.live.path(target))
            }
            try fixture.server.stop()
        }

        @Test("nbdsh uses every command", arguments: Proof.allCases)
        func nbdsh(proof: Proof) throws {
            let fixture = try TLSFixture()
            // nbdsh does not let the URI on its command line name files.
            let script = """
                import nbd
                assert h.get_tls_negotiated()
                data = bytes(range(256)) * 40000
                h.pwrite(data, 1234567)
                assert h.pread(len(data), 1234567) == data, 'wrong bytes'
                h.zero(1000000, 2000000, nbd.CMD_FLAG_NO_HOLE)
                h.trim(65536, 131072)
                h.cache(65536, 0)
                h.flush()
                assert h.pread(1000000, 2000000) == bytes(1000000)
                assert h.pread(765433, 1234567) == data[:765433]
                extents = []
                h.block_status(h.get_size(), 0, lambda c, o, e, err: extents.extend(e))
                assert extents
                """
            for target in ["vda", "vdb"] {
                let connect = """
                    h.set_uri_allow_local_file(True)
                    h.add_meta_context('base:allocation')
                    h.connect_uri('\(fixture.uri(target, proof))')
                    """
                try Command.run(
                    "/usr/bin/python3", ["-m", "nbd", "-c", connect, "-c", script]
                ).output()
            }
            try fixture.server.stop()
        }

        /// nbdkit, which speaks TLS to the server and plaintext to whoever uses the socket.
        private func proxy(
            _ fixture: TLSFixture, _ proof: Proof, _ export: String, socket: String
        ) throws -> Command {
            let login =
                proof == .certificate
                ? ["tls-certificates=" + fixture.bob]
                : ["tls-psk=" + fixture.pki.keys, "tls-username=alice"]
            let proxy = try Command(
                "nbdkit",
                [
                    "-f", "-U", socket, "nbd", "hostname=localhost", "port=\(fixture.live.port)",
                    "export=" + export, "tls=require",
                ] + login)
            try proxy.wait(for: "socket") { _ in Files.isListening(socket) }
            return proxy
        }

        @Test("small reads that the page cache does not have", arguments: Proof.allCases)
        func coldReads(proof: Proof) throws {
            let fixture = try TLSFixture()
            let content = try fixture.live.content("vda")
            let client = try NBDClient(fixture.uri("vda", proof))
            for round in 0..<3 {
                // Written back first: only clean pages leave the cache.
                try Command.run("sync", [fixture.live.path("vda")]).output()
                try Command.run(
                    "dd",
                    [
                        "if=" + fixture.live.path("vda"), "iflag=nocache", "count=0",
                    ]
                ).output()
                for index in 0..<40 {
                    let offset = (index * 397 + round * 91) * 1024 % (fixture.live.sizeBytes - 8192)
                    let bytes = try client.read(offset, 4096)
                    #expect(Bytes.isEqual(bytes, at: 0, content, at: offset, count: 4096))
                }
            }
            try fixture.server.stop()
        }

        @Test("nbdkit's nbd plugin as a proxy, and fio through it", arguments: Proof.allCases)
        func nbdkit(proof: Proof) throws {
            let fixture = try TLSFixture()
            let socket = fixture.live.directory.file("proxy.sock")
            let proxy = try proxy(fixture, proof, "vm1/vda", socket: socket)
            let uri = "nbd+unix:///?socket=" + socket
            let copy = fixture.live.directory.file("copy")
            try Command.run("nbdcopy", [uri, copy]).output()
            try Images.expectEqual(copy, fixture.live.path("vda"))
            // fio's engine does not let a URI name files.
            try Command.run(
                "fio",
                [
                    "--name=t", "--ioengine=nbd", "--uri=" + uri, "--size=16m", "--iodepth=16",
                    "--verify_fatal=1", "--randseed=7", "--rw=randrw", "--bsrange=4k-64k",
                    "--verify=crc32c",
                ], timeout: 120
            ).output()
            #expect(proxy.isRunning)
            try fixture.server.stop()
        }

        @Test(
            "a backup job with tls='yes', pulled by nbdcopy and qemu-img", arguments: Proof.allCases
        )
        func backup(proof: Proof) throws {
            let fixture = try TLSFixture()
            let port = Ports.free()
            var backup = fixture.server.standardBackup(disks: ["vda", "vdb"], tag: "tls")
            backup.endpoint = .tcp(port)
            backup.tls = "yes"
            let job = try fixture.server.begin("vm1", backup)
            let uri = try job.uri("vda")
            #expect(uri == "nbds://127.0.0.1:\(port)/vda")
            let before = fixture.live.directory.file("before")
            try Command.run("cp", [fixture.live.path("vda"), before]).output()
            let writer = try NBDClient(fixture.uri("vda", proof))
            for index in 0..<200 {
                try writer.write(randomBytes(10_000, seed: UInt64(index)), at: index * 70_001)
            }
            let first = fixture.live.directory.file("first")
            let second = fixture.live.directory.file("second")
            let user = fixture.user(proof)
            try Command.run(
                "nbdcopy",
                ["nbds://\(user)127.0.0.1:\(port)/vda?\(fixture.query(proof))", first]
            ).output()
            let (object, image) = fixture.qemu("vda", port: port, proof)
            try Command.run(
                "qemu-img",
                ["convert", "--object", object, "--image-opts", image, "-O", "raw", second]
            ).output()
            try Images.expectEqual(first, before)
            try Images.expectEqual(second, before)
            let info = try fixture.server.cli(["domjobinfo", "vm1", "--json"]).output()
            #expect(info.contains("\"tls\":true"))
            let xml = try fixture.server.cli(["backup-dumpxml", "vm1"]).output()
            #expect(xml.contains("<server transport='tcp' tls='yes' name='127.0.0.1'"))
            #expect(throws: NBDFailure.self) { try NBDClient("nbd://127.0.0.1:\(port)/vda") }
            try fixture.server.end("vm1", job)
            try fixture.server.stop()
        }

        @Test("nbdpull export speaks TLS and says so in its URI")
        func export() throws {
            let pki = try PKI()
            let bob = try pki.client("bob")
            let image = pki.directory.file("disk.img")
            try Images.mixed(image, bytes: 4 << 20, seed: 5)
            let port = Ports.free()
            let export = try Command(
                try ServerUnderTest.binary(),
                [
                    "export", "--tcp", "127.0.0.1:\(port)", "--print-uri", "--tls-certs",
                    pki.server, image,
                ])
            try export.wait(for: "URI") { $0.stdout.contains("\n") }
            #expect(export.stdout == "nbds://127.0.0.1:\(port)/\n")
            let copy = pki.directory.file("copy")
            try Command.run(
                "nbdcopy", ["nbds://localhost:\(port)/?tls-certificates=\(bob)", copy]
            ).output()
            try Images.expectEqual(copy, image)
            #expect(throws: NBDFailure.self) { try NBDClient("nbd://127.0.0.1:\(port)/") }
            export.terminate()
            try export.result(timeout: 20).output()
        }
    }
}
