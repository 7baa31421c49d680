import CGnuTLS
import TestSupport
import Testing

@testable import TLS

/// Server and client in memory, with bytes on their way between them.
struct Pair {
    let server: TLSSession
    let client: TestClient
    var toServer: [UInt8] = []
    var toClient: [UInt8] = []
    var clientCode: Int32 = GNUTLS_E_AGAIN
    var progress = TLSProgress.wantsInput

    init(
        _ files: TLSFiles, _ identity: TestClient.Identity,
        priority: String = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK"
    ) throws(TLSFault) {
        server = try TLSSession(TLSCredentials(files))
        client = try TestClient(identity, priority: priority)
    }

    /// Shakes hands until both sides are done or one has failed; the server sees `piece` bytes at
    /// once.
    mutating func shake(piece: Int = .max) {
        for _ in 0..<1000 {
            if clientCode != GNUTLS_E_SUCCESS { clientCode = client.handshake(&toClient) }
            toServer += client.takeOutgoing()
            var offered = 0
            while progress == .wantsInput, offered < toServer.count {
                offered = min(toServer.count, offered + min(piece, toServer.count))
                let (consumed, next) = server.handshake(
                    toServer.span.extracting(..<offered))
                toServer.removeFirst(consumed)
                offered -= consumed
                progress = next
            }
            toClient += server.takeOutbox()
            let isClientDone =
                clientCode == GNUTLS_E_SUCCESS || gnutls_error_is_fatal(clientCode) != 0
            if progress != .wantsInput, isClientDone { return }
        }
    }

    /// Opens all that has come to the server, with room for `room` bytes at a time.
    mutating func serverReceives(room: Int = 65_536, piece: Int = .max) -> ([UInt8], TLSEnd?) {
        var plain: [UInt8] = []
        var offered = min(piece, toServer.count)
        while true {
            var memory = [UInt8](repeating: 0, count: room)
            var span = memory.mutableSpan
            // SAFETY: the memory outlives the span.
            var raw = unsafe span.mutableBytes
            let step = server.decrypt(toServer.span.extracting(..<offered), into: &raw)
            plain += memory[..<step.produced]
            toServer.removeFirst(step.consumed)
            offered -= step.consumed
            if let end = step.end { return (plain, end) }
            if step.produced == 0, offered == toServer.count { return (plain, nil) }
            if step.produced == 0 { offered = min(toServer.count, offered + piece) }
        }
    }

    /// Seals bytes on the server and opens them on the client.
    mutating func serverSends(_ bytes: [UInt8], room: Int = TLSSession.sealedRecordBytesMax)
        -> [UInt8]
    {
        var sent = 0
        while sent < bytes.count {
            var memory = [UInt8](repeating: 0, count: room)
            var span = memory.mutableSpan
            // SAFETY: the memory outlives the span.
            var raw = unsafe span.mutableBytes
            let step = server.encrypt(bytes.span.extracting(sent...), into: &raw)
            toClient += memory[..<step.produced] + server.takeOutbox()
            sent += step.consumed
            if step.end != nil { break }
        }
        return client.receive(&toClient)
    }
}

@Suite("TLS sessions", .serialized)
struct SessionTests {
    private static let key: [UInt8] = Array(1...32)
    private static let hex = key.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    private static let tls13 = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK"
    private static let tls12 = "NORMAL:-VERS-ALL:+VERS-TLS1.2:+ECDHE-PSK:+DHE-PSK:+PSK"

    private let pki: PKI

    init() throws {
        pki = try PKI()
        try pki.writeKeys(["alice": Self.hex])
    }

    private var certificates: TLSFiles { TLSFiles(certificates: pki.server, keys: nil) }
    private var keys: TLSFiles { TLSFiles(certificates: nil, keys: pki.keys) }
    private var alice: TestClient.Identity { .key(user: "alice", bytes: Self.key) }

    private func payload(_ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
    }

    @Test("certificates: the peer is who its certificate says", arguments: [tls13, tls12])
    func certificate(priority: String) throws {
        let directory = try pki.client(
            "backup", extra: ["dns_name = backup.example.org", "email = b@example.org"])
        var pair = try Pair(certificates, .certificate(directory), priority: priority)
        pair.shake()
        #expect(pair.progress == .established)
        #expect(pair.server.suite.hasSuffix("AES-128-GCM"))
        let peer = pair.server.peer
        #expect(peer.subject == "O=Test,CN=backup")
        #expect(peer.alternativeNames == ["dns:backup.example.org", "email:b@example.org"])
        #expect(peer.user == nil)
    }

    @Test(
        "keys: AES-GCM is chosen whatever the client prefers",
        arguments: [
            tls13, tls12,
            tls13.replacing("NORMAL", with: "NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-128-GCM"),
        ])
    func keyPeer(priority: String) throws {
        var pair = try Pair(keys, alice, priority: priority)
        pair.shake()
        #expect(pair.progress == .established)
        #expect(pair.server.suite.hasSuffix("AES-128-GCM"))
        #expect(pair.server.peer == TLSPeer(user: "alice"))
    }

