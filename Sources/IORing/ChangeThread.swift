import CLinux
import Glibc
import Synchronization
import SystemLayer

/// A thread that makes the changes of one file for one ring, one after the other.
///
/// The ring puts changes in and takes them out when they are done; the thread does what lies between. Each
/// keeps a count that only it moves. What a change names stays until the ring has taken it out.
///
/// The thread may hang in a change for ever. So it is the last that has the state, and frees it.
@safe
struct ChangeThread {
    /// Changes that may be in flight.
    static let capacity = 4096

    private let state: UnsafeMutablePointer<State>

    @safe
    private struct State: ~Copyable {
        /// Changes put in so far; moved by the ring.
        let pushed = Atomic<UInt32>(0)
        /// Counts that two processors move lie in lines of their own.
        let ringsLine: [14 of UInt32] = .init(repeating: 0)
        /// Changes done so far; moved by the thread.
        let done = Atomic<UInt32>(0)
        let threadsLine: [14 of UInt32] = .init(repeating: 0)
        /// The thread sleeps, or is about to.
        let sleeps = Atomic<Bool>(false)
        let isEnding = Atomic<Bool>(false)
        let wake = WakeCount()
        let ring: RingWaker
        let changes: UnsafeMutablePointer<FileChange>

        init(_ ring: RingWaker) {
            self.ring = ring
            unsafe changes = .allocate(capacity: ChangeThread.capacity)
        }

        deinit { unsafe changes.deallocate() }
    }

    /// Starts a thread that wakes `ring`; nil when there is none to be had.
    init?(_ ring: RingWaker) {
        // SAFETY: the state goes to the thread, which frees it as its last act; the ring does not
        // touch it after `end`.
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(to: State(ring))
        let address = UInt(bitPattern: unsafe state)
        let isRunning = DetachedThread.run(name: "nbdpull-changes") {
            guard let state = unsafe UnsafeMutablePointer<State>(bitPattern: address) else {
                return
            }
            unsafe Self.serve(state)
            unsafe state.deinitialize(count: 1)
            unsafe state.deallocate()
        }
        guard isRunning else {
            unsafe state.deinitialize(count: 1)
            unsafe state.deallocate()
            return nil
        }
    }

    // MARK: The ring's side

    /// Puts a change in, of which fewer than `capacity` are in flight; `number` counts them all.
    func push(_ change: FileChange, number: UInt32) {
        // SAFETY: the thread has been through with this place, or `number` would be further.
        unsafe state.pointee.changes[Int(number) % Self.capacity] = change
        unsafe state.pointee.pushed.store(number &+ 1, ordering: .sequentiallyConsistent)
        if unsafe state.pointee.sleeps.exchange(false, ordering: .sequentiallyConsistent) {
            unsafe state.pointee.wake.signal()
        }
    }

    /// Changes done so far, taken out or not.
    var doneCount: UInt32 { unsafe state.pointee.done.load(ordering: .sequentiallyConsistent) }

    /// What has come of a change that is done.
    func completion(of number: UInt32) -> Completion {
        // SAFETY: the thread writes nothing there once the change is done.
        unsafe state.pointee.changes[Int(number) % Self.capacity].completion
    }

    /// Ends the thread, after the change that it is at; nothing more may be asked.
    func end() {
        unsafe state.pointee.isEnding.store(true, ordering: .sequentiallyConsistent)
        unsafe state.pointee.wake.signal()
    }

    // MARK: The thread's side

    private static func serve(_ state: UnsafeMutablePointer<State>) {
        var done: UInt32 = 0
        // SAFETY: the thread owns the state until it returns, and a place until it is done.
        while unsafe !state.pointee.isEnding.load(ordering: .sequentiallyConsistent) {
            guard unsafe state.pointee.pushed.load(ordering: .sequentiallyConsistent) != done else {
                unsafe sleep(state, done)
                continue
            }
            unsafe state.pointee.changes[Int(done) % capacity].carryOut()
            done &+= 1
            unsafe state.pointee.done.store(done, ordering: .sequentiallyConsistent)
            unsafe state.pointee.ring.wake()
        }
    }

    /// Sleeps until there is something to do; it may turn out that there is not.
    private static func sleep(_ state: UnsafeMutablePointer<State>, _ done: UInt32) {
        unsafe state.pointee.sleeps.store(true, ordering: .sequentiallyConsistent)
        // Whoever puts something in from here on sees that.
        if unsafe state.pointee.pushed.load(ordering: .sequentiallyConsistent) == done {
            unsafe state.pointee.wake.wait()
        }
        unsafe state.pointee.sleeps.store(false, ordering: .sequentiallyConsistent)
    }
}

/// A change of a file, and what has come of it.
@safe
struct FileChange {
    @safe
    enum Kind {
        /// A write of one range, or of a list of them, which others keep.
        case write(UnsafeMutablePointer<iovec>?, count: Int32, isDurable: Bool)
        case allocate(AllocationMode, count: UInt64)
    }

    let descriptor: Int32
    let kind: Kind
    /// The range of a write that has no list.
    var range = unsafe iovec()
    let position: UInt64
    let tag: UInt64
    private var result: Int32 = 0

    init(_ kind: Kind, of descriptor: Int32, at position: UInt64, tag: UInt64) {
        self.kind = kind
        self.descriptor = descriptor
        self.position = position
        self.tag = tag
    }

    var completion: Completion { Completion(tag: tag, result: result) }

    /// Makes the change; may never return.
    mutating func carryOut() {
        let got: Int
        switch kind {
        case .write(let list, let count, let isDurable):
            let flags = isDurable ? nbdpull_RWF_DSYNC : 0
            // SAFETY: whoever asked keeps the ranges until the completion has been taken.
            got =
                if let list = unsafe list {
                    unsafe pwritev2(descriptor, list, count, off_t(position), flags)
                } else {
                    unsafe pwritev2(descriptor, &range, 1, off_t(position), flags)
                }
        case .allocate(let mode, let count):
            got = Int(fallocate(descriptor, mode.rawFlags, off_t(position), off_t(count)))
        }
        result = got >= 0 ? Int32(clamping: got) : -errno
    }
}

/// Wakes a ring that sleeps, once for each sleep.
final class RingWaker: Sendable {
    private let event: EventDescriptor
    private let sleeps = Atomic<Bool>(false)

    init() throws(SystemFault) { event = try EventDescriptor() }

    /// The eventfd that wakes the ring.
    var raw: Int32 { event.raw }

    /// For the ring: takes the wake-up.
    func consume() { event.consume() }

    /// For the ring: from here on it is woken, until `isAwake`.
    func willSleep() { sleeps.store(true, ordering: .sequentiallyConsistent) }

    func isAwake() { sleeps.store(false, ordering: .sequentiallyConsistent) }

    /// For others: there is something to do.
    func wake() {
        if sleeps.exchange(false, ordering: .sequentiallyConsistent) { event.signal() }
    }
}
