import Foundation
import FuzzEntries
import Testing

/// What the fuzzers have found worth keeping, replayed: every file must leave the process alive.
@Suite(.serialized) struct CorpusTests {
    private static func files(_ target: FuzzTarget) throws -> [URL] {
        let corpus = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "Corpus/\(target.rawValue)")
        return try FileManager.default.contentsOfDirectory(
            at: corpus, includingPropertiesForKeys: nil
        ).sorted { $0.path < $1.path }
    }

    @Test("P6: no file of a fuzzer's corpus hurts", arguments: FuzzTarget.allCases)
    func replay(target: FuzzTarget) async throws {
        let files = try Self.files(target)
        #expect(files.count >= 5, "the corpus of \(target) is missing")
        let server = target == .server ? try await FuzzServer.start() : nil
        for file in files {
            target.run([UInt8](try Data(contentsOf: file)), server: server)
        }
        if let server {
            await server.stop()
            try FileManager.default.removeItem(atPath: server.directory)
        }
    }
}
