import CLibURing
import CLinux
import Glibc
package import SystemLayer

/// One finished operation: the tag it was submitted with and the kernel's result (negative errno on
/// failure).
package struct Completion: Sendable {
    package let tag: UInt64
    package let result: Int32

    package init(tag: UInt64, result: Int32) {
        self.tag = tag
        self.result = result
    }
}

/// One io_uring, used by one thread only.
///
/// `prepare…` puts an operation into the submission queue; `submit` hands over what is there, and
/// waits for a completion if it is asked to. When the queue is full, `prepare…` submits first, so
/// it never fails. Buffers lie in a `BufferArena` that outlives the operation: its owner keeps a
/// run allocated until the completion has been seen.
@safe
package struct Ring: ~Copyable {
    private let ring: UnsafeMutablePointer<io_uring>
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>
    private static let batchMax = 128
    /// What is read from eventfds.
    let words: UnsafeMutablePointer<UInt64>
    /// Operations submitted; for statistics.
    package private(set) var submissions: UInt64 = 0

    /// Sets up a ring; must be called on the thread that will use it.
    ///
    /// `completionEntries` is at least the number of operations that can be in flight at once, so
    /// that no completion ever waits for room.
    package init(entries: UInt32, completionEntries: UInt32) throws(SystemFault) {
        unsafe ring = .allocate(capacity: 1)
        unsafe ring.initialize(to: io_uring())
        unsafe batch = .allocate(capacity: Self.batchMax)
        unsafe batch.initialize(repeating: nil, count: Self.batchMax)
        unsafe words = .allocate(capacity: 1)
        unsafe words.initialize(to: 0)
        // One submitter and completions run when we ask for them: nothing interrupts the loop
        // between requests.
        let flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
        var parameters = io_uring_params()
        parameters.flags = UInt32(flags | IORING_SETUP_CQSIZE)
        parameters.cq_entries = completionEntries
        // SAFETY: ring points to an initialized io_uring that lives until deinit.
        let result = unsafe io_uring_queue_init_params(entries, ring, &parameters)
        guard result == 0 else {
            unsafe ring.deallocate()
            unsafe batch.deallocate()
            unsafe words.deallocate()
            throw SystemFault(call: "io_uring_setup", errno: -result)
        }
    }

    deinit {
        // SAFETY: init succeeded, so the ring is set up; nobody uses it after its owner is gone.
        unsafe io_uring_queue_exit(ring)
        unsafe ring.deallocate()
        unsafe batch.deallocate()
        unsafe words.deallocate()
    }

    mutating func next() -> UnsafeMutablePointer<io_uring_sqe> {
        submissions &+= 1
        // SAFETY: liburing hands out entries of its own mapping; submitting frees some when the
        // queue is full.
        while true {
            if let entry = unsafe io_uring_get_sqe(ring) { return unsafe entry }
            let result = unsafe io_uring_submit(ring)
            precondition(
                result >= 0 || Self.isPassing(result), "io_uring_submit failed with \(-result)")
        }
    }

    /// Submits what was prepared and waits until a completion is there, or not at all.
    package mutating func submit(waiting: Bool) {
        // SAFETY: the ring is set up; EINTR and a full completion queue are ordinary and handled by
        // the next turn.
        let result =
            waiting
            ? unsafe io_uring_submit_and_wait(ring, 1) : unsafe io_uring_submit_and_get_events(ring)
        precondition(
            result >= 0 || Self.isPassing(result), "io_uring_enter failed with \(-result)")
    }

    /// Whether something was prepared that the kernel has not taken: it was short of something.
    package var hasUnsubmitted: Bool { unsafe io_uring_sq_ready(ring) > 0 }

    /// Whether a call failed for want of something that comes back: it is made again.
    private static func isPassing(_ result: Int32) -> Bool {
        switch -result {
        case EINTR, EBUSY, EAGAIN, ETIME, ENOMEM: true
        default: false
        }
    }

    /// Kernel workers that operations on files of this ring's thread may use, as the kernel chose;
    /// nil where it does not tell.
    package mutating func fileWorkers() -> UInt32? { exchangeFileWorkers(0) }

    /// Lets so many kernel workers carry out operations on files.
    ///
    /// One that hangs keeps its worker; a caller that replaces those keeps the others going.
    package mutating func setFileWorkers(_ count: UInt32, tag: UInt64) {
        guard exchangeFileWorkers(count) != nil else { return }
        // Workers are made when something is handed to them: what waits is taken up then.
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_nop(entry)
        unsafe entry.pointee.flags |= nbdpull_IOSQE_ASYNC
        unsafe entry.pointee.user_data = tag
    }

    private mutating func exchangeFileWorkers(_ count: UInt32) -> UInt32? {
        var counts: (UInt32, UInt32) = (count, 0)
        // SAFETY: two numbers are read and written in a tuple of two.
        let result = unsafe withUnsafeMutableBytes(of: &counts) { bytes in
            unsafe io_uring_register_iowq_max_workers(
                ring, bytes.baseAddress?.assumingMemoryBound(to: UInt32.self))
        }
        return result == 0 ? counts.0 : nil
    }

    /// Finished operations that wait to be taken out.
    package var completionCount: Int {
        // SAFETY: the ring is set up; two words of its mapping are read.
        Int(unsafe io_uring_cq_ready(ring))
    }

    /// Takes finished operations out, oldest first and at most 128 at a time, in place of what was
    /// in `completions`.
    package mutating func drain(into completions: inout [Completion]) {
        completions.removeAll(keepingCapacity: true)
        // SAFETY: the kernel's entries are copied before the queue head moves past them.
        let count = unsafe io_uring_peek_batch_cqe(ring, batch, UInt32(Self.batchMax))
        for index in 0..<Int(count) {
            guard let entry = unsafe batch[index] else { break }
            unsafe completions.append(
                Completion(tag: entry.pointee.user_data, result: entry.pointee.res))
        }
        unsafe io_uring_cq_advance(ring, count)
    }

    /// Reads a file range into the arena.
    package mutating func prepareRead(
        _ descriptor: Int32, into arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: pointer() checks the range; its owner keeps it allocated until the completion.
        unsafe io_uring_prep_read(
            entry, descriptor, arena.pointer(offset, count), UInt32(count), filePosition)
        unsafe entry.pointee.user_data = tag
    }

    /// Writes a range of the arena to a file; `durable` makes it persistent before it completes
    /// (RWF_DSYNC).
    package mutating func prepareWrite(
        _ descriptor: Int32, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable: Bool, tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: as for prepareRead; the kernel only reads the range.
        unsafe io_uring_prep_write(
            entry, descriptor, arena.pointer(offset, count), UInt32(count), filePosition)
        if durable { unsafe entry.pointee.rw_flags = nbdpull_RWF_DSYNC }
        unsafe entry.pointee.user_data = tag
    }

    /// Changes a file's allocation without moving data through memory.
    package mutating func prepareAllocate(
        _ descriptor: Int32, mode: AllocationMode, filePosition: UInt64, count: UInt64,
        tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_fallocate(
            entry, descriptor, mode.rawFlags, off_t(filePosition), off_t(count))
        unsafe entry.pointee.user_data = tag
    }

    /// Makes everything written before durable (fdatasync).
    package mutating func prepareSync(_ descriptor: Int32, tag: UInt64) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_fsync(entry, descriptor, UInt32(IORING_FSYNC_DATASYNC))
        unsafe entry.pointee.user_data = tag
    }

    /// Tells the kernel what is to become of a file range in the page cache.
    package mutating func prepareAdvice(
        _ advice: CacheAdvice, _ descriptor: Int32, filePosition: UInt64, count: UInt32,
        tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_fadvise(
            entry, descriptor, filePosition, off_t(count), advice.rawAdvice)
        unsafe entry.pointee.user_data = tag
    }

    /// Receives from a socket; `whole` waits until all `count` bytes are there (or the stream
    /// ends).
    package mutating func prepareReceive(
        _ descriptor: Int32, into arena: borrowing BufferArena, at offset: Int, count: Int,
        whole: Bool, tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: as for prepareRead.
        unsafe io_uring_prep_recv(
            entry, descriptor, arena.pointer(offset, count), count,
            whole ? nbdpull_MSG_WAITALL : 0)
        unsafe entry.pointee.user_data = tag
    }

    /// Completes once when a descriptor becomes readable or writable.
    package mutating func preparePoll(_ descriptor: Int32, writable: Bool, tag: UInt64) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_poll_add(entry, descriptor, UInt32(writable ? POLLOUT : POLLIN))
        unsafe entry.pointee.user_data = tag
    }

    /// Completes when the other side of a socket is gone, whatever it has sent before.
    package mutating func prepareHangUpPoll(_ descriptor: Int32, tag: UInt64) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_poll_add(entry, descriptor, UInt32(nbdpull_POLLRDHUP))
        unsafe entry.pointee.user_data = tag
    }

    /// Takes back an operation that waits (a poll, an accept): it completes with ECANCELED.
    package mutating func prepareCancel(_ target: UInt64, tag: UInt64) {
        let entry = unsafe next()
        // SAFETY: no memory is passed.
        unsafe io_uring_prep_cancel64(entry, target, 0)
        unsafe entry.pointee.user_data = tag
    }
}

/// What `prepareAdvice` says about a range.
package enum CacheAdvice: Sendable {
    /// It is wanted soon.
    case prefetch
    /// It is not wanted any more; what is dirty stays.
    case drop

    var rawAdvice: Int32 {
        switch self {
        case .prefetch: POSIX_FADV_WILLNEED
        case .drop: POSIX_FADV_DONTNEED
        }
    }
}

/// What `prepareAllocate` does to a range.
package enum AllocationMode: Sendable {
    /// The range reads as zeros and gives its space back.
    case punchHole
    /// The range reads as zeros and keeps its space.
    case zeroRange
    /// The range is not needed any more: as a hole.
    case discard

    var rawFlags: Int32 {
        switch self {
        case .punchHole, .discard:
            nbdpull_FALLOC_FL_PUNCH_HOLE | nbdpull_FALLOC_FL_KEEP_SIZE
        case .zeroRange: nbdpull_FALLOC_FL_ZERO_RANGE | nbdpull_FALLOC_FL_KEEP_SIZE
        }
    }
}
