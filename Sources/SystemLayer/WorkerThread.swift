import CLinux
import Glibc

/// How a thread is started; a test puts something in its place that fails.
package typealias ThreadStart =
    @Sendable (_ name: String, _ body: @escaping @Sendable () -> Void) throws(SystemFault) -> Void

/// A thread of its own for a ring or for calls that may take long.
///
/// It is detached: when its body has returned, everything it had is given back, whether or not
/// anybody waits for it.
package final class WorkerThread: Sendable {
    /// Reached when the body has returned.
    package let ended: Latch

    private final class Start: Sendable {
        let name: String
        let ended: Latch
        let body: @Sendable () -> Void
        init(name: String, ended: Latch, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.ended = ended
            self.body = body
        }
    }

    /// Starts the thread; `name` (at most 15 bytes) shows in `top -H` and debuggers.
    package init(name: String, body: @escaping @Sendable () -> Void) throws(SystemFault) {
        ended = Latch(count: 1)
        let start = Start(name: name, ended: ended, body: body)
        var thread = pthread_t()
        // SAFETY: the retained object is released exactly once, by the thread that takes it.
        let opaque = unsafe Unmanaged.passRetained(start).toOpaque()
        let result = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                // SAFETY: the string is passed for the time of the call.
                unsafe nbdpull_name_thread(start.name)
                start.body()
                start.ended.arrive()
                return nil
            }, opaque)
        guard result == 0 else {
            unsafe Unmanaged<Start>.fromOpaque(opaque).release()
            throw SystemFault(call: "pthread_create", errno: result)
        }
        pthread_detach(thread)
    }

    /// Starts a thread that nobody waits for.
    package static func start(
        name: String, body: @escaping @Sendable () -> Void
    ) throws(SystemFault) {
        _ = try WorkerThread(name: name, body: body)
    }

    /// The calling thread serves many from here on: what it gives back last must not wait for anybody.
    package static func serveMany() {
        // SAFETY: the value is no address for anybody; the kernel's side knows nothing of it.
        unsafe _ = pthread_setspecific(servesManyKey, UnsafeRawPointer(bitPattern: 1))
    }

    /// Whether the calling thread may wait.
    package static var mayWait: Bool {
        unsafe pthread_getspecific(servesManyKey) == nil
    }

    private static let servesManyKey: pthread_key_t = {
        var key = pthread_key_t()
        // SAFETY: the key is made in the local.
        guard unsafe pthread_key_create(&key, nil) == 0 else {
            preconditionFailure("1024 keys of threads were made before")
        }
        return key
    }()

    /// Asks the scheduler to run the calling thread soon after it wakes, a little at a time.
    package static func preferShortSlices() {
        nbdpull_ask_for_short_slices(sliceNanoseconds)
    }

    /// Asks the scheduler to run others first when processors are short: the calling thread, and
    /// the kernel's workers for it.
    package static func giveWay() {
        // Where it is refused the thread is scheduled like any other.
        nbdpull_be_nicer(niceness)
    }

    /// Added to what the process was started with: a tenth of what a thread like any other gets
    /// beside it.
    private static let niceness: Int32 = 10

    /// Long enough to answer a request or two.
    private static let sliceNanoseconds: UInt64 = 100_000

    /// Waits until the body has returned; false when the time is over first.
    @discardableResult
    package func wait(milliseconds: Int32) -> Bool { ended.wait(milliseconds: milliseconds) }
}

/// Facts about the machine.
package enum SystemFacts {
    /// Cores that this process may use, at least one.
    package static var coreCount: Int {
        max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
    }

    /// This process.
    package static var processID: Int32 { getpid() }

    /// The user whose rights the process has.
    package static var effectiveUser: UInt32 { geteuid() }

    /// From now on a peer that has gone is an error of the call that writes to it, and so is a file
    /// that grows beyond the process's limit; neither is a signal that ends the process.
    ///
    /// Pages are spliced to sockets, and `splice` has no flag that keeps the signal away.
    package static func ignoreSignalsOfCalls() {
        _ = signal(SIGPIPE, SIG_IGN)
        _ = signal(SIGXFSZ, SIG_IGN)
    }

    /// Raises the limit of open descriptors as far as it goes without privileges; returns it.
    package static func raiseDescriptorLimit() -> Int {
        var limit = rlimit()
        // SAFETY: the kernel fills and reads the local; it keeps no pointer.
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
            return 1024
        }
        limit.rlim_cur = limit.rlim_max
        unsafe _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return Int(clamping: limit.rlim_cur)
    }
}
