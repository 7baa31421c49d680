import CLibURing
import Glibc
package import SystemLayer

/// Calls the owner of an eventfd that others share, without ever waiting for them.
///
/// A write to an eventfd waits while its counter is full, unless O_NONBLOCK is set; both are for
/// its owner to change at any moment, also between two looks of the kernel. So the eventfd is that
/// of a small ring, and a message to this ring makes the kernel signal it, as it does for
/// completions: a full counter stays as it is. It costs no more than the write.
///
/// A value that owns nothing: its user closes it, once, and uses it no more.
@safe
package struct CallRing: Sendable, BitwiseCopyable {
    /// Names it until it is closed.
    package let number: UInt

    /// Calls that may be made before the ring is looked at again.
    ///
    /// The kernel remembers those beyond in a list, and while that has any it signals nothing:
    /// `makeRoom` empties it.
    private static let completionEntries: UInt32 = 64

    /// One that `make` has made.
    package init(number: UInt) { self.number = number }

    /// Makes one for an eventfd, which may be closed then; EMFILE, ENOMEM, EINVAL: it is none.
    package static func make(_ event: Int32) throws(SystemFault) -> CallRing {
        // SAFETY: set up by the call, and freed by `close`, or here where the call fails.
        let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
        unsafe ring.initialize(to: io_uring())
        var parameters = io_uring_params()
        parameters.flags = UInt32(IORING_SETUP_CQSIZE)
        parameters.cq_entries = completionEntries
        let result = unsafe io_uring_queue_init_params(1, ring, &parameters)
        guard result == 0 else {
            unsafe ring.deallocate()
            throw SystemFault(call: "io_uring_setup", errno: -result)
        }
        let made = CallRing(number: UInt(bitPattern: ring))
        do throws(SystemFault) { try made.register(event) } catch {
            made.close()
            throw error
        }
        return made
    }

    /// Another eventfd takes the place of the one at hand; on an error there is none.
    package func replace(_ event: Int32) throws(SystemFault) {
        guard let ring = unsafe ring else { return }
        // SAFETY: the ring is set up. There may be no event, after an error.
        unsafe _ = io_uring_unregister_eventfd(ring)
        try register(event)
    }

    private func register(_ event: Int32) throws(SystemFault) {
        guard let ring = unsafe ring else { return }
        // SAFETY: the ring is set up; the kernel takes a reference of its own.
        let result = unsafe io_uring_register_eventfd(ring, event)
        guard result == 0 else { throw SystemFault(call: "io_uring_register", errno: -result) }
    }

    /// Gives everything back.
    package func close() {
        guard let ring = unsafe ring else { return }
        // SAFETY: set up by `make`; nobody uses it any more.
        unsafe io_uring_queue_exit(ring)
        unsafe ring.deallocate()
    }

    /// The ring itself; `number` is its address.
    @unsafe
    fileprivate var ring: UnsafeMutablePointer<io_uring>? {
        unsafe UnsafeMutablePointer(bitPattern: number)
    }
}

extension Ring {
    /// Calls; there is a completion only when that fails.
    package mutating func prepareCall(_ call: CallRing, tag: UInt64) {
        guard let target = unsafe call.ring else { return }
        // SAFETY: the ring is set up, and only this thread takes from it.
        unsafe Self.makeRoom(target)
        let entry = unsafe next()
        unsafe io_uring_prep_msg_ring(entry, target.pointee.ring_fd, 0, 0, 0)
        unsafe entry.pointee.flags |= nbdpull_IOSQE_CQE_SKIP_SUCCESS
        unsafe entry.pointee.user_data = tag
    }

    /// What earlier calls have left in a ring goes.
    private static func makeRoom(_ target: UnsafeMutablePointer<io_uring>) {
        // SAFETY: the ring is set up, and only this thread takes from it.
        unsafe io_uring_cq_advance(target, io_uring_cq_ready(target))
        // More calls than it has places for were submitted at once.
        guard unsafe io_uring_cq_has_overflow(target) else { return }
        for _ in 0..<overflowRoundsMax where unsafe io_uring_cq_has_overflow(target) {
            // It waits for nothing: the kernel puts what it has remembered where there is room, and
            // signals.
            guard unsafe io_uring_get_events(target) >= 0 else { return }
            unsafe io_uring_cq_advance(target, io_uring_cq_ready(target))
        }
    }

    /// Each round empties as many as a call ring has places; the rest is for the next call.
    private static let overflowRoundsMax = 16
}
