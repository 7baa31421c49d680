import Control
import Foundation
import ServerInterface
import Testing

/// Imports that come to nothing, come twice, or meet what the server has of its own.
@Suite struct MoveRefusalTests {
    private static let uuid = "6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001"

    /// Two servers that know the same domain.
    private struct Pair {
        let (a, b): (ControlFixture, ControlFixture)
        let (first, second): (JobManager, JobManager)
        var file: String { a.root + "/vm1.state" }

        init() async throws {
            (a, b) = (try ControlFixture(), try ControlFixture())
            first = try await a.manager(stored: true)
            second = try await b.manager(stored: true)
            let xml = a.domainXML().replacing(
                "<name>vm1</name>",
                with: "<name>vm1</name><uuid>\(MoveRefusalTests.uuid)</uuid>")
            try await first.define(xml: xml)
            try await second.define(xml: xml)
        }

        func checkpoint(_ name: String, on manager: JobManager) async throws {
            try await manager.createCheckpoint(
                domain: "vm1", xml: "<domaincheckpoint><name>\(name)</name></domaincheckpoint>")
        }

        @discardableResult
        func export(
            _ manager: JobManager, _ disks: [String] = [], to file: String? = nil
        ) async throws -> MoveView {
            try await manager.exportState(of: "vm1", disks: disks, to: file ?? self.file)
        }

        @discardableResult
        func take(
            _ manager: JobManager, _ file: String? = nil, isUnchanged: Bool = false
        ) async throws -> MoveView {
            try await manager.importState(
                of: "vm1",
                JobManager.ImportRequest(file: file ?? self.file, isUnchanged: isUnchanged))
        }
    }

    private func refusal(_ body: () async throws -> Void) async -> String {
        do {
            try await body()
        } catch let error as ControlError {
            return error.message
        } catch {
            return "\(error)"
        }
        return ""
    }

