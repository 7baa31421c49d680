import ArgumentParser
import Control
import Foundation

/// Names for a shell's completion, asked of the server when the user presses the key.
///
/// A server that cannot be asked, or not soon, has no names: a completion never says anything else.
enum LiveNames {
    static let domains = CompletionKind.custom { words, _, _ async in
        await names(words) { client, _ async throws(ControlError) in
            try await domains(client).map(\.domain)
        }
    }

    static let disks = CompletionKind.custom { words, _, _ async in
        await names(words) { client, domain async throws(ControlError) in
            guard let domain else { return [] }
            return try await client.send(
                ControlClient.Call("GET", "v1", "domains", domain, "disks"), as: DisksBody.self
            ).disks.map(\.disk)
        }
    }

    static let checkpoints = CompletionKind.custom { words, _, _ async in
        await names(words, checkpoints(_:_:))
    }

    static let bases = CompletionKind.custom { words, _, _ async in
        await names(words) { client, domain async throws(ControlError) in
            [BackupOptions.automatic] + (try await checkpoints(client, domain))
        }
    }

    static let jobs = CompletionKind.custom { words, _, _ async in
        await names(words) { client, domain async throws(ControlError) in
            try await client.send(ControlClient.Call("GET", "v1", "jobs"), as: JobsBody.self).jobs
                .filter { domain == nil || $0.domain == domain }.map(\.id)
        }
    }

    private typealias Look =
        @Sendable (ControlClient, String?) async throws(ControlError) -> [String]

    /// Whoever presses a key does not wait for longer, in seconds.
    private static let patienceSeconds = 2

    private static func names(_ words: [String], _ look: Look) async -> [String] {
        Task {
            try? await Task.sleep(for: .seconds(patienceSeconds))
            Foundation.exit(0)
        }
        let option = words.firstIndex(of: "--socket").map { words[($0 + 1)...].first ?? "" }
        do throws(ControlError) {
            let path = try DefaultPlaces.controlSocket(
                option: option, ProcessInfo.processInfo.environment,
                isRoot: SystemCalls.effectiveUser == 0)
            let client = ControlClient(socketPath: path)
            // The words are not parsed: the first that is a domain's name is the domain.
            let known = try await domains(client)
            let domain = words.dropFirst(2).lazy.compactMap { word in
                known.first { $0.domain == word || $0.uuid == word }?.domain
            }.first
            return try await look(client, domain)
        } catch {
            return []
        }
    }

    private static func domains(
        _ client: ControlClient
    ) async throws(ControlError) -> [DomainView] {
        try await client.send(
            ControlClient.Call("GET", "v1", "domains"), as: DomainsBody.self
        ).domains
    }

    @Sendable private static func checkpoints(
        _ client: ControlClient, _ domain: String?
    ) async throws(ControlError) -> [String] {
        guard let domain else { return [] }
        return try await client.send(
            ControlClient.Call("GET", "v1", "domains", domain, "checkpoints"),
            as: CheckpointsBody.self
        ).checkpoints.map(\.name)
    }
}
