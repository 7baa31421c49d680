import TLS
import Testing

@testable import NBDServer

@Suite("Access rules")
struct AccessRulesTests {
    private func rules(_ text: String) throws(AccessRules.Fault) -> AccessRules {
        try AccessRules(parsing: text)
    }

    private let bob = TLSPeer(
        subject: "O=Example Ltd,CN=bob", alternativeNames: ["dns:b.example.org", "uri:x:y"])
    private let alice = TLSPeer(user: "alice")
    private let local = LocalPeer(user: 1000, group: 34)

    /// Whether a peer may use, in this order, live vm1/vda, backup vm1/vda, backup vm2/x.
    private func verdicts(_ text: String, tls: TLSPeer?, local: LocalPeer?) throws -> String {
        let rights = try rules(text).rights(tls: tls, local: local)
        return [
            rights.permit(.live, domain: "vm1", name: "vda"),
            rights.permit(.backup, domain: "vm1", name: "vda"),
            rights.permit(.backup, domain: "vm2", name: "x"),
        ].map { $0 ? "y" : "-" }.joined()
    }

    @Test(
        "who fits, and what it may use",
        arguments: [
            ("", "---"), ("dn \"O=Example Ltd,CN=bob\" *", "yyy"),
            ("dn \"O=Example Ltd,CN=*\" vm1", "yy-"), ("dn CN=bob *", "---"),
            ("dn *CN=bob live:*", "y--"), ("dn *CN=bo *", "---"), ("dn *cn=bob *", "---"),
            ("san dns:b.example.org backup:*/vda", "-y-"), ("san dns:?.example.org *", "yyy"),
            ("san b.example.org *", "---"), ("san uri:x:y vm2/*", "--y"), ("psk bob *", "---"),
            ("psk * *", "---"), ("uid 1000 *", "---"),
            ("psk alice *\ndn *bob vm2/x\nsan dns:* live:vm1/vda # both", "y-y"),
        ])
    func certificatePeer(rules: String, expected: String) throws {
        #expect(try verdicts(rules, tls: bob, local: nil) == expected)
    }

    @Test(
        "keys and local users",
        arguments: [
            ("psk alice vm1/vda", "yy-", "yyy"), ("psk ali?e backup:vm1", "-y-", "yyy"),
            ("dn * *", "---", "yyy"), ("uid 1000 live:vm1/vda", "---", "y--"),
            ("uid 1001 *", "---", "---"), ("gid 34 backup:*", "---", "-yy"),
            ("uid 0 *\ngid 34 vm2/x\npsk alice live:*", "y--", "--y"),
        ])
    func others(rules: String, byKey: String, onUnix: String) throws {
        #expect(try verdicts(rules, tls: alice, local: nil) == byKey)
        #expect(try verdicts(rules, tls: nil, local: local) == onUnix)
        // Plaintext over TCP proves nothing.
        #expect(try verdicts(rules, tls: nil, local: nil) == "---")
    }

    @Test(
        "a line that is none is refused by its number",
        arguments: [
            "dn", "dn *", "user bob *", "uid bob *", "gid -1 *", "uid 4294967296 *",
            "dn \"open *", "psk a live:", "psk a other:x", "psk a backup:live:x", "psk a \"\"",
        ])
    func malformed(_ line: String) {
        let fault = #expect(throws: AccessRules.Fault.self) {
            try rules("# first\npsk a *\n\(line)\n")
        }
        #expect(fault?.line == 3)
    }

    @Test(
        "wildcards",
        arguments: [
            ("", "", true), ("", "a", false), ("*", "", true), ("*", "a/b", true),
            ("a*", "a", true), ("a*", "ba", false), ("*a", "ba", true), ("*a", "ab", false),
            ("a*b*c", "axxbyyc", true), ("a*b*c", "acb", false), ("?", "", false),
            ("?", "ä", true), ("a?c", "abc", true), ("**a**", "xax", true), ("*ab", "aab", true),
            ("a*a*a*a*a*b", String(repeating: "a", count: 2000), false),
        ])
    func wildcards(pattern: String, text: String, expected: Bool) {
        #expect(WildcardPattern(pattern).matches(text) == expected)
    }

    @Test("a pattern's domain and name are told apart at the first slash")
    func exportPatterns() throws {
        let pattern = try #require(ExportPattern("vm*/vda"))
        #expect(pattern.matches(.live, domain: "vm1", name: "vda"))
        #expect(!pattern.matches(.live, domain: "vm1/x", name: "y/vda"))
        #expect(!pattern.matches(.backup, domain: "other", name: "vda"))
        let all = try #require(ExportPattern("vm1"))
        #expect(all.matches(.backup, domain: "vm1", name: "any/thing"))
        #expect(!all.matches(.backup, domain: "vm12", name: ""))
        // One file served by itself belongs to no domain.
        let alone = try #require(ExportPattern("*/one"))
        #expect(alone.matches(.live, domain: "", name: "one"))
    }
}
