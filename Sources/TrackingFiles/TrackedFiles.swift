package import SystemLayer

/// One open file of a disk's tracking.
///
/// A protocol, so that tests can put storage underneath that fails at any step.
package protocol TrackedFile: AnyObject, Sendable {
    func sizeBytes() throws(SystemFault) -> UInt64
    /// Up to `count` bytes; fewer at the file's end.
    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8]
    /// Where the first byte at or after a position lies that is not in a hole; nil: nowhere.
    func data(from position: UInt64) throws(SystemFault) -> UInt64?
    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault)
    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64) throws(SystemFault)
    /// Makes what was written through this object durable.
    func sync() throws(SystemFault)
}

/// A directory with files of a disk's tracking.
package protocol TrackedDirectory: AnyObject, Sendable {
    /// For messages.
    var path: String { get }
    /// Makes the directory when it is missing.
    func make() throws(SystemFault)
    /// Names of the files, unsorted.
    func names() throws(SystemFault) -> [String]
    /// Opens a file that exists; ENOENT when it does not.
    func open(_ name: String, writable: Bool) throws(SystemFault) -> any TrackedFile
    /// Makes an empty file, or empties one, with room for `reserving` bytes.
    func create(_ name: String, reserving: UInt64) throws(SystemFault) -> any TrackedFile
    /// Gives a file another name, replacing the one that has it.
    func rename(_ from: String, to: String) throws(SystemFault)
    /// Removes a name; one that is gone already is fine.
    func remove(_ name: String) throws(SystemFault)
    /// Makes the names durable.
    func sync() throws(SystemFault)
    /// Removes the directory itself when nothing is in it.
    func removeIfEmpty() throws(SystemFault)
}

extension TrackedDirectory {
    /// The whole of a file of at most `limit` bytes; nil when it does not exist.
    func read(_ name: String, limit: Int) throws(SystemFault) -> [UInt8]? {
        guard let file = try openIfThere(name) else { return nil }
        let size = try file.sizeBytes()
        guard size <= UInt64(limit) else {
            throw SystemFault(call: "read", errno: Errno.fileTooBig)
        }
        return try file.read(at: 0, count: Int(size))
    }

    /// Opens a file for reading; nil when it does not exist.
    func openIfThere(_ name: String) throws(SystemFault) -> (any TrackedFile)? {
        do throws(SystemFault) {
            return try open(name, writable: false)
        } catch {
            if error.errno == Errno.notFound { return nil }
            throw error
        }
    }

    /// Replaces a file's content so that after any crash either the old or the new one is there.
    ///
    /// The content is a new file's, so no older error of the file can hide in its success. On an
    /// error either may be there. Without `isNameDurable` a loss of power may leave the old one
    /// until the directory is synced.
    func replace(
        _ name: String, with bytes: [UInt8], isNameDurable: Bool = true
    ) throws(SystemFault) {
        _ = try replace(name, with: bytes, through: RecordGate(), isNameDurable: isNameDurable)
    }

    /// The same, unless the gate is closed by the time the content is durable; then false.
    func replace(
        _ name: String, with bytes: [UInt8], through gate: RecordGate, isNameDurable: Bool = true
    ) throws(SystemFault) -> Bool {
        let temporary = name + ".new"
        let file = try create(temporary, reserving: 0)
        do throws(SystemFault) {
            try file.write(bytes, at: 0)
            try file.sync()
            let isIn = try gate.pass { () throws(SystemFault) in
                try rename(temporary, to: name)
            }
            guard isIn else {
                try? remove(temporary)
                return false
            }
        } catch {
            try? remove(temporary)
            throw error
        }
        if isNameDurable { try sync() }
        return true
    }
}

/// What can be noted beside a disk's content, on its source itself.
package protocol SourceMark: AnyObject, Sendable {
    /// What was noted; nil when nothing was, or nothing can be.
    func read() throws(SystemFault) -> String?
    /// Notes something durably.
    func write(_ text: String) throws(SystemFault)
    /// Whether a note outlives the machine's restart.
    var isLasting: Bool { get }
}

