import Control
import ServerInterface
import Testing

/// Errors name what is wrong, where, and what would do.
@Suite struct MessageTests {
    @Test(
        "an element, attribute or value that a schema refuses is named, with what is allowed",
        arguments: [
            (pullXML("<disks/>"), "line 3: <disks> must list at least one <disk name='TARGET'/>"),
            (pullXML("<disk name='vda'/>"), "line 3: <disk> is not allowed in <domainbackup>: did"),
            (
                pullXML("<disks><disk name='vda'><target file='/t'/></disk></disks>"),
                "line 3: <target> is not allowed in a <disk> of pull mode, use <scratch>"
            ),
            (
                pullXML("<disks><disk name='vda'><scrach file='/t'/></disk></disks>"),
                "did you mean 'scratch'?"
            ),
            (
                pullXML("<disks><disk name='vda'><scratch path='/t'/></disk></disks>"),
                "<scratch>: attribute 'path' is not allowed: allowed are file"
            ),
            (
                pullXML("<disks><disk name='vda' backup='maybe' type='file'/></disks>"),
                "backup='maybe' is not allowed: allowed are yes, no"
            ),
            (
                pullXML("<disks><disk name='vda' backupmode='differential'/></disks>"),
                "allowed are full, incremental"
            ),
            (
                pullXML("", server: "<server name='[::1]' port='1'/>"),
                "name='[::1]': write the address without brackets, name='::1'"
            ),
            (pullXML("", server: "<server name='a b' port='1'/>"), "name='a b' is no host"),
            (
                pullXML("", server: "<server transport='unix' socket='/s' tls='maybe'/>"),
                "tls='maybe' is not allowed: allowed are yes, no"
            ),
            (
                pullXML("", server: "<server transport='unix' socket='/s' port='5'/>"),
                "with transport='unix': attribute 'port' is not allowed"
            ),
            (
                "<domainbackup><disks><disk name='vda'><scratch file='/t'/></disk></disks>"
                    + "</domainbackup>", "<scratch> is not allowed in a <disk> of push mode"
            ),
        ])
    func backup(xml: String, words: String) {
        let error = refusal { () throws(ControlError) in try BackupRequest.parse(xml) }
        #expect(error?.libvirtCode == 92)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test(
        "names of checkpoints and their rules are named",
        arguments: [
            ("<name>a b</name>", "<name>: 'a b' is no name of a checkpoint: it may hold letters"),
            ("<name>.a</name>", "'.' where it is not the first"),
            ("<name>снимок</name>", "'снимок' is no name of a checkpoint"),
            ("<name/>", "'' is no name of a checkpoint"),
            ("<name>a</name><name>b</name>", "<name> may stand once"),
            ("<parent/>", "<parent> needs <name>"),
            ("<parent><name>a/b</name></parent>", "'a/b' is no name"),
            ("<creationTime>soon</creationTime>", "<creationTime> must hold a number, not 'soon'"),
            ("<disks/>", "<disks> must list at least one <disk name='TARGET'/>"),
            ("<disks><disk/></disks>", "<disk> needs name='TARGET'"),
            ("<disks><disk name='x'/></disks>", "name='x' must be a target such as 'vda'"),
            (
                "<disks><disk name='vda' checkpoint='yes'/></disks>",
                "checkpoint='yes' is not allowed: allowed are bitmap, no"
            ),
            (
                "<disks><disk name='vda' checkpoint='no' bitmap='b'/></disks>",
                "checkpoint='no' excludes bitmap="
            ),
            ("<disks><disk name='vda' bitmp='b'/></disks>", "did you mean 'bitmap'?"),
            ("<descripton>x</descripton>", "did you mean 'description'?"),
            ("words", "<domaincheckpoint> must not hold text, as 'words'"),
        ])
    func checkpoint(inner: String, words: String) {
        let error = refusal { () throws(ControlError) in
            try CheckpointRequest.parse("<domaincheckpoint>\(inner)</domaincheckpoint>")
        }
        #expect(error?.libvirtCode == 92)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test(
        "what a domain lacks is named",
        arguments: [
            ("<name>v</name><devices><disk/></devices>", "<disk> needs <target dev='NAME'/>"),
            ("<name>v</name><devices><disk><target/></disk></devices>", "needs dev='NAME'"),
            ("", "<domain> needs <name>"),
            ("<name>v</name><name>w</name>", "<name> may stand once in <domain>"),
            (
                "<name>v</name><devices><disk><target dev='vda'/><source/><source/></disk>"
                    + "</devices>",
                "<source> may stand once in <disk>"
            ),
        ])
    func domain(inner: String, words: String) {
        let error = refusal { () throws(ControlError) in
            try DomainDefinition.parse("<domain>\(inner)</domain>")
        }
        #expect(error?.libvirtCode == 92)
        #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
    }

    @Test("a host without an address is not a question of TLS")
    func unknownHost() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        func begin(_ host: String) async -> ControlError? {
            await #expect(throws: ControlError.self) {
                try await manager.begin(
                    domain: "vm1",
                    BeginRequest(
                        backupXML: pullXML("", server: "<server name='\(host)' port='0'/>")))
            }
        }
        let unknown = await begin("no-such-host.invalid")
        #expect(unknown?.code == "host-unknown")
        #expect(
            unknown?.message.contains("host 'no-such-host.invalid' has no address") == true)
        #expect(await begin("192.0.2.1")?.code == "plaintext-refused")
        #expect(try await manager.listJobs(domain: nil).isEmpty)
    }

    @Test("a source that this server holds itself is named by its domain")
    func ownSource() async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML("vm1"))
        let path = fixture.root + "/vm1-b.raw"
        let error = await #expect(throws: ControlError.self) {
            try await manager.define(
                xml: "<domain><name>vm2</name><devices><disk type='file'><source file='\(path)'/>"
                    + "<target dev='vdz'/></disk></devices></domain>")
        }
        #expect(error?.code == "source-locked")
        #expect(error?.message.contains("it is disk 'vdb' of domain 'vm1'") == true)
    }

    @Test("an address that stands for all of them is printed as one that a client can use")
    func reachable() {
        for host in ["0.0.0.0", "::"] {
            guard case .tcp(let found, let port) = ListenEndpoint.tcp(host: host, port: 7).reachable
            else { return }
            #expect(found != host && !found.isEmpty && !found.hasPrefix("fe80"))
            #expect(port == 7)
        }
        let named = ListenEndpoint.tcp(host: "192.0.2.1", port: nil)
        #expect(named.reachable == named)
        let unix = ListenEndpoint.unix(path: "/s", mode: 0o600)
        #expect(unix.reachable == unix)
    }
}
