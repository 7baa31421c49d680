import Synchronization

/// Who may write a disk, and who has pages of it on loan: sent by reference to a backup client that
/// may not have read them yet.
///
/// A page on loan shows what is written to it, so the two exclude each other. Each side announces
/// itself first and looks for the other after; every step is sequentially consistent, so of two that
/// come at the same time at least one sees the other. A lender that sees a writer steps back; a
/// writer that sees a lender waits, with a limit. Touched when connections come and go and by the
/// clock, never per request.
final class SourceLoans: Sendable {
    let disk: DiskID
    /// Where writers wait.
    let homeRing: Int
    private let writers = Atomic<Int>(0)
    private let lenders = Atomic<Int>(0)

    init(disk: DiskID, homeRing: Int) {
        self.disk = disk
        self.homeRing = homeRing
    }

    /// Whether a connection is there that may write.
    var hasWriters: Bool { writers.load(ordering: .sequentiallyConsistent) > 0 }
    /// Whether a connection is there that may have pages on their way.
    var hasLenders: Bool { lenders.load(ordering: .sequentiallyConsistent) > 0 }

    /// A connection that may write is there; it writes nothing before `hasLenders` was false after
    /// this call.
    func announceWriter() { writers.add(1, ordering: .sequentiallyConsistent) }

    /// The connection is gone and all that it wrote is complete.
    func dismissWriter() { writers.subtract(1, ordering: .sequentiallyConsistent) }

    /// A connection wants to lend; it lends nothing before `hasWriters` was false after this call.
    fileprivate func announceLender() { lenders.add(1, ordering: .sequentiallyConsistent) }

    /// Nothing of the connection is on loan; true when it was the last one and a writer may wait for
    /// that.
    fileprivate func dismissLender() -> Bool {
        lenders.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 && hasWriters
    }
}

/// What one backup export has lent of its disk: whom a writer that has waited long enough is to
/// break.
final class ExportLoans: Sendable {
    /// Those of all exports of the disk.
    let disk: SourceLoans
    private let lenders = Atomic<Int>(0)
    private let unwatched = Atomic<Bool>(false)
    private let broken = Atomic<Bool>(false)

    init(_ disk: SourceLoans) { self.disk = disk }

    /// Whether pages of this export may be on their way.
    var isOutstanding: Bool {
        lenders.load(ordering: .sequentiallyConsistent) > 0 || hasUnwatched
    }

    /// Whether pages were left with a peer of which nobody hears any more.
    var hasUnwatched: Bool { unwatched.load(ordering: .sequentiallyConsistent) }

    /// Whether the job is broken: nobody waits for its clients any more.
    var isForBrokenJob: Bool { broken.load(ordering: .sequentiallyConsistent) }

    /// The job is broken; before any writer goes on for that reason.
    func noteBroken() { broken.store(true, ordering: .sequentiallyConsistent) }

    /// First step of a loan, after a look at `hasWriters` that spares writers a false alarm.
    func announce() {
        lenders.add(1, ordering: .sequentiallyConsistent)
        disk.announceLender()
    }

    /// Last step of a loan, or the step back; true when a writer waits for just this.
    func dismiss() -> Bool {
        // A writer that sees no lender of the disk finds none of the export either.
        lenders.subtract(1, ordering: .sequentiallyConsistent)
        return disk.dismissLender()
    }

    /// Instead of waiting for a peer any longer: it may read its pages whenever it likes, so the next
    /// writer breaks the job.
    ///
    /// `dismiss` follows.
    func loseSight() { unwatched.store(true, ordering: .sequentiallyConsistent) }

    /// What became of an attempt to lend.
    enum Attempt { case lends, refused, refusedWriterWaits }

    /// Announces a connection that wants to lend, unless a writer is there.
    func lend() -> Attempt {
        if disk.hasWriters { return .refused }
        announce()
        if !disk.hasWriters { return .lends }
        return dismiss() ? .refusedWriterWaits : .refused
    }
}

/// How a connection of a backup export stands to the pages of a disk that a guest may write.
enum Loan {
    /// It copies.
    case none
    /// It may send pages.
    case open
    /// A writer waits: it sends no more, and nothing is read from its peer until all is taken.
    case recalled
}
