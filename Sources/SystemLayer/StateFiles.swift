import CLinux
import Glibc

/// Small files that must never be half written.
package enum StateFiles {
    /// Replaces a file's content so that after any crash either the old or the new one is there.
    ///
    /// Write to a new name, sync, rename, sync the directory.
    package static func replace(_ path: String, with bytes: [UInt8]) throws(SystemFault) {
        let temporary = path + ".new"
        try FileCalls.remove(temporary)
        let descriptor = try FileCalls.open(temporary, [.write, .createNew])
        do throws(SystemFault) {
            try FileCalls.write(descriptor.raw, bytes, at: 0)
            try FileCalls.sync(descriptor.raw)
            _ = try SystemFault.check("rename") {
                // SAFETY: the strings are passed for the time of the call.
                unsafe rename(temporary, path)
            }
        } catch {
            try? FileCalls.remove(temporary)
            throw error
        }
        try syncDirectory(of: path)
    }

    /// Makes the names in a file's directory durable.
    package static func syncDirectory(of path: String) throws(SystemFault) {
        let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
        try syncDirectory(parent.isEmpty ? "/" : parent)
    }

    /// Makes the names in a directory durable.
    package static func syncDirectory(_ path: String) throws(SystemFault) {
        let number = try SystemFault.check("open") {
            // SAFETY: the string is passed for the time of the call.
            unsafe Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        }
        let descriptor = OwnedDescriptor(adopting: number)
        _ = try SystemFault.check("fsync") { fsync(descriptor.raw) }
    }

    /// Reads a whole file of at most `limit` bytes; nil when it does not exist.
    package static func read(_ path: String, limit: Int) throws(SystemFault) -> [UInt8]? {
        do throws(SystemFault) {
            let descriptor = try FileCalls.open(path, [])
            let size = try FileCalls.facts(descriptor.raw).sizeBytes
            guard size <= UInt64(limit) else { throw SystemFault(call: "read", errno: EFBIG) }
            return try FileCalls.readAll(descriptor.raw, count: Int(size))
        } catch {
            if error.errno == ENOENT { return nil }
            throw error
        }
    }

    /// Makes a directory, mode 0700, with its parents; one that exists is fine.
    package static func makeDirectory(_ path: String) throws(SystemFault) {
        do throws(SystemFault) {
            return try makeOne(path)
        } catch {
            guard error.errno == ENOENT else { throw error }
        }
        var built = path.hasPrefix("/") ? "" : "."
        for part in path.split(separator: "/") {
            built += "/" + part
            try makeOne(built)
        }
    }

    private static func makeOne(_ path: String) throws(SystemFault) {
        do throws(SystemFault) {
            _ = try SystemFault.check("mkdir") {
                // SAFETY: the string is passed for the time of the call.
                unsafe mkdir(path, 0o700)
            }
        } catch {
            if error.errno != EEXIST { throw error }
        }
    }

    /// Whether a directory lies wholly in memory (tmpfs): it outlives the process, not the machine.
    package static func isMemory(_ path: String) -> Bool {
        var facts = statfs()
        // SAFETY: the kernel fills the local; the string is passed for the time of the call.
        return unsafe statfs(path, &facts) == 0 && Int(facts.f_type) == nbdpull_TMPFS_MAGIC
    }

    /// Whether a path is a directory of this user's that nobody else may look into.
    package static func isPrivate(_ path: String) -> Bool {
        var facts = stat()
        // SAFETY: the kernel fills the local; the string is passed for the time of the call.
        return unsafe lstat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFDIR
            && facts.st_uid == geteuid() && facts.st_mode & 0o077 == 0
    }

    /// The names in a directory, unsorted; empty when it does not exist.
    package static func names(in directory: String) -> [String] {
        // SAFETY: the stream is closed before returning; every name is copied while it is valid.
        guard let stream = unsafe opendir(directory) else { return [] }
        defer { unsafe _ = closedir(stream) }
        var names: [String] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) {
                    unsafe String(cString: $0)
                }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// The names in a directory, unsorted; an error when it cannot be read to its end.
    package static func namesOrFault(in directory: String) throws(SystemFault) -> [String] {
        // SAFETY: the stream is closed before returning; every name is copied while it is valid.
        guard let stream = unsafe opendir(directory) else {
            throw SystemFault(call: "opendir", errno: errno)
        }
        defer { unsafe _ = closedir(stream) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = unsafe readdir(stream) else { break }
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) {
                    unsafe String(cString: $0)
                }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        if errno != 0 { throw SystemFault(call: "readdir", errno: errno) }
        return names
    }

    /// The running kernel's boot id: another one means that the machine was restarted.
    package static func bootID() -> String {
        do throws(SystemFault) {
            let descriptor = try FileCalls.open("/proc/sys/kernel/random/boot_id", [])
            let bytes = try FileCalls.readAll(descriptor.raw, count: 36)
            return String(decoding: bytes, as: UTF8.self)
        } catch {
            // Without one every unclean stop counts as a loss of power.
            return ""
        }
    }
}
