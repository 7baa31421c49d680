import CLinux
import Glibc
import Synchronization

/// Write errors that the kernel met after the write had returned, when it wrote the page cache
/// back.
extension FileCalls {
    /// The errno of a failed write-back of the file that this descriptor has not been told of yet,
    /// or nil.
    ///
    /// Never waits: it asks about a range behind every file's end, in which no page is being
    /// written. An answer of nil covers every page that has left the cache before the call.
    package static func writeError(_ descriptor: Int32) -> Int32? {
        let result = sync_file_range(
            descriptor, pastEveryEnd, onePage,
            nbdpull_SYNC_FILE_RANGE_WAIT_BEFORE)
        if result == 0 { return nil }
        return errno
    }

    private static let pastEveryEnd: off_t = 1 << 60
    private static let onePage: off_t = 4096
}

/// Is told of write errors of one open file, and remembers that there were some.
package final class WriteErrorWitness: Sendable {
    private let descriptor: OwnedDescriptor?
    private let ask: (@Sendable () -> Int32?)?
    private let found = Mutex<(count: Int, errno: Int32)>((0, 0))
    /// The errno of an error from before `init` that nobody had been told of, or nil.
    package let earlier: Int32?

    /// The descriptor's number, for a single thread that asks by `FileCalls.writeError` and acts on
    /// the answer; valid while this object lives.
    package let raw: Int32

    /// Opens the same file once more, as the kernel tells each open file of an error once; errors
    /// that it meets from now on are told.
    package init(of descriptor: Int32) throws(SystemFault) {
        let own = try FileCalls.open("/proc/self/fd/\(descriptor)", [])
        // An error that nobody has been told of goes to the next one to open the file.
        earlier = FileCalls.writeError(own.raw)
        raw = own.raw
        self.descriptor = consume own
        ask = nil
    }

    /// Of a file that is no descriptor: `ask` gives an errno that was not told before, or nil.
    package init(
        raw: Int32, earlier: Int32? = nil, asking ask: @escaping @Sendable () -> Int32?
    ) {
        self.raw = raw
        descriptor = nil
        self.earlier = earlier
        self.ask = ask
    }

    /// How often errors were found since `init`, and the last one's errno; never waits for the
    /// file.
    package func errors() -> (count: Int, errno: Int32) {
        found.withLock { found in
            if let errno = ask.map({ $0() }) ?? FileCalls.writeError(raw) {
                found = (found.count + 1, errno)
            }
            return found
        }
    }
}