// MARK: Real ones

/// A file of the tracking directory.
final class DiskFile: TrackedFile {
    private let descriptor: OwnedDescriptor

    init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }

    func sizeBytes() throws(SystemFault) -> UInt64 {
        try FileCalls.facts(descriptor.raw).sizeBytes
    }
    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8] {
        try FileCalls.read(descriptor.raw, at: position, count: count)
    }
    func data(from position: UInt64) throws(SystemFault) -> UInt64? {
        do throws(SystemFault) {
            return try FileCalls.seek(descriptor.raw, from: position, data: true)
        } catch {
            // A file system that cannot tell: everything may be data.
            if error.errno == Errno.invalid || error.errno == Errno.notSupported {
                return position < (try sizeBytes()) ? position : nil
            }
            throw error
        }
    }
    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault) {
        try FileCalls.write(descriptor.raw, bytes, at: position)
    }
    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        try FileCalls.write(descriptor.raw, words, first: first, count: count, at: position)
    }
    func sync() throws(SystemFault) { try FileCalls.sync(descriptor.raw) }
}

/// A directory of the machine's.
package final class DiskDirectory: TrackedDirectory {
    package let path: String

    package init(_ path: String) { self.path = path }

    private func file(_ name: String) -> String { path + "/" + name }

    package func make() throws(SystemFault) { try StateFiles.makeDirectory(path) }
    package func names() throws(SystemFault) -> [String] { try StateFiles.namesOrFault(in: path) }
    package func open(
        _ name: String, writable: Bool
    ) throws(SystemFault) -> any TrackedFile {
        DiskFile(try FileCalls.open(file(name), writable ? [.write] : []))
    }
    package func create(
        _ name: String, reserving: UInt64
    ) throws(SystemFault) -> any TrackedFile {
        try FileCalls.remove(file(name))
        let descriptor = try FileCalls.open(file(name), [.write, .createNew])
        do throws(SystemFault) {
            if reserving > 0 { try FileCalls.reserve(descriptor.raw, bytes: reserving) }
        } catch {
            try? FileCalls.remove(file(name))
            throw error
        }
        return DiskFile(descriptor)
    }
    package func rename(_ from: String, to: String) throws(SystemFault) {
        try FileCalls.rename(file(from), to: file(to))
    }
    package func remove(_ name: String) throws(SystemFault) { try FileCalls.remove(file(name)) }
    package func sync() throws(SystemFault) { try StateFiles.syncDirectory(path) }
    package func removeIfEmpty() throws(SystemFault) { try FileCalls.removeDirectory(path) }
}

/// An extended attribute of a source that is open.
package final class AttributeMark: SourceMark {
    private let descriptor: Int32
    /// Weak: the file is closed where its last user lets go of it, never by whoever forgets a mark,
    /// since that may hang; and whoever detaches a disk may open it again at once.
    private weak let owner: (any AnyObject & Sendable)?
    private let name: String
    /// The attribute of a regular file.
    package static let fileName = "user.nbdpull.tracking"
    /// A device's node is made anew at every start of the machine.
    package let isLasting: Bool

    /// The descriptor is open as long as `owner` lives; afterwards every call fails with EBADF.
    package init(_ descriptor: Int32, isFile: Bool, owner: any AnyObject & Sendable) {
        self.descriptor = descriptor
        self.owner = owner
        isLasting = isFile
        name = isFile ? Self.fileName : "trusted.nbdpull.tracking"
    }

    package func read() throws(SystemFault) -> String? {
        guard let owner else { throw Self.closed }
        defer { withExtendedLifetime(owner) {} }
        return try FileCalls.mark(descriptor, name)
    }

    package func write(_ text: String) throws(SystemFault) {
        guard let owner else { throw Self.closed }
        defer { withExtendedLifetime(owner) {} }
        try FileCalls.setMark(descriptor, name, text)
        if isLasting { try FileCalls.syncWhole(descriptor) }
    }

    private static var closed: SystemFault {
        SystemFault(call: "fsetxattr", errno: Errno.badDescriptor)
    }
}