    @Test("P3: storage that shows no time of change counts as changed, but for the caller's word")
    func untold() async throws {
        for isUnchanged in [false, true] {
            let pair = try await Pair()
            try await pair.checkpoint("c0", on: pair.first)
            try await pair.export(pair.first)
            let move = try await pair.take(pair.second, isUnchanged: isUnchanged)
            #expect(
                move.disks.allSatisfy {
                    $0.allChanged?.contains("does not show whether it was changed")
                        == (isUnchanged ? nil : true)
                })
            #expect(pair.b.engine.look { $0.terms?.marksEverything } == !isUnchanged)
        }
    }

    @Test("P3: who has served a disk since its export knows nothing of it, whatever is said")
    func servedSince() async throws {
        let pair = try await Pair()
        try await pair.checkpoint("c0", on: pair.first)
        try await pair.export(pair.first, ["vda"])
        let definition = try await pair.first.domainXML("vm1")
        try await pair.first.undefine("vm1", removingCheckpoints: true)
        try await pair.first.define(xml: definition)
        let move = try await pair.take(pair.first, isUnchanged: true)
        #expect(move.disks[0].allChanged?.contains("did not record all") == true)
    }

    @Test("P3: a disk that was served untracked since counts as changed, whatever is said")
    func untracked() async throws {
        for mark in ["", "untracked 1"] {
            let pair = try await Pair()
            pair.b.engine.change {
                $0.sourceMark = mark
                $0.sourceNote = mark.isEmpty ? .none : .other
            }
            try await pair.checkpoint("c0", on: pair.first)
            try await pair.export(pair.first)
            let move = try await pair.take(pair.second, isUnchanged: true)
            #expect((move.disks[0].allChanged == nil) == mark.isEmpty)
        }
    }

    @Test(
        "P3: an import that was cut off is given again before anything is done to its checkpoints")
    func cutOff() async throws {
        let pair = try await Pair()
        let engine = pair.b.engine
        try await pair.checkpoint("c0", on: pair.first)
        try await pair.export(pair.first)
        engine.change { $0.adoptFault = .notTracked(export: "vda", detail: "no room") }
        var text = await refusal { try await pair.take(pair.second) }
        #expect(text.contains("no room") && text.contains("give the same command again"))
        text = await refusal { try await pair.checkpoint("c1", on: pair.second) }
        #expect(text.contains("was cut off"))
        text = await refusal { try await pair.second.deleteCheckpoint("c0", of: "vm1") }
        #expect(text.contains("was cut off"))
        // What is there is not what comes, although there is something.
        let directory = "\(pair.b.stateDirectory)/disks/\(Self.uuid)/vda"
        engine.change {
            $0.adoptFault = nil
            $0.chains[directory] = ["own"]
        }
        text = await refusal { try await pair.take(pair.second) }
        #expect(text.contains("checkpoints of its own here (own)"))
        engine.change { $0.chains[directory] = nil }
        // What was doubted before is not vouched for now.
        let move = try await pair.take(pair.second, isUnchanged: true)
        #expect(move.disks[0].allChanged != nil)
        #expect(engine.look { $0.terms?.marksEverything } == true)
        #expect(engine.look { $0.chains[directory] } == ["c0"])
        try await pair.checkpoint("c1", on: pair.second)
    }

    @Test("P3: bits that cannot be used are found out before anything is kept of an import")
    func unusable() async throws {
        let pair = try await Pair()
        let engine = pair.b.engine
        try await pair.checkpoint("c0", on: pair.first)
        try await pair.export(pair.first)
        engine.change { $0.checkFault = .notTracked(export: "vda", detail: "bad layer") }
        let text = await refusal { try await pair.take(pair.second) }
        #expect(text.contains("bad layer") && !text.contains("again"))
        #expect(try await pair.second.listCheckpoints(of: "vm1").isEmpty)
        let moves = "\(pair.b.stateDirectory)/moves/\(Self.uuid).state"
        #expect(!FileManager.default.fileExists(atPath: moves))
        #expect(engine.attachedCount == 2)
        try await pair.checkpoint("own", on: pair.second)
    }

    @Test("P3: a refused import where the disk came from leaves what it needs to go once more")
    func refusedAtHome() async throws {
        let pair = try await Pair()
        let engine = pair.a.engine
        engine.change { $0.keepsChainsInDirectories = true }
        try await pair.checkpoint("c0", on: pair.first)
        let move = try await pair.export(pair.first, ["vda"])
        let directory = "\(pair.a.stateDirectory)/disks/\(Self.uuid)/vda"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        try Data([1]).write(to: URL(fileURLWithPath: directory + "/record-moved"))
        engine.change { $0.checkFault = .notTracked(export: "vda", detail: "bad layer") }
        _ = await refusal { try await pair.take(pair.first) }
        #expect(FileManager.default.fileExists(atPath: directory + "/record-moved"))
        #expect(!FileManager.default.fileExists(atPath: directory + ".coming"))
        let again = try await pair.export(pair.first, ["vda"], to: pair.a.root + "/again")
        #expect(again.id == move.id && again.disks[0].checkpoints == ["c0"])
        engine.change { $0.checkFault = nil }
        try await pair.take(pair.first)
        #expect(!FileManager.default.fileExists(atPath: directory + "/record-moved"))
        #expect(FileManager.default.fileExists(atPath: directory))
        #expect(!FileManager.default.fileExists(atPath: directory + ".coming"))
    }

    @Test("P3: a checkpoint that does not come back has no bits of the disk any more")
    func stale() async throws {
        let pair = try await Pair()
        try await pair.checkpoint("c0", on: pair.first)
        try await pair.checkpoint("c1", on: pair.first)
        try await pair.export(pair.first, ["vda"])
        try await pair.take(pair.second)
        try await pair.second.deleteCheckpoint("c1", of: "vm1")
        let back = pair.b.root + "/back.state"
        try await pair.export(pair.second, ["vda"], to: back)
        try await pair.take(pair.first, back)
        for (name, disks) in [("c0", ["vda", "vdb"]), ("c1", ["vdb"])] {
            let xml = try await pair.first.checkpointXML(name, of: "vm1", withDomain: false).xml
            for disk in ["vda", "vdb"] {
                #expect(
                    xml.contains("<disk name='\(disk)' checkpoint='no'/>")
                        != disks.contains(disk), "\(xml)")
            }
        }
        // There the disk that has stayed is none of the checkpoint's.
        let there = try await pair.second.checkpointXML("c0", of: "vm1", withDomain: false).xml
        #expect(there.contains("<disk name='vdb' checkpoint='no'/>"), "\(there)")
    }

    @Test("P3: bits without a description do not go along")
    func forgotten() async throws {
        let pair = try await Pair()
        try await pair.checkpoint("c0", on: pair.first)
        try await pair.checkpoint("c1", on: pair.first)
        try await pair.first.deleteCheckpoint("c0", of: "vm1", metadataOnly: true)
        let move = try await pair.export(pair.first)
        #expect(move.disks.map(\.checkpoints) == [["c1"], ["c1"]])
        try await pair.take(pair.second)
    }

    @Test("an export that was not told of its success is given again; other files are left alone")
    func files() async throws {
        let pair = try await Pair()
        let other = Data([1, 2, 3])
        try other.write(to: URL(fileURLWithPath: pair.file + ".new"))
        let move = try await pair.export(pair.first)
        #expect(try await pair.export(pair.first) == move)
        #expect(try Data(contentsOf: URL(fileURLWithPath: pair.file + ".new")) == other)
        try other.write(to: URL(fileURLWithPath: pair.a.root + "/other"))
        let text = await refusal {
            try await pair.export(pair.first, to: pair.a.root + "/other")
        }
        #expect(text.contains("it exists"))
        let left = try FileManager.default.contentsOfDirectory(atPath: pair.a.root)
        #expect(left.filter { $0.hasSuffix(".new") } == ["vm1.state.new"])
    }
}
