import CLinux
import Glibc

/// A kernel call that failed: which one, and the errno it left.
package struct SystemFault: Error, Sendable, Hashable {
    /// The call's name as in section 2 of the manual, for error texts.
    package let call: String
    /// The errno value, positive.
    package let errno: Int32

    package init(call: String, errno: Int32) {
        self.call = call
        self.errno = errno
    }

    /// Whether the call has ended before it could say anything of the file: a signal, no memory, no
    /// thread or descriptor for it.
    package var saysNothing: Bool {
        [EINTR, EAGAIN, ECANCELED, ENOMEM, EMFILE, ENFILE].contains(errno)
    }

    /// The C library's text for the errno.
    package var errorText: String { SystemFault.text(for: errno) }

    /// The C library's text for any errno value.
    package static func text(for errno: Int32) -> String {
        // SAFETY: strerror returns a NUL-terminated string that is copied before any other call.
        guard let text = unsafe strerror(errno) else { return "error \(errno)" }
        return unsafe String(cString: text)
    }

    /// Runs a call that reports failure as -1, repeats it while it is interrupted, and throws what
    /// remains.
    package static func check(
        _ call: StaticString, _ body: () -> Int32
    ) throws(SystemFault) -> Int32 {
        while true {
            let result = body()
            if result != -1 { return result }
            let code = Glibc.errno
            if code != EINTR { throw SystemFault(call: "\(call)", errno: code) }
        }
    }
}