    @Test("both at once: each client as it can")
    func both() throws {
        let files = TLSFiles(certificates: pki.server, keys: pki.keys)
        var first = try Pair(files, alice)
        first.shake()
        #expect(first.server.peer.user == "alice")
        var second = try Pair(files, .certificate(try pki.client("bob")))
        second.shake()
        #expect(second.server.peer.subject == "O=Test,CN=bob")
    }

    @Test("a handshake is the same however its bytes arrive", arguments: [1, 2, 3, 7, 100])
    func splits(piece: Int) throws {
        var pair = try Pair(certificates, .certificate(try pki.client("bob")))
        pair.shake(piece: piece)
        #expect(pair.progress == .established)
        pair.client.send(payload(40_000))
        pair.toServer += pair.client.takeOutgoing()
        let (plain, end) = pair.serverReceives(room: 1000 * piece, piece: piece)
        #expect(plain == payload(40_000))
        #expect(end == nil)
    }

    @Test("data goes both ways, in records of at most 16 KiB", arguments: [tls13, tls12])
    func data(priority: String) throws {
        var pair = try Pair(keys, alice, priority: priority)
        pair.shake()
        #expect(pair.serverSends(payload(300_001)) == payload(300_001))
        // Without room in the target the rest goes by the outbox, in order.
        #expect(pair.serverSends(payload(50_000), room: 100) == payload(50_000))
        pair.client.send(payload(70_000))
        pair.toServer += pair.client.takeOutgoing()
        #expect(pair.serverReceives(room: 10).0 == payload(70_000))
    }

    @Test("new keys in the middle of a session (TLS 1.3)")
    func keyUpdate() throws {
        var pair = try Pair(keys, alice, priority: Self.tls13)
        pair.shake()
        pair.client.send(payload(10))
        #expect(pair.client.updateKeys() == 0)
        pair.client.send(payload(20_000))
        pair.toServer += pair.client.takeOutgoing()
        let (plain, end) = pair.serverReceives()
        #expect(plain == payload(10) + payload(20_000))
        #expect(end == nil)
        // The server's own new keys come with what it sends next.
        let received = pair.serverSends(payload(30_000))
        #expect(received.count == 30_000 && received == payload(30_000))
    }

    @Test("a second handshake is refused (TLS 1.2)")
    func renegotiation() throws {
        var pair = try Pair(keys, alice, priority: Self.tls12)
        pair.shake()
        _ = pair.client.renegotiate()
        pair.toServer += pair.client.takeOutgoing()
        #expect(!pair.toServer.isEmpty)
        let (plain, end) = pair.serverReceives()
        #expect(plain.isEmpty)
        guard case .failed(.session(let code, _)) = end else {
            Issue.record("ended with \(String(describing: end))")
            return
        }
        #expect(code == GNUTLS_E_REHANDSHAKE)
    }

    @Test(
        "versions before 1.2 and ciphers without authentication are refused",
        arguments: [
            "NORMAL:-VERS-ALL:+VERS-TLS1.1:+VERS-TLS1.0",
            "NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-CBC:+AES-256-CBC",
            "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA",
        ])
    func weak(priority: String) throws {
        var pair = try Pair(certificates, .certificate(try pki.client("bob")), priority: priority)
        pair.shake()
        guard case .failed = pair.progress else {
            Issue.record("\(pair.progress)")
            return
        }
    }

    /// A client that must be refused.
    enum Refused: CaseIterable {
        case stranger, expired, revoked, server, nobody, unknownUser, wrongKey
    }

    @Test("the wrong client is refused and told so by an alert", arguments: Refused.allCases)
    func refused(_ what: Refused) throws {
        try pki.makeAuthority("other")
        var files = certificates
        let identity: TestClient.Identity
        let words: String
        switch what {
        case .stranger:
            identity = .certificate(try pki.client("mallory", authority: "other"))
            words = "ertificate"
        case .expired:
            identity = .certificate(try pki.client("old", expired: true))
            words = "expired"
        case .revoked:
            identity = .certificate(try pki.client("revoked"))
            try pki.revoke("revoked")
            words = "revoked"
        case .server:
            // Made for a server, not for a client.
            try pki.makeCertificate("other-server", role: "server")
            let directory = pki.directory.file("other-server")
            try Command.run("cp", [directory + "/server-cert.pem", directory + "/client-cert.pem"])
                .output()
            try Command.run("cp", [directory + "/server-key.pem", directory + "/client-key.pem"])
                .output()
            identity = .certificate(directory)
            words = "purpose"
        case .nobody:
            identity = .certificate(try pki.clientWithoutCertificate())
            words = "ertificate"
        case .unknownUser:
            files = keys
            identity = .key(user: "mallory", bytes: Self.key)
            words = ""
        case .wrongKey:
            files = keys
            identity = .key(user: "alice", bytes: Self.key.reversed())
            words = ""
        }
        for priority in [Self.tls13, Self.tls12] {
            var pair = try Pair(files, identity, priority: priority)
            pair.shake()
            guard case .failed(let fault) = pair.progress else {
                Issue.record("\(what): \(pair.progress)")
                continue
            }
            #expect(fault.text.contains(words), "\(what): \(fault.text)")
            #expect(!fault.text.contains("mallory") && !fault.text.isEmpty)
            // The alert has come: the client knows that it was refused, at the latest when it
            // reads.
            _ = pair.client.receive(&pair.toClient)
            #expect(pair.toClient.isEmpty)
        }
    }

