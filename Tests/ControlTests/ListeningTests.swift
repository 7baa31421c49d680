import Control
import Testing

@Suite("Sockets that are passed in, and permissions")
struct ListeningTests {
    private func environment(
        count: String, owner: String = "7", names: String? = nil
    ) -> [String: String] {
        var values = ["LISTEN_FDS": count, "LISTEN_PID": owner]
        values["LISTEN_FDNAMES"] = names
        return values
    }

    @Test("descriptors begin at 3 and are only taken when they are meant for this process")
    func descriptors() throws {
        let take = SocketActivation.descriptors
        #expect(try take(environment(count: "2"), 7) == [3, 4])
        #expect(try take(environment(count: "1", names: "live"), 7) == [3])
        #expect(try take(environment(count: "0"), 7) == [])
        // What the service manager keeps for the server itself is taken elsewhere.
        let kept = "nbdpull-control=/run/control.sock"
        #expect(try take(environment(count: "3", names: "a:\(kept):b"), 7) == [3, 5])
        #expect(try take(environment(count: "2", owner: "8"), 7) == [])
        #expect(try take(["LISTEN_FDS": "2"], 7) == [])
        #expect(try take([:], 7) == [])
    }

    @Test(
        "numbers that are none, and a control socket, are refused",
        arguments: [
            ("x", nil), ("-1", nil), ("65", nil), ("2", "live:control"),
        ] as [(String, String?)])
    func refused(count: String, names: String?) {
        let error = refusal { () throws(ControlError) in
            try SocketActivation.descriptors(
                environment(count: count, names: names), processID: 7)
        }
        #expect(error?.libvirtCode == 8)
    }

    @Test("modes are octal, keep the owner in, and have no other bits")
    func modes() throws {
        #expect(try SocketPermissions.mode("0660") == 0o660)
        #expect(try SocketPermissions.mode("600") == 0o600)
        for text in ["", "0888", "1777", "0060", "rw", "-1", "+600 "] {
            let error = refusal { () throws(ControlError) in try SocketPermissions.mode(text) }
            #expect(error?.message.contains("--socket-mode '\(text)'") == true)
        }
    }

    @Test("groups go by name or number")
    func groups() throws {
        #expect(try SocketPermissions.group("root") == 0)
        #expect(try SocketPermissions.group("1234") == 1234)
        let error = refusal { () throws(ControlError) in
            try SocketPermissions.group("no such group")
        }
        #expect(error?.libvirtCode == 8)
    }

    @Test(
        "CVE-2024-4467: a source is a path and never a description of other files",
        arguments: [
            "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", "nbd:unix:/x",
            "file:/etc/shadow",
        ])
    func sources(path: String) {
        let quoted = path.replacing("\"", with: "&quot;")
        let error = refusal { () throws(ControlError) in
            try DomainDefinition.parse(
                """
                <domain><name>vm1</name><devices><disk type='file'><source file="\(quoted)"/>\
                <target dev='vda'/></disk></devices></domain>
                """)
        }
        #expect(error?.message.contains("absolute") == true, "\(error?.message ?? "accepted")")
    }
}
