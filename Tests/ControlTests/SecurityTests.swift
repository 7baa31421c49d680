import Control
import ServerInterface
import Testing

@Suite struct SecurityTests {
    private func security(
        _ certs: String?, _ psk: String?, _ verify: String? = nil
    ) throws(ControlError) -> SecurityConfiguration {
        try SecurityArguments.configuration(
            certs: certs, psk: psk, verifyPeer: verify, authz: nil)
    }

    @Test func optionsAreReadTogether() throws {
        let both = try security("/certs", "/keys")
        #expect(both.certificates == "/certs" && both.keys == "/keys" && both.verifiesPeer)
        #expect(both.offersTLS)
        #expect(try !security("/certs", nil, "no").verifiesPeer)
        #expect(try !security(nil, nil).offersTLS)
        #expect(throws: ControlError.self) { try security("/certs", nil, "perhaps") }
        #expect(throws: ControlError.self) { try security(nil, "/keys", "yes") }
        #expect(SecurityArguments.listener(both, allowPlaintext: false) == .required)
        #expect(SecurityArguments.listener(both, allowPlaintext: true) == .selective)
        let none = SecurityConfiguration()
        #expect(SecurityArguments.listener(none, allowPlaintext: true) == .plaintext)
    }

    @Test(
        arguments: [
            ("192.0.2.1", ListenerSecurity.plaintext, false, false),
            ("192.0.2.1", .selective, false, false), ("192.0.2.1", .required, false, true),
            ("192.0.2.1", .plaintext, true, true), ("::", .plaintext, false, false),
            ("127.0.0.1", .plaintext, false, true), ("::1", .selective, false, true),
        ])
    func plaintextLeavesThisMachineOnlyWhereAllowed(
        host: String, security: ListenerSecurity, isAllowed: Bool, passes: Bool
    ) {
        var refusal: ControlError?
        do throws(ControlError) {
            try PlaintextPolicy.check(
                .tcp(host: host, port: nil), security: security, allowPlaintext: isAllowed)
        } catch {
            refusal = error
        }
        #expect((refusal == nil) == passes)
        if let refusal {
            #expect(refusal.code == "plaintext-refused" && refusal.libvirtCode == 84)
            for word in [host, "--allow-plaintext", "--tls-certs", "tls='yes'"] {
                #expect(refusal.message.contains(word))
            }
        }
    }

    @Test func urisSayWhereTLSIsRequired() {
        let tcp = ListenEndpoint.tcp(host: "::1", port: 1)
        let unix = ListenEndpoint.unix(path: "/s", mode: 0)
        #expect(
            ExportURI.text(endpoint: tcp, name: "a", security: .required) == "nbds://[::1]:1/a")
        #expect(
            ExportURI.text(endpoint: unix, name: "a", security: .required)
                == "nbds+unix:///a?socket=/s")
        #expect(
            ExportURI.text(endpoint: tcp, name: "a", security: .selective) == "nbd://[::1]:1/a")
    }

    /// What a job does by its `tls` attribute, on a server with and without credentials.
    @Test(
        arguments: [
            ("", false, ListenerSecurity.plaintext), ("", true, .selective),
            (" tls='no'", true, .plaintext), (" tls='no'", false, .plaintext),
            (" tls='yes'", true, .required), (" tls='yes'", false, nil),
        ])
    func jobs(attribute: String, offersTLS: Bool, expected: ListenerSecurity?) async throws {
        let fixture = try ControlFixture()
        let manager = JobManager(
            engine: fixture.engine, state: nil,
            settings: JobManagerSettings(
                runDirectory: fixture.runDirectory,
                liveEndpoint: .unix(path: fixture.runDirectory + "/live.sock", mode: 0o600),
                offersTLS: offersTLS))
        await manager.activate()
        try await manager.define(xml: fixture.domainXML())
        let request = BeginRequest(
            backupXML: "<domainbackup mode='pull'><server transport='unix'\(attribute) "
                + "socket='/run/b.sock'/></domainbackup>")
        guard let expected else {
            do throws(ControlError) {
                _ = try await manager.begin(domain: "vm1", request)
                Issue.record("begun")
            } catch {
                #expect(error.code == "tls-not-configured" && error.libvirtCode == 55)
                #expect(error.message.contains("backup TLS directory not configured"))
            }
            #expect(fixture.engine.jobCount == 0)
            return
        }
        let begun = try await manager.begin(domain: "vm1", request)
        let configured = fixture.engine.look { $0.jobs[begun.id] }
        #expect(configured?.security == expected)
        #expect(configured?.domain == "vm1")
        let isRequired = expected == .required
        #expect(begun.exports[0].uri.hasPrefix(isRequired ? "nbds+unix:" : "nbd+unix:"))
        #expect(try await manager.listJobs(domain: "vm1").map(\.tls) == [isRequired])
        #expect(try await manager.jobInfo(domain: "vm1", job: nil).tls == isRequired)
        let xml = try await manager.backupXML(domain: "vm1", job: nil).xml
        #expect(xml.contains("<server transport='unix'\(attribute) socket='/run/b.sock'/>"))
        let ended = try await manager.end(domain: "vm1", job: nil, cause: .success)
        #expect(ended.tls == nil)
    }
}
