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
    private struct Place {
        /// Nil where the kernel's workers do as well.
        let thread: ChangeThread?
        /// Changes put in, and taken out.
        var pushed: UInt32 = 0
        var taken: UInt32 = 0
    }

    private let waker: RingWaker
    private var places: [Int32: Place] = [:]
    /// Files with changes in flight.
    private var busy: [Int32] = []
    /// Changes in flight.
    package private(set) var inFlight = 0

    package init() throws(SystemFault) { waker = try RingWaker() }

    deinit {
        for place in places.values { place.thread?.end() }
    }

    /// What becomes readable to wake the ring from a sleep that `mayWait` has allowed.
    package var raw: Int32 { waker.raw }

    /// Takes the wake-up.
    package mutating func consume() { waker.consume() }

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
        if places[descriptor] == nil { places[descriptor] = makePlace(descriptor) }
        guard let place = places[descriptor], let thread = place.thread,
            place.pushed &- place.taken < UInt32(ChangeThread.capacity)
        else { return false }
        if place.pushed == place.taken { busy.append(descriptor) }
        thread.push(change, number: place.pushed)
        places[descriptor]?.pushed &+= 1
        inFlight += 1
        return true
    }

    /// Nil where it is to be tried again with the next change.
    private mutating func makePlace(_ descriptor: Int32) -> Place? {
        guard FileCalls.isChangedInTurn(descriptor) else { return Place(thread: nil) }
        return ChangeThread(waker).map { Place(thread: $0) }
    }

    /// Nothing more is asked of a file: none of its changes is in flight.
    package mutating func leave(_ descriptor: Int32) {
        guard let place = places.removeValue(forKey: descriptor) else { return }
        place.thread?.end()
    }

    // MARK: Completions

    /// Completions that wait to be taken.
    package var completionCount: Int {
        var count = 0
        for position in busy.indices {
            guard let place = places[busy[position]] else { continue }
            count += Int((place.thread?.doneCount ?? place.taken) &- place.taken)
        }
        return count
    }

    /// Puts completions behind those that are there, as many as fit.
    package mutating func drain(into completions: inout [Completion]) {
        var position = 0
        while position < busy.count {
            let descriptor = busy[position]
            guard var place = places[descriptor], let thread = place.thread else { break }
            let done = thread.doneCount
            while place.taken != done, completions.count < completions.capacity {
                completions.append(thread.completion(of: place.taken))
                place.taken &+= 1
                inFlight -= 1
            }
            places[descriptor] = place
            if place.taken == place.pushed { busy.remove(at: position) } else { position += 1 }
        }
    }

    /// Whether the ring may sleep: from here on it is woken, until `haveWaited`.
    package mutating func mayWait() -> Bool {
        waker.willSleep()
        guard completionCount > 0 else { return true }
        waker.isAwake()
        return false
    }

    /// The ring is awake.
    package mutating func haveWaited() { waker.isAwake() }
}

extension FileCalls {
    /// Whether the kernel's workers make changes of a file one after the other, and in turn with those of
    /// files that have nothing to do with it.
    ///
    /// So it is with a regular file that is written through the page cache.
    package static func isChangedInTurn(_ descriptor: Int32) -> Bool {
        var status = stat()
        // SAFETY: the kernel fills in the one structure that it is given.
        guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            return false
        }
        let flags = fcntl(descriptor, F_GETFL)
        return flags >= 0 && flags & nbdpull_O_DIRECT == 0
    }
}
