import CLinux
import Glibc

/// Another process of this machine, named so that no later one is taken for it.
package struct OtherProcess: ~Copyable, Sendable {
    package let number: Int32
    private let descriptor: OwnedDescriptor

    /// ESRCH: there is none.
    package init(_ number: Int32) throws(SystemFault) {
        self.number = number
        descriptor = OwnedDescriptor(
            adopting: try SystemFault.check("pidfd_open") { nbdpull_pidfd_open(number) })
    }

    /// Sends it a signal; false when it is gone, or is none of ours.
    @discardableResult
    package func signal(_ signal: Int32) -> Bool {
        nbdpull_pidfd_send_signal(descriptor.raw, signal) == 0
    }

    /// Ends it, whatever it does; false when it has not ended in time.
    package func kill(milliseconds: Int32) -> Bool {
        signal(SIGKILL)
        return hasEnded(within: milliseconds)
    }

    /// Whether it ends in time.
    package func hasEnded(within milliseconds: Int32) -> Bool {
        Polling.waitForInput([descriptor.raw], milliseconds: milliseconds) != nil
    }

    /// Sends a signal to a process by its number, which may be another one's by now.
    package static func signal(_ number: Int32, _ signal: Int32) { _ = Glibc.kill(number, signal) }

    // MARK: Children

    /// Starts a program with this process's directory and standard streams; returns its number.
    ///
    /// `environment` holds `NAME=VALUE`.
    package static func start(
        _ path: String, _ arguments: [String], environment: [String]
    ) throws(SystemFault) -> Int32 {
        // SAFETY: both lists end with nil and live until the call has returned; each copy is freed
        // once.
        var words = unsafe ([path] + arguments).map { unsafe strdup($0) }
        var values = unsafe environment.map { unsafe strdup($0) }
        unsafe words.append(nil)
        unsafe values.append(nil)
        defer { unsafe (words + values).forEach { unsafe free($0) } }
        var process: Int32 = 0
        let result = unsafe nbdpull_spawn(&process, path, words, values)
        guard result == 0 else { throw SystemFault(call: "posix_spawn", errno: result) }
        return process
    }

    /// Waits for the end of a child; its exit status, or 128 and the signal that ended it.
    package static func awaitChild(_ number: Int32) -> Int32 { nbdpull_await_child(number) }
}

extension OwnedDescriptor {
    /// Another name for the same open file or socket, which the caller owns.
    package static func duplicate(_ number: Int32) throws(SystemFault) -> Int32 {
        try SystemFault.check("fcntl") { fcntl(number, F_DUPFD_CLOEXEC, 0) }
    }

    /// Closes a descriptor that the caller owns.
    package static func closeNumber(_ number: Int32) { _ = OwnedDescriptor(adopting: number) }
}
