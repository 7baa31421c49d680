import Testing

@testable import TLS

@Suite("Files of pre-shared keys")
struct KeyFileTests {
    private func parse(_ text: String) throws(KeyFile.Fault) -> [[UInt8]: [UInt8]] {
        try KeyFile.parse(Array(text.utf8))
    }

    @Test("users and keys, empty lines, comments, line ends of all kinds")
    func usual() throws {
        let keys = try parse("# made by psktool\nalice:00ff10\r\n\nbob:AbCd \nhost:1:0a")
        #expect(
            keys == [
                Array("alice".utf8): [0, 0xff, 0x10], Array("bob".utf8): [0xab, 0xcd],
                Array("host:1".utf8): [0x0a],
            ])
        #expect(try parse("").isEmpty)
    }

    @Test(
        "a malformed line is refused by its number",
        arguments: [
            "alice", ":00", "alice:", "alice:0", "alice:0g", "alice:00 00", "alice:0x00",
            "alice:\u{664}\u{664}", String(repeating: "u", count: 129) + ":00",
            "alice:" + String(repeating: "00", count: 257),
        ])
    func malformed(_ line: String) {
        let fault = #expect(throws: KeyFile.Fault.self) { try parse("bob:00\n" + line) }
        #expect(fault?.line == 2)
        #expect(fault?.detail.contains("alice") == false)
    }

    @Test("a user may not stand twice")
    func twice() {
        #expect(throws: KeyFile.Fault.self) { try parse("bob:00\nbob:01") }
    }
}
