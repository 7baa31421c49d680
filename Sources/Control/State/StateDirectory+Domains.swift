import Foundation

/// Domains are kept by their uuid, since a name can be longer than a file's may be.
///
/// Earlier versions kept them by their percent-encoded names; such a file is read, and gives way to
/// the new one when its domain is kept again.
extension StateDirectory {
    /// Longest name of a file, in bytes.
    private static let fileNameBytesMax = 255
    /// Suffix of a file that is being written.
    private static let stagedEnding = ".new"

    /// Keeps a domain, replacing the one of the same uuid.
    package func save(_ domain: StoredDomain) throws(ControlError) {
        try commit(try stage(domain))
        try removeEarlierForm(of: domain)
    }

    /// Keeps a domain of which there was no record; on a fault there is none afterwards either, or
    /// the error says so.
    package func saveNew(_ domain: StoredDomain) throws(ControlError) {
        let staged = try stage(domain)
        do throws(ControlError) {
            try commit(staged)
            try removeEarlierForm(of: domain)
        } catch {
            // It may be in its place, and not be durable.
            do throws(ControlError) {
                try remove(staged.target, in: domainsPath)
            } catch let second {
                throw error.adding("; the next start may find the domain: \(second.message)")
            }
            throw error
        }
    }

    /// Makes a domain's file ready to be put in place by `commit`.
    package func stage(_ domain: StoredDomain) throws(ControlError) -> StagedFile {
        guard let path = path(of: domain) else {
            throw Self.cannotWrite(domainsPath, "a domain without a uuid has too long a name")
        }
        try refuseNewerNaming(domain.name)
        return try stage(kind: "domain", domain, for: path)
    }

    /// Throws when a file of a newer version speaks of a domain of this name: it must not come into
    /// being a second time, under another uuid.
    private func refuseNewerNaming(_ name: String) throws(ControlError) {
        guard let quoted = try? JSONEncoder().encode(name) else { return }
        for file in domains().damaged where file.isNewer {
            guard let bytes = FileManager.default.contents(atPath: file.path),
                bytes.range(of: quoted) != nil
            else { continue }
            try refuseNewer(file.path)
        }
    }

    /// Forgets a domain.
    package func removeDomain(_ name: String, uuid: String? = nil) throws(ControlError) {
        let domain = StoredDomain(name: name, uuid: uuid, xml: "")
        if let path = path(of: domain) { try remove(path, in: domainsPath) }
        try removeEarlierForm(of: domain)
    }

    /// Every domain kept, in the order of their names.
    ///
    /// Where a domain is there in both forms, the older file is left out.
    package func domains() -> Contents<StoredDomain> {
        var contents = Contents<StoredDomain>()
        load(
            kind: "domain", StoredDomain.self, from: domainsPath, into: &contents.damaged
        ) { _, domain in contents.records.append(domain) }
        let renewed = Set(contents.records.filter { $0.uuid != nil }.map(\.name))
        contents.records.removeAll { $0.uuid == nil && renewed.contains($0.name) }
        contents.records.sort { $0.name < $1.name }
        return contents
    }

    private func path(of domain: StoredDomain) -> String? {
        domain.uuid.map { file(domainsPath, $0) } ?? earlierPath(domain.name)
    }

    /// Nil for a name that no earlier version can have kept.
    private func earlierPath(_ name: String) -> String? {
        let path = file(domainsPath, name)
        let fileName = (path as NSString).lastPathComponent + Self.stagedEnding
        return fileName.utf8.count <= Self.fileNameBytesMax ? path : nil
    }

    private func removeEarlierForm(of domain: StoredDomain) throws(ControlError) {
        guard domain.uuid != nil, let path = earlierPath(domain.name),
            SystemCalls.identity(of: path) != nil, isEarlierForm(path, of: domain.name)
        else { return }
        try remove(path, in: domainsPath)
    }

    /// A domain may have another one's uuid for a name: that one's file is not touched.
    private func isEarlierForm(_ path: String, of name: String) -> Bool {
        guard UUIDText.normalized(name) != nil else { return true }
        var damaged: [DamagedFile] = []
        var isEarlier = false
        load(
            kind: "domain", StoredDomain.self, from: domainsPath, into: &damaged
        ) { found, domain in
            if found == path { isEarlier = domain.uuid == nil }
        }
        return isEarlier
    }
}
