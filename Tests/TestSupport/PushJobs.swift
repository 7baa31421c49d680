import Foundation

/// What `domjobinfo --json` prints, as far as tests of pushes need it.
package struct PushInfo: Decodable, Sendable {
    package let jobType: String
    package let outcome: String?
    package let errorMessage: String?
    package let bytesRead: Int?
    package let bytesToRead: Int?
    package let checkpointKept: Bool?
    package let timeElapsed: Int?
}

/// One target of a push as a test asks for it.
package struct PushDisk: Sendable {
    package var target: String
    package var path: String?
    package var format: String?
    package var isBlock = false

    package init(_ target: String, _ path: String? = nil, format: String? = nil) {
        self.target = target
        self.path = path
        self.format = format
    }

    var xml: String {
        let kind = isBlock ? "block" : "file"
        var text = "<disk name='\(target)' type='\(kind)'>"
        if let format { text += "<driver type='\(format)'/>" }
        if let path { text += "<target \(isBlock ? "dev" : "file")='\(path)'/>" }
        return text + "</disk>"
    }
}

extension ServerUnderTest {
    /// A file with a `<domainbackup>` of push mode.
    package func pushFile(_ disks: [PushDisk], incremental: String? = nil) throws -> String {
        let path = directory.file("push-" + UUID().uuidString + ".xml")
        let base = incremental.map { "<incremental>\($0)</incremental>" } ?? ""
        let list = disks.map(\.xml).joined()
        try Files.write(
            "<domainbackup mode='push'>\(base)<disks>\(list)</disks></domainbackup>", to: path)
        return path
    }

    /// The arguments that begin a push.
    package func pushArguments(
        _ disks: [PushDisk], incremental: String? = nil, checkpoint: String? = nil
    ) throws -> [String] {
        var words = ["backup-begin", "vm1", try pushFile(disks, incremental: incremental)]
        if let checkpoint {
            let path = directory.file("checkpoint-" + UUID().uuidString + ".xml")
            try Files.write(
                "<domaincheckpoint><name>\(checkpoint)</name></domaincheckpoint>", to: path)
            words += ["--checkpointxml", path]
        }
        return words
    }

    /// Figures of an ended push, once it has; fails when that takes too long.
    package func awaitPush(_ id: String, timeout seconds: Double = 60) throws -> PushInfo {
        let end = Date(timeIntervalSinceNow: seconds)
        while Date() < end {
            let ended = try cli([
                "domjobinfo", "vm1", "--job", id, "--completed", "--keep-completed", "--json",
            ])
            if ended.succeeded {
                return try JSONDecoder().decode(PushInfo.self, from: Data(ended.stdout.utf8))
            }
            Thread.sleep(forTimeInterval: 0.05)
        }
        throw TestFailure("push \(id) did not end: \(stderr)")
    }

    /// Figures of a push that runs.
    package func pushInfo(_ id: String) throws -> PushInfo {
        try json(["domjobinfo", "vm1", "--job", id], as: PushInfo.self)
    }

    /// The workers of this server, and what they have started.
    package var pushWorkers: [(process: Int32, name: String)] {
        var found: [(process: Int32, name: String)] = []
        var parents = [processID]
        while let parent = parents.popLast() {
            for task in Files.listing("/proc/\(parent)/task") {
                for child in Files.read("/proc/\(parent)/task/\(task)/children")
                    .split(separator: " ").compactMap({ Int32($0) })
                {
                    let name =
                        Files.read("/proc/\(child)/cmdline")
                        .split(separator: "\0").first.map(String.init) ?? ""
                    found.append((child, name))
                    parents.append(child)
                }
            }
        }
        return found
    }
}
