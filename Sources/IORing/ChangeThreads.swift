import CLinux
import Glibc
package import SystemLayer

/// Threads that make a ring's changes of files, one for each file that is changed.
///
/// The kernel's workers make buffered writes to two files one after the other where a hash of theirs is
/// the same. When the file system of one hangs the other waits, whatever it lies on. With threads of
/// their own neither knows of the other.
@safe
package struct ChangeThreads: ~Copyable {
    fileprivate struct Place {
        let takesWrites: Bool
        /// From the first change on.
        var thread: ChangeThread?
        /// Changes that found no thread to be had.
        var refusals = 0
    }

    private let waker: RingWaker
    private var places: [Int32: Place] = [:]
    /// Files with changes in flight.
    private var busy: [Int32] = []
    /// Changes in flight.
    package private(set) var inFlight = 0
    private var takenCount: UInt64 = 0
    /// The ring was woken, and has not taken that yet.
    package private(set) var isWoken = false
    /// Threads wake the ring.
    private var mayBeWoken = false
    /// A thread that was not to be had is asked for again with one change in so many.
    private static let changesBetweenTries = 256

    package init() throws(SystemFault) { waker = try RingWaker() }

    deinit {
        for place in places.values { place.thread?.end() }
    }

    /// What becomes readable to wake the ring from a sleep that `mayWait` has allowed.
    package var raw: Int32 { waker.raw }

    /// Takes the wake-up.
    package mutating func consume() {
        waker.consume()
        isWoken = false
    }

    // MARK: Files

    /// A regular file is changed from here on; `takesWrites`: through the page cache.
    ///
    /// Nothing else is changed here. The kernel does not take changes of devices in turn, nor direct
    /// writes on file systems for disks; these go side by side there.
    package mutating func enter(_ descriptor: Int32, takesWrites: Bool) {
        leave(descriptor)
        places[descriptor] = Place(takesWrites: takesWrites)
    }

    /// Nothing more is asked of a file, and none of its changes is in flight.
    package mutating func leave(_ descriptor: Int32) {
        guard let place = places.removeValue(forKey: descriptor) else { return }
        place.thread?.end()
    }

    /// Whether the file has a thread by now.
    func hasThread(_ descriptor: Int32) -> Bool { places[descriptor]?.thread != nil }

    // MARK: Changes

    // False: it is not done here, and the kernel's workers are to do it. What is named stays until
    // the completion has been taken.

    /// Writes a range of the arena.
    package mutating func write(
        _ descriptor: Int32, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable: Bool, tag: UInt64
    ) -> Bool {
        // SAFETY: pointer() checks the range; its owner keeps it until the completion.
        var change = unsafe FileChange(
            .write(nil, count: 1, isDurable: durable), of: descriptor, at: filePosition, tag: tag)
        unsafe change.range = unsafe iovec(iov_base: arena.pointer(offset, count), iov_len: count)
        return push(change)
    }

    /// Writes a lane's ranges.
    package mutating func write(
        _ descriptor: Int32, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable: Bool, tag: UInt64
    ) -> Bool {
        // SAFETY: a lane's list stays until it is given back, and the kernel checks its ranges.
        push(
            unsafe FileChange(
                .write(table.list(lane), count: Int32(table.count(lane)), isDurable: durable),
                of: descriptor, at: filePosition, tag: tag))
    }

    /// Changes a range's allocation.
    package mutating func allocate(
        _ descriptor: Int32, mode: AllocationMode, filePosition: UInt64, count: UInt64, tag: UInt64
    ) -> Bool {
        push(
            unsafe FileChange(
                .allocate(mode, count: count), of: descriptor, at: filePosition, tag: tag))
    }

    private mutating func push(_ change: FileChange) -> Bool {
        let descriptor = change.descriptor
        let inFlightBefore = places[descriptor]?.push(change, waker, Self.changesBetweenTries)
        guard let inFlightBefore = inFlightBefore ?? nil else { return false }
        if inFlightBefore == 0 { busy.append(descriptor) }
        inFlight += 1
        return true
    }

    // MARK: Completions

    /// Completions that wait to be taken.
    package var completionCount: Int {
        // One that was taken may be counted a moment later.
        inFlight == 0 ? 0 : max(0, Int(truncatingIfNeeded: waker.doneCount &- takenCount))
    }

    /// Puts completions behind those that are there, as many as fit.
    package mutating func drain(into completions: inout [Completion]) {
        guard completionCount > 0 else { return }
        var position = 0
        while position < busy.count {
            let descriptor = busy[position]
            while completions.count < completions.capacity,
                let completion = places[descriptor]?.thread?.take()
            {
                completions.append(completion)
                takenCount &+= 1
                inFlight -= 1
            }
            if places[descriptor]?.thread?.inFlight ?? 0 == 0 {
                busy.remove(at: position)
            } else {
                position += 1
            }
        }
    }

    /// Whether the ring may sleep: from here on it is woken, until `haveWaited`.
    package mutating func mayWait() -> Bool {
        mayBeWoken = true
        waker.willSleep()
        guard completionCount > 0 else { return true }
        haveWaited()
        return false
    }

    /// The ring is awake.
    package mutating func haveWaited() {
        guard mayBeWoken else { return }
        mayBeWoken = false
        if waker.isAwake() { isWoken = true }
    }
}

extension ChangeThreads.Place {
    /// Puts a change in; returns how many were in flight before, nil when it is not taken.
    fileprivate mutating func push(
        _ change: FileChange, _ waker: RingWaker, _ changesBetweenTries: Int
    ) -> Int? {
        guard takesWrites || !change.isWrite else { return nil }
        if thread == nil {
            if refusals % changesBetweenTries == 0 { thread = ChangeThread(waker) }
            if thread == nil { refusals &+= 1 }
        }
        guard let inFlight = thread?.inFlight, inFlight < ChangeThread.capacity else { return nil }
        thread?.push(change)
        return inFlight
    }
}
