import CLinux
import Glibc
import Synchronization
import SystemLayer

/// A thread that makes the changes of one file for one ring, one after the other.
///
/// The ring puts changes in and takes them out when they are done; the thread does what lies between. Each
/// keeps a count that only it moves. What a change names stays until the ring has taken it out.
///
/// The thread may hang in a change for ever, so whoever of the two is through last frees what they
/// share.
@safe
struct ChangeThread {
    /// Changes that may be in flight; a power of two.
    static let capacity = 4096

    private let state: UnsafeMutablePointer<State>
    /// Changes put in so far, and taken out.
    private var pushed: UInt32 = 0
    private var taken: UInt32 = 0
    /// Places for changes that were used before, on a stack so that few are used, and all others.
    private var freeCount = 0
    private var firstUnused: UInt16 = 0

    private struct State: ~Copyable {
        /// Changes put in so far; moved by the ring.
        let pushed = Atomic<UInt32>(0)
        /// Counts that two processors move lie in lines of their own.
        let ringsLine: [15 of UInt32] = .init(repeating: 0)
        /// Changes done so far; moved by the thread.
        let done = Atomic<UInt32>(0)
        let threadsLine: [15 of UInt32] = .init(repeating: 0)
        /// The thread sleeps, or is about to.
        let sleeps = Atomic<Bool>(false)
        let isEnding = Atomic<Bool>(false)
        /// The ring and the thread.
        let owners = Atomic<Int>(2)
        let wake = WakeCount()
        let ring: RingWaker
        let memory: Memory

        init(_ ring: RingWaker) {
            self.ring = ring
            memory = Memory()
        }

        deinit { memory.free() }
    }

    /// Where changes lie, and which of these places each number has.
    @safe
    private struct Memory {
        let changes: UnsafeMutablePointer<FileChange>
        let places: UnsafeMutablePointer<UInt16>
        /// For the ring alone.
        let freePlaces: UnsafeMutablePointer<UInt16>

        init() {
            // SAFETY: freed by `free`; what is read was written before. Pages that nobody has used cost
            // nothing.
            unsafe changes = .allocate(capacity: ChangeThread.capacity)
            unsafe places = .allocate(capacity: ChangeThread.capacity)
            unsafe freePlaces = .allocate(capacity: ChangeThread.capacity)
        }

        func free() {
            unsafe changes.deallocate()
            unsafe places.deallocate()
            unsafe freePlaces.deallocate()
        }
    }

    /// Starts a thread that wakes `ring`; nil when there is none to be had.
    init?(_ ring: RingWaker) {
        // SAFETY: both owners give the state up once, and the second one frees it.
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(to: State(ring))
        let address = UInt(bitPattern: unsafe state)
        let isRunning = DetachedThread.run(name: "nbdpull-changes") {
            guard let state = unsafe UnsafeMutablePointer<State>(bitPattern: address) else {
                return
            }
            unsafe Self.serve(state)
            unsafe Self.giveUp(state)
        }
        guard isRunning else {
            unsafe Self.giveUp(state)
            unsafe Self.giveUp(state)
            return nil
        }
    }

    private static func giveUp(_ state: UnsafeMutablePointer<State>) {
        let left = unsafe state.pointee.owners.subtract(1, ordering: .sequentiallyConsistent)
        guard left.newValue == 0 else { return }
        // SAFETY: nobody else has it any more.
        unsafe state.deinitialize(count: 1)
        unsafe state.deallocate()
    }

    // MARK: The ring's side

    /// Changes that were put in and not taken out.
    var inFlight: Int { Int(pushed &- taken) }

    /// Puts a change in, of which fewer than `capacity` are in flight.
    mutating func push(_ change: FileChange) {
        // SAFETY: nobody uses the place, and the thread looks at neither before the count moves.
        let memory = unsafe state.pointee.memory
        let place: UInt16
        if freeCount > 0 {
            freeCount -= 1
            place = unsafe memory.freePlaces[freeCount]
        } else {
            place = firstUnused
            firstUnused += 1
        }
        unsafe memory.changes[Int(place)] = change
        unsafe memory.places[Int(pushed) % Self.capacity] = place
        pushed &+= 1
        unsafe state.pointee.pushed.store(pushed, ordering: .sequentiallyConsistent)
        if unsafe state.pointee.sleeps.load(ordering: .sequentiallyConsistent),
            unsafe state.pointee.sleeps.exchange(false, ordering: .sequentiallyConsistent)
        {
            unsafe state.pointee.wake.signal()
        }
    }

    /// Takes out the oldest change that is done, or none.
    mutating func take() -> Completion? {
        let done = unsafe state.pointee.done.load(ordering: .sequentiallyConsistent)
        guard done != taken else { return nil }
        // SAFETY: the thread is through with the change.
        let memory = unsafe state.pointee.memory
        let place = unsafe memory.places[Int(taken) % Self.capacity]
        unsafe memory.freePlaces[freeCount] = place
        freeCount += 1
        taken &+= 1
        return unsafe memory.changes[Int(place)].completion
    }

    /// Ends the thread, after the change that it is at; nothing more may be asked.
    func end() {
        unsafe state.pointee.isEnding.store(true, ordering: .sequentiallyConsistent)
        unsafe state.pointee.wake.signal()
        unsafe Self.giveUp(state)
    }

    // MARK: The thread's side

    private static func serve(_ state: UnsafeMutablePointer<State>) {
        var done: UInt32 = 0
        let memory = unsafe state.pointee.memory
        // SAFETY: a change is the thread's from the count of those put in to the count of those done.
        while unsafe !state.pointee.isEnding.load(ordering: .sequentiallyConsistent) {
            guard unsafe state.pointee.pushed.load(ordering: .sequentiallyConsistent) != done else {
                unsafe sleep(state, done)
                continue
            }
            let place = unsafe memory.places[Int(done) % capacity]
            unsafe memory.changes[Int(place)].carryOut()
            done &+= 1
            unsafe state.pointee.done.store(done, ordering: .sequentiallyConsistent)
            unsafe state.pointee.ring.changeIsDone()
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

    var isWrite: Bool {
        switch kind {
        case .write: true
        case .allocate: false
        }
    }

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

/// Counts a ring's changes that threads have done, and wakes it once for each sleep.
final class RingWaker: Sendable {
    private let event: EventDescriptor
    private let sleeps = Atomic<Bool>(false)
    private let done = Atomic<UInt64>(0)

    init() throws(SystemFault) { event = try EventDescriptor() }

    /// The eventfd that wakes the ring.
    var raw: Int32 { event.raw }

    /// Changes that threads have done so far.
    ///
    /// One that was taken out already may not be counted yet.
    var doneCount: UInt64 { done.load(ordering: .sequentiallyConsistent) }

    /// For the ring: takes the wake-up.
    func consume() { event.consume() }

    /// For the ring: from here on it is woken, until `isAwake`.
    func willSleep() { sleeps.store(true, ordering: .sequentiallyConsistent) }

    /// For the ring: returns whether it is, or will be, woken.
    func isAwake() -> Bool { !sleeps.exchange(false, ordering: .sequentiallyConsistent) }

    /// For a thread.
    func changeIsDone() {
        done.add(1, ordering: .sequentiallyConsistent)
        if sleeps.load(ordering: .sequentiallyConsistent),
            sleeps.exchange(false, ordering: .sequentiallyConsistent)
        {
            event.signal()
        }
    }
}