    @Test("unknown users and wrong keys look the same from outside")
    func noUserOracle() throws {
        var texts: [String] = []
        for identity in [
            TestClient.Identity.key(user: "mallory", bytes: Self.key),
            .key(user: "alice", bytes: Self.key.reversed()),
        ] {
            var pair = try Pair(keys, identity, priority: Self.tls13)
            pair.shake()
            guard case .failed(let fault) = pair.progress else { continue }
            texts.append(fault.text)
        }
        #expect(texts.count == 2 && texts[0] == texts[1], "\(texts)")
    }

    @Test("without verification nobody is asked, and nobody has an identity")
    func unverified() throws {
        let files = TLSFiles(certificates: pki.server, keys: nil, verifiesPeer: false)
        for directory in [try pki.client("bob"), try pki.clientWithoutCertificate()] {
            var pair = try Pair(files, .certificate(directory))
            pair.shake()
            #expect(pair.progress == .established)
            #expect(pair.server.peer == TLSPeer())
        }
    }

    @Test("garbage fails the handshake, and later the session", arguments: [true, false])
    func garbage(early: Bool) throws {
        var pair = try Pair(keys, alice)
        if !early { pair.shake() }
        pair.toServer = Array("IHAVEOPT plaintext where a record should be".utf8)
        if early {
            let (_, progress) = pair.server.handshake(pair.toServer.span)
            guard case .failed(let fault) = progress else {
                Issue.record("\(progress)")
                return
            }
            #expect(!fault.text.contains("IHAVEOPT"))
        } else {
            let (plain, end) = pair.serverReceives()
            #expect(plain.isEmpty)
            #expect(end != nil && end != .closed)
        }
    }

    @Test("goodbyes are understood and said")
    func goodbye() throws {
        var pair = try Pair(keys, alice)
        pair.shake()
        pair.client.send(payload(5))
        pair.client.sayGoodbye()
        pair.toServer += pair.client.takeOutgoing()
        let (plain, end) = pair.serverReceives()
        #expect(plain == payload(5))
        #expect(end == .closed)
        // A peer that has said goodbye is still told what is on its way, and hears one in return.
        #expect(pair.serverSends(payload(7)) == payload(7))
        pair.server.sayGoodbye()
        let answer = pair.server.takeOutbox()
        #expect(!answer.isEmpty)
        pair.toClient += answer
        #expect(pair.client.receive(&pair.toClient).isEmpty && pair.toClient.isEmpty)
        var other = try Pair(keys, alice)
        other.shake()
        _ = other.server.takeOutbox()
        other.server.sayGoodbye()
        #expect(other.server.hasOutbox)
        other.server.sayGoodbye()
        other.toClient += other.server.takeOutbox()
        #expect(other.client.receive(&other.toClient).isEmpty)
        #expect(other.toClient.isEmpty)
    }

    @Test("credentials that cannot be used name the file")
    func credentialFaults() throws {
        func fault(_ files: TLSFiles) -> String? {
            do throws(TLSFault) {
                _ = try TLSCredentials(files)
                return nil
            } catch {
                return error.text
            }
        }
        #expect(fault(certificates) == nil)
        let empty = TLSFiles(certificates: pki.directory.path, keys: nil)
        #expect(fault(empty)?.contains("server-cert.pem': No such file") == true)
        let noKeys = TLSFiles(certificates: nil, keys: pki.directory.file("none"))
        #expect(fault(noKeys)?.contains("none': No such file") == true)
        try pki.writeKeys([:])
        #expect(fault(keys)?.contains("holds no user:hexkey") == true)
        try pki.writeKeys(["bob": "xyz"])
        #expect(fault(keys)?.contains("line 1: a key has") == true)
        try Files.write("no list", to: pki.server + "/ca-crl.pem")
        #expect(fault(certificates)?.contains("ca-crl.pem") == true)
        try pki.revoke()
        #expect(fault(certificates) == nil)
        // The key of another certificate.
        try pki.makeCertificate("twin", role: "server")
        try Command.run(
            "cp", [pki.directory.file("twin") + "/server-key.pem", pki.server + "/server-key.pem"]
        ).output()
        #expect(fault(certificates)?.contains("server-cert.pem") == true)
    }
}
