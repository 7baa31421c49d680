import CLinux
import Glibc

/// A thread for one call that may never return: nobody waits for its end.
package enum DetachedThread {
    private final class Start: Sendable {
        let name: String
        let body: @Sendable () -> Void
        init(name: String, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// Enough for the calls that are made here, in bytes.
    private static let stackBytes = 512 << 10

    /// Runs the body on a thread of its own; false when none can be had, and then it is not run.
    ///
    /// `name` has at most 15 bytes.
    package static func run(name: String, _ body: @escaping @Sendable () -> Void) -> Bool {
        var attributes = pthread_attr_t()
        // SAFETY: the attributes live until the thread is made.
        guard unsafe pthread_attr_init(&attributes) == 0 else { return false }
        defer { unsafe _ = pthread_attr_destroy(&attributes) }
        unsafe pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        unsafe pthread_attr_setstacksize(&attributes, stackBytes)
        var thread = pthread_t()
        // SAFETY: the retained object is released exactly once, by the thread that takes it.
        let opaque = unsafe Unmanaged.passRetained(Start(name: name, body: body)).toOpaque()
        let result = unsafe pthread_create(
            &thread, &attributes,
            { argument in
                guard let argument = unsafe argument else { return nil }
                let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                // SAFETY: the string is passed for the time of the call.
                unsafe nbdpull_name_thread(start.name)
                start.body()
                return nil
            }, opaque)
        if result == 0 { return true }
        unsafe Unmanaged<Start>.fromOpaque(opaque).release()
        return false
    }
}
