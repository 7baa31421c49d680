import Foundation
import ServerInterface
import Testing

@testable import Control

/// State directories that releases have left (`Tests/Corpus/releases/make`) are read for ever.
@Suite struct ReleaseFilesTests {
    private static let corpus = URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Corpus/releases").path

    static let releases: [String] = {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: corpus)) ?? []
        return names.filter { $0 != "make" && !$0.hasPrefix("_") && !$0.hasPrefix(".") }.sorted()
    }()

    @Test("every record of a release is read", arguments: releases)
    func records(_ release: String) throws {
        let fixture = try ControlFixture()
        try FileManager.default.copyItem(
            atPath: "\(Self.corpus)/\(release)/killed/state", toPath: fixture.stateDirectory)
        let state = try StateDirectory(path: fixture.stateDirectory)
        let domains = state.domains()
        #expect(domains.damaged.isEmpty && domains.records.map(\.name) == ["vm1"])
        let domain = try #require(domains.records.first)
        _ = try DomainDefinition.kept(domain.xml)
        let checkpoints = state.checkpoints(of: try #require(domain.uuid))
        #expect(checkpoints.damaged.isEmpty)
        #expect(checkpoints.records.map(\.name).sorted() == ["c1", "c2", "c3"])
        #expect(checkpoints.records.allSatisfy { $0.phase == .committed })
        let jobs = state.jobs()
        #expect(jobs.damaged.isEmpty && jobs.records.count == 1)
        let resume = try #require(jobs.records.first?.resume?.value)
        #expect(resume.version == 1 && resume.diskSizes == ["vda": 4 << 20])
        #expect(resume.plan.disks.map(\.target) == ["vda"])
        let histories = state.histories()
        #expect(histories.damaged.isEmpty && histories.records.first?.jobs.first?.success == true)
        let freezes = state.freezes()
        #expect(freezes.damaged.isEmpty && freezes.records.map(\.domain) == ["vm1"])
        let crashes = state.crashes()
        #expect(crashes.damaged.isEmpty && crashes.records.map(\.name) == ["vm1/vda"])
        state.release()
    }

    @Test("a manager takes up what a release has left", arguments: releases)
    func restore(_ release: String) async throws {
        let fixture = try ControlFixture()
        try FileManager.default.copyItem(
            atPath: "\(Self.corpus)/\(release)/clean/state", toPath: fixture.stateDirectory)
        let manager = try await fixture.manager(stored: true)
        #expect(await manager.restore() == [])
        let names = try await manager.listCheckpoints(of: "vm1").map(\.name)
        #expect(names.sorted() == ["c1", "c2", "c3"])
        #expect(try await manager.endedJobs(domain: "vm1").count == 2)
    }
}
