import Foundation
import ServerInterface
import Testing

@testable import Control

/// What numbers and files may say without ending the server.
@Suite struct SizeReachTests {
    @Test("sums of sizes stop at the largest number")
    func sums() {
        let large = UInt64(1) << 62
        #expect([UInt64](repeating: large, count: 5).clampedSum == .max)
        #expect([UInt64]([1, 2, 3]).clampedSum == 6)
        #expect([UInt64]().clampedSum == 0)
    }

    @Test("a checkpoint file with the highest number does not end the next checkpoint")
    func sequence() {
        var repaired: [String] = []
        let tree = CheckpointTree(
            [CheckpointMetadata(name: "c1", sequence: .max)], repaired: &repaired)
        #expect(tree.nextSequence == .max)
        #expect(CheckpointTree().nextSequence == 1)
    }

    @Test(
        "times beyond what can be written are the nearest that can",
        arguments: [
            Double.infinity, -Double.infinity, .nan, 1e300, -1e300, 253_402_300_800, -1e12,
        ])
    func times(_ seconds: Double) {
        let text = ISO8601.text(Date(timeIntervalSince1970: seconds))
        #expect(text.utf8.count == 24 && text.hasSuffix("Z"), "\(text)")
    }

    @Test(arguments: [
        ("0", UInt64(0)), ("1", 1024), ("1b", 1), ("10bytes", 10), ("1K", 1024), ("1KiB", 1024),
        ("1kb", 1000), ("2MB", 2_000_000), ("3M", 3 << 20), ("1GiB", 1 << 30), ("1t", 1 << 40),
        ("7P", 7 << 50), ("15E", 15 << 60), ("18446744073709551615b", .max),
    ])
    func sizesAreRead(_ text: String, _ bytes: UInt64) throws {
        #expect(try ScaledSize.bytes(text, unit: 1024) == bytes)
    }

    @Test(arguments: [
        "", "K", "-1", "1.5G", "1X", "1Kib b", "16E", "18446744073709551615",
        "99999999999999999999b", " 1", "1 G", "٣",
    ])
    func sizesAreRefused(_ text: String) {
        let error = #expect(throws: ControlError.self) {
            try ScaledSize.bytes(text, unit: 1024)
        }
        #expect(error?.message.contains("size '\(text)'") == true)
    }

    @Test("a time to live beyond the limit is refused", arguments: [0, 315_360_001, UInt64.max])
    func timeToLive(_ seconds: UInt64) async throws {
        let fixture = try ControlFixture()
        let manager = try await fixture.manager()
        try await manager.define(xml: fixture.domainXML())
        let error = await #expect(throws: ControlError.self) {
            try await manager.begin(domain: "vm1", BeginRequest(timeToLiveSeconds: seconds))
        }
        #expect(error?.message.contains("315360000") == true)
    }

    @Test("a domain's file may say anything: its disks are served, or it is left out and told")
    func domainFiles() async throws {
        let fixture = try ControlFixture()
        let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
        let xml = "<domain><name>vm1</name><uuid>\(uuid)</uuid></domain>"
        func start(_ body: String) async throws -> (names: [String], warnings: [String]) {
            let path = fixture.stateDirectory + "/domains"
            try? FileManager.default.removeItem(atPath: path)
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true)
            let bytes = StateRecord.wrap(kind: "domain", body: Array(body.utf8))
            try Data(bytes).write(to: URL(fileURLWithPath: path + "/\(uuid).state"))
            let manager = try await fixture.manager(FakeEngine(), stored: true)
            let warnings = await manager.restore()
            let names = await manager.listDomains().map(\.domain)
            await manager.shutdown()
            return (names, warnings)
        }
        let odd = try await start(
            #"{"name":"vm1","uuid":"\#(uuid)","xml":"\#(xml)","granularityBytes":3}"#)
        #expect(odd.names == ["vm1"] && odd.warnings.count == 1, "\(odd)")
        for body in [
            #"{"name":"vm1","uuid":"\#(uuid)","xml":"\#(xml)","granularityBytes":99999999999}"#,
            #"{"name":"vm1","uuid":"\#(uuid)","xml":"\#(xml)","granularityBytes":-1}"#,
            #"{"name":"vm2","uuid":"\#(uuid)","xml":"\#(xml)"}"#,
            #"{"name":"vm1","uuid":"00000000-edaf-9455-926a-d65c16db1809","xml":"\#(xml)"}"#,
            #"{"name":"vm1","xml":"<domain/>"}"#, "[]", "", String(repeating: "[", count: 100_000),
        ] {
            let found = try await start(body)
            #expect(found.names.isEmpty && !found.warnings.isEmpty, "\(body.prefix(200))")
        }
    }

    @Test("a file of an earlier version, named by its domain, is renewed")
    func renewed() async throws {
        let fixture = try ControlFixture()
        let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
        let path = fixture.stateDirectory + "/domains"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        let record = StoredDomain(
            name: "vm 1", xml: "<domain><name>vm 1</name><uuid>\(uuid)</uuid></domain>")
        try Data(StateRecord.encode(kind: "domain", record)).write(
            to: URL(fileURLWithPath: path + "/vm%201.state"))
        let manager = try await fixture.manager(FakeEngine(), stored: true)
        #expect(await manager.restore() == [])
        #expect(await manager.listDomains().map(\.domain) == ["vm 1"])
        let files = try FileManager.default.contentsOfDirectory(atPath: path)
        #expect(files == ["\(uuid).state"])
        try await manager.undefine("vm 1")
        #expect(try FileManager.default.contentsOfDirectory(atPath: path).isEmpty)
    }
}
