import Synchronization

/// Bytes on their way from the ring that has an upstream to another one.
// SAFETY (unchecked Sendable): one ring fills them, then the other reads them; a mailbox's lock is
// in between.
@safe
package final class UpstreamBytes: @unchecked Sendable {
    /// Memory of their own, where they are put unless they are borrowed.
    package let address: UInt
    package let count: Int
    /// Of slots of scratch: the sums of what was written to them last when they were read.
    var sums: [UInt64] = []
    /// Shared memory where they are instead, until this goes.
    private var run: SharedRun?

    /// Fresh memory for each read would cost more than the read: its pages are zeroed and taken
    /// back every time.
    private static let spare = Mutex(UpstreamMemory())

    package init(count: Int) {
        self.count = count
        address = Self.spare.withLock { $0.take(count) }
    }

    deinit { Self.spare.withLock { $0.give(address, count) } }

    /// They are in shared memory from now on; whoever wrote them may go on doing so.
    func borrow(_ run: SharedRun) { self.run = run }

    /// Whether what was copied was nothing: the machine had no memory for the bytes.
    package var areGone: Bool { run?.isGone ?? false }

    /// Whether the slots that were read are what was written to them.
    package func matches(_ key: ScratchKey) -> Bool {
        guard run == nil, sums.count * key.slotBytes == count else { return false }
        return sums.indices.allSatisfy {
            key.sum(at: address + UInt($0 * key.slotBytes)) == sums[$0]
        }
    }

    /// Bytes that were read, for copying once.
    package func withBytes(_ range: Range<Int>, _ body: (Span<UInt8>) -> Void) {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        let start = (run?.address ?? address) + UInt(range.lowerBound)
        guard let first = unsafe UnsafePointer<UInt8>(bitPattern: start) else {
            preconditionFailure("memory that was taken has an address")
        }
        // SAFETY: the range was just checked; own memory and shared run live as long as this.
        body(unsafe Span(_unsafeStart: first, count: range.count))
    }
}

/// What lends pages of shared memory.
protocol RunLender: AnyObject, Sendable {
    /// A run that was lent is not read any more; on any thread.
    func giveBack(_ page: Int, _ pages: Int)
    /// Whether what others read of it is not what the program has written.
    var isMemoryGone: Bool { get }
}

/// Pages of a shared area whose bytes another ring still reads.
final class SharedRun: Sendable {
    private let lender: any RunLender
    private let page: Int
    private let pages: Int
    let address: UInt

    init(_ lender: any RunLender, page: Int, pages: Int, address: UInt) {
        self.lender = lender
        self.page = page
        self.pages = pages
        self.address = address
    }

    deinit { lender.giveBack(page, pages) }

    var isGone: Bool { lender.isMemoryGone }
}
