package import Foundation
package import ServerInterface

/// A backup that options of the command line ask for, instead of XML.
package struct BackupOptions: Sendable, Hashable {
    /// Asks for the newest usable checkpoint, or for a name made from the time.
    package static let automatic = "auto"

    /// The checkpoint to start from, or `automatic`; nil asks for a full backup.
    package var incremental: String?
    /// Name of the checkpoint to create, or `automatic`; nil creates none.
    package var checkpoint: String?
    /// Where the exports are served; nil: on a unix socket beside the control socket.
    package var endpoint: ListenEndpoint?
    package var requiresTLS = false
    /// Targets; empty: every disk that has a medium and is not read-only.
    package var disks: [String] = []
    /// Absolute path; nil leaves the place of scratch to the server.
    package var scratchDirectory: String?
    /// The server writes the targets itself.
    package var isPush = false
    /// Of a push: absolute path; nil writes beside the disks.
    package var targetDirectory: String?
    /// Of a push; nil: qcow2.
    package var targetFormat: PushFormat?

    package init() {}

    /// What the request depends on besides the options.
    package struct Facts: Sendable {
        package var domain: DomainView
        package var disks: [DiskView]
        package var checkpoints: [CheckpointView]
        /// Absolute path of the directory for the job's unix socket.
        package var socketDirectory: String
        package var now: Date
        /// Keeps names of files apart from those of other jobs.
        package var tag: String

        package init(
            domain: DomainView, disks: [DiskView], checkpoints: [CheckpointView],
            socketDirectory: String, now: Date, tag: String
        ) {
            self.domain = domain
            self.disks = disks
            self.checkpoints = checkpoints
            self.socketDirectory = socketDirectory
            self.now = now
            self.tag = tag
        }
    }

    /// The request that the options stand for.
    package struct Request: Sendable, Hashable, Codable {
        package var backupXML: String
        package var checkpointXML: String?
        /// What `automatic` came to, a line each.
        package var notes: [String]
    }

    /// Writes the request.
    ///
    /// - Throws: 8 for disks that the domain does not have or that are named twice, for empty
    ///   names, and for a checkpoint of read-only disks only.
    package func request(_ facts: Facts) throws(ControlError) -> Request {
        for (option, value) in [("--incremental", incremental), ("--checkpoint", checkpoint)]
        where value == "" {
            throw .invalidArgument(
                what: option, detail: "the name is empty; '\(Self.automatic)' picks one")
        }
        let chosen = try chosenDisks(facts)
        let (bases, notes) = bases(of: chosen, facts)
        // One base for all of them need not be repeated for each disk.
        let isCommon = chosen.allSatisfy { bases[$0.disk] == bases[chosen[0].disk] }
        var common = isCommon ? chosen.first.flatMap { bases[$0.disk] } : nil
        if let named = incremental, named != Self.automatic { common = named }
        let listsDisks =
            !disks.isEmpty || scratchDirectory != nil || !isCommon || targetDirectory != nil
            || targetFormat != nil
        var writer = XMLWriter()
        writer.element("domainbackup", [("mode", isPush ? "push" : "pull")]) { root in
            if let common { root.leaf("incremental", text: common) }
            if !isPush { root.empty("server", server(facts)) }
            guard listsDisks else { return }
            root.element("disks") { list in
                for disk in chosen {
                    write(disk, base: isCommon ? nil : bases[disk.disk], isCommon, facts, &list)
                }
            }
        }
        return Request(
            backupXML: writer.text, checkpointXML: try checkpointXML(chosen, facts), notes: notes)
    }

    private func chosenDisks(_ facts: Facts) throws(ControlError) -> [DiskView] {
        let name = facts.domain.domain
        guard !disks.isEmpty else {
            let all = facts.disks.filter { $0.source != nil && !$0.readOnly }
            // The server says best what is wrong with a domain that has none.
            if scratchDirectory != nil, let failed = all.first(where: { $0.errorMessage != nil }) {
                throw .invalidArgument(
                    what: "disk '\(failed.disk)' of domain '\(name)'",
                    detail: "it is not served (\(failed.errorMessage ?? "")): name the disks to "
                        + "back up with --disk")
            }
            return all
        }
        var chosen: [DiskView] = []
        for target in disks {
            guard let disk = facts.disks.first(where: { $0.disk == target }) else {
                let known = facts.disks.map(\.disk)
                throw .invalidArgument(
                    what: "--disk '\(target)'",
                    detail: "domain '\(name)' has none of that name, only "
                        + (known.isEmpty ? "none at all" : known.joined(separator: ", ")))
            }
            guard !chosen.contains(disk) else {
                throw .invalidArgument(what: "--disk '\(target)'", detail: "it is named twice")
            }
            chosen.append(disk)
        }
        return chosen
    }

    // By target: the checkpoint that a disk starts from, as far as `automatic` decides that.
    private func bases(
        of chosen: [DiskView], _ facts: Facts
    ) -> (bases: [String: String], notes: [String]) {
        guard incremental == Self.automatic else { return ([:], []) }
        let tracked = chosen.filter { !$0.readOnly && $0.errorMessage == nil }.map(\.disk)
        // Times are whole seconds: of two in one second, the one with more below it is the older.
        let newestFirst = facts.checkpoints.sorted {
            ($1.creationTime, $0.descendants) < ($0.creationTime, $1.descendants)
        }
        func starts(_ target: String, from checkpoint: CheckpointView) -> Bool {
            checkpoint.disks.contains { $0.disk == target && $0.usable }
        }
        let ofAll = newestFirst.first { checkpoint in
            !tracked.isEmpty && tracked.allSatisfy { starts($0, from: checkpoint) }
        }
        let ofSome = newestFirst.first { checkpoint in
            tracked.contains { starts($0, from: checkpoint) }
        }
        guard let base = ofAll ?? ofSome else {
            let why =
                facts.checkpoints.isEmpty
                ? "has no checkpoint" : "has no checkpoint that these disks can start from"
            return ([:], ["full backup: domain '\(facts.domain.domain)' \(why)"])
        }
        var bases: [String: String] = [:]
        var notes = ["incremental backup since checkpoint '\(base.name)'"]
        for disk in chosen {
            if tracked.contains(disk.disk), starts(disk.disk, from: base) {
                bases[disk.disk] = base.name
            } else {
                notes.append(
                    "disk '\(disk.disk)' is backed up in full: it cannot start from checkpoint "
                        + "'\(base.name)'")
            }
        }
        return (bases, notes)
    }

    private func server(_ facts: Facts) -> [(String, String?)] {
        let tls: (String, String?) = ("tls", requiresTLS ? "yes" : nil)
        switch endpoint {
        case .tcp(let host, let port)?:
            return [("transport", "tcp"), ("name", host), ("port", port.map(String.init)), tls]
        case .unix(let path, _)?:
            return [("transport", "unix"), ("socket", path), tls]
        case nil:
            let path = "\(facts.socketDirectory)/backup-\(facts.tag).sock"
            return [("transport", "unix"), ("socket", path), tls]
        }
    }

    private func write(
        _ disk: DiskView, base: String?, _ isCommon: Bool, _ facts: Facts,
        _ list: inout XMLWriter
    ) {
        let mode: String? = isCommon ? nil : base == nil ? "full" : "incremental"
        let attributes: [(String, String?)] = [
            ("name", disk.disk), ("type", "file"), ("backupmode", mode), ("incremental", base),
        ]
        guard !isPush else { return writePush(disk, attributes, facts, &list) }
        guard let scratchDirectory else { return list.empty("disk", attributes) }
        let file = "\(facts.domain.uuid)-\(disk.disk).\(facts.tag)"
        list.element("disk", attributes) {
            $0.empty("scratch", [("file", "\(scratchDirectory)/\(file)")])
        }
    }

    private func writePush(
        _ disk: DiskView, _ attributes: [(String, String?)], _ facts: Facts,
        _ list: inout XMLWriter
    ) {
        guard targetFormat != nil || targetDirectory != nil else {
            return list.empty("disk", attributes)
        }
        // A name of libvirt's kind: at its end the checkpoint, else the time.
        let suffix = checkpointName(facts) ?? String(Int(facts.now.timeIntervalSince1970))
        let file = "\(facts.domain.domain)-\(disk.disk).\(suffix)"
            .split(separator: "/").joined(separator: "_")
        list.element("disk", attributes) {
            $0.empty("driver", [("type", (targetFormat ?? .qcow2).rawValue)])
            if let targetDirectory {
                $0.empty("target", [("file", "\(targetDirectory)/\(file)")])
            }
        }
    }

    // A checkpoint holds the disks of its backup and no others: one that was not backed up would
    // seem to have a base.
    private func checkpointXML(
        _ chosen: [DiskView], _ facts: Facts
    ) throws(ControlError) -> String? {
        guard let name = checkpointName(facts) else { return nil }
        guard !disks.isEmpty else {
            return try CheckpointDiskSpec.document(name: name, description: nil, diskspecs: [])
        }
        let tracked = chosen.filter { !$0.readOnly }.map(\.disk)
        guard !tracked.isEmpty else {
            throw .invalidArgument(
                what: "--checkpoint",
                detail: "read-only disks have none, and no other disk is in this backup")
        }
        return try CheckpointDiskSpec.document(name: name, description: nil, diskspecs: tracked)
    }

    private func checkpointName(_ facts: Facts) -> String? {
        checkpoint == Self.automatic ? freeName(facts) : checkpoint
    }

    private func freeName(_ facts: Facts) -> String {
        let style = Date.ISO8601FormatStyle(
            dateSeparator: .omitted, dateTimeSeparator: .standard, timeSeparator: .omitted)
        let stem = facts.now.formatted(style)
        let taken = Set(facts.checkpoints.map(\.name))
        var name = stem
        var number = 2
        while taken.contains(name) {
            name = "\(stem)-\(number)"
            number += 1
        }
        return name
    }
}
