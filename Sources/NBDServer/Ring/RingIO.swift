import Disk
import IORing
import SharedMemory
import SystemLayer
import Upstream

/// All that a ring's loop asks of the world: the kernel in the server (`KernelIO`), a simulated
/// world in tests.
///
/// Three kinds of calls. *Prepared* operations end later, in any order, with a completion that
/// carries their tag. Calls *at once* never wait (but for `readNow` where it says so) and decide on
/// the spot what happens next. *Work* is handed to others, who answer with a message.
protocol RingIO: ~Copyable {
    // MARK: Prepared operations

    // Results are those of the system call: bytes, or the negative errno. Buffers are ranges of the
    // arena, which stay allocated until the completion has been taken. Fewer bytes than asked for
    // are no error.

    /// Reads a range of a file; the bytes lie in the arena when the completion is taken.
    mutating func prepareRead(
        _ file: FileHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, tag: UInt64)

    // Changes return whether one that hangs may keep one of the kernel's workers.

    /// Writes a range of the arena to a file, at any time up to the completion; `durable` makes it
    /// persistent before that.
    mutating func prepareWrite(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable: Bool, tag: UInt64
    ) -> Bool

    /// Zeroes a range of a file without writing it; EOPNOTSUPP where the source cannot.
    mutating func prepareAllocate(
        _ file: FileHandle, mode: AllocationMode, filePosition: UInt64, count: UInt64, tag: UInt64
    ) -> Bool

    /// Makes every write that was completed before durable.
    mutating func prepareSync(_ file: FileHandle, tag: UInt64)

    /// Says what is to become of a range in the page cache; changes no byte.
    mutating func prepareAdvice(
        _ advice: CacheAdvice, _ file: FileHandle, filePosition: UInt64, count: UInt32, tag: UInt64)

    /// A regular file is changed from here on, of which nothing is in flight; `takesWrites`: written
    /// through the page cache.
    mutating func enter(_ file: FileHandle, takesWrites: Bool)

    /// Nothing more is asked of a file, and none of its operations is in flight.
    mutating func leave(_ file: FileHandle)

    /// Receives from a socket: at least a byte; 0 at the end of the stream.
    ///
    /// With `whole` all of them, unless the stream ends or the call is interrupted.
    mutating func prepareReceive(
        _ socket: SocketHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        whole: Bool, tag: UInt64)

    /// Completes once when the event happens, or has happened already.
    mutating func prepareEvent(_ event: RingEvent, tag: UInt64)

    /// Takes back the event that was asked for with the tag `target`: it completes with ECANCELED,
    /// unless it has happened.
    mutating func prepareCancel(_ target: UInt64, tag: UInt64)

    /// Hands over what was prepared; `waiting` until there is a completion.
    mutating func submit(waiting: Bool)

    /// Completions that wait to be taken.
    var completionCount: Int { get }

    /// Puts completions that are there in place of what was in the array, oldest first, as many as
    /// fit its capacity.
    ///
    /// What was read or received lies in the arena then.
    mutating func drain(into completions: inout [Completion], _ arena: inout BufferArena)

    // MARK: At once

    /// Reads what the page cache has of a range, or all of it where `mayWait`; returns bytes or the
    /// negative errno (EAGAIN: nothing is cached).
    mutating func readNow(
        _ file: FileHandle, into arena: inout BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait: Bool
    ) -> Int

    /// Splits the folio of the page cache that holds a place of a file, if it can be split now; false
    /// where none ever can.
    mutating func splitFolio(_ file: FileHandle, at filePosition: UInt64) -> Bool

    /// Writes into the page cache; returns bytes or the negative errno.
    mutating func writeNow(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int

    /// Begins a new list of ranges to be sent.
    mutating func beginGather()

    /// Adds a range to the list; at most `GatherList.capacity` of them.
    mutating func gather(_ arena: borrowing BufferArena, at offset: Int, count: Int)

    /// Sends the list as far as the socket takes it; returns bytes or the negative errno (EAGAIN:
    /// none).
    ///
    /// `more`: other bytes follow at once.
    mutating func sendGathered(to socket: SocketHandle, more: Bool) -> Int

    /// Takes the pages that hold a range of a file, without a copy: they show later changes of the
    /// file.
    ///
    /// Nil unless all of them are cached, and room for them is to be had.
    mutating func takePages(
        of file: FileHandle, filePosition: UInt64, count: Int
    ) -> PageRun?

    /// Sends the next `count` bytes of the pages; returns bytes or the negative errno, as
    /// `sendGathered`.
    mutating func sendPages(
        _ pages: PageRun, to socket: SocketHandle, count: Int, more: Bool
    ) -> Int

    /// Ends pages of which so many bytes were not sent.
    mutating func endPages(_ pages: PageRun, unsent: Int)

    /// What lies at a place of a source, see `RawSource.allocation`.
    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64
    ) -> (isData: Bool, end: UInt64)

    /// The same from answer to answer; more than was asked for may be kept in the map.
    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64, endsHole: Bool, ahead: Bool,
        map: inout AllocationMap
    ) -> AllocationRun

    /// Whether the page cache holds nothing of a range; false where that cannot be told.
    mutating func isUncached(_ file: FileHandle, _ range: Range<UInt64>) -> Bool

    /// The errno of a failed write-back that this handle has not been told of, or nil: told once.
    mutating func writeError(_ witness: FileHandle) -> Int32?

    /// The next peer that waits; nil when none does. Throws when there is no room for it.
    mutating func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle?

    /// The address of a TCP peer.
    mutating func address(of socket: SocketHandle) -> PeerAddress?

    /// Makes a new socket ready for its replies; returns who is at the other end of a unix socket.
    mutating func welcome(_ socket: SocketHandle, isUnix: Bool) -> LocalPeer?

    /// Whether the peer has closed its half, whatever is still unread.
    mutating func hasHungUp(_ socket: SocketHandle) -> Bool

    /// Ends both directions: what was prepared on the socket completes soon.
    mutating func shutdown(_ socket: SocketHandle)

    /// Ends the socket; nothing on it is in flight.
    mutating func close(_ socket: SocketHandle)

    // MARK: A guest's memory

    // A lane's ranges lie in memory that a guest shares: whatever is there may change at any
    // moment, and when the memory has gone an operation on it fails with EFAULT.

    /// Reads a range of a file into a lane's ranges.
    mutating func prepareRead(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        tag: UInt64)

    /// Writes a lane's ranges to a file, as from the arena.
    mutating func prepareWrite(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable: Bool, tag: UInt64
    ) -> Bool

    /// Reads what the page cache has into a lane's ranges, as into the arena.
    mutating func readNow(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        mayWait: Bool
    ) -> Int

    /// Writes a lane's ranges into the page cache, as from the arena.
    mutating func writeNow(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64
    ) -> Int

    /// Copies bytes of a lane's ranges into the arena; returns bytes or the negative errno.
    mutating func copy(
        from table: borrowing VectorTable, lane: Int, to arena: inout BufferArena, at offset: Int,
        count: Int
    ) -> Int

    /// Copies bytes of the arena into a lane's ranges; returns bytes or the negative errno.
    mutating func copy(
        from arena: borrowing BufferArena, at offset: Int, count: Int,
        to table: borrowing VectorTable, lane: Int
    ) -> Int

    /// Completes when the event's count is not zero, and takes it.
    mutating func prepareKick(_ event: EventHandle, tag: UInt64)

    /// What calls the event's owner, in place of `old`; the event may be closed then.
    mutating func makeCall(
        _ event: EventHandle, replacing old: CallHandle?
    ) throws(SystemFault) -> CallHandle

    /// Adds to the event's count with the next `submit`, if it is not full; never waits, and
    /// completes only if it fails.
    mutating func prepareCall(_ call: CallHandle, tag: UInt64)

    /// Ends what `makeCall` made, after what was prepared.
    mutating func close(_ call: CallHandle)

    /// Receives bytes of a message and its descriptors behind those that are there; returns bytes,
    /// 0 at the end of the stream, or the negative errno (EAGAIN: nothing is there).
    mutating func receiveMessage(
        _ socket: SocketHandle, count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int

    /// Sends a message, with a descriptor or without; returns bytes or the negative errno.
    mutating func sendMessage(_ socket: SocketHandle, _ bytes: [UInt8], descriptor: Int32?) -> Int

    /// Takes a descriptor for an event; nil when it is none.
    mutating func event(_ descriptor: Int32) -> EventHandle?

    /// Closes descriptors that came with messages, or that events were made of; what may take time
    /// is done by `closer`.
    mutating func close(_ descriptors: [Int32], by closer: SlowCloser)

    /// Closes a front-end's socket; descriptors that nobody has received are closed with it.
    mutating func close(_ socket: SocketHandle, by closer: SlowCloser)

    // MARK: Time

    /// Nanoseconds of a clock that never goes back.
    mutating func now() -> UInt64

    // MARK: Upstreams

    /// Asks what lies in a range of an upstream, at most 4 GiB less a byte; the answer is to be
    /// taken with the tag.
    mutating func prepareStatus(
        _ file: FileHandle, filePosition: UInt64, count: UInt64, tag: UInt64)

    /// What a completed `prepareStatus` has found, from its position on; it may end early.
    mutating func takeExtents(_ tag: UInt64) -> [UpstreamExtent]

    /// Something about an upstream that is at home on this ring.
    mutating func upstream(_ message: UpstreamMessage)

    /// Another ring's upstream has answered.
    mutating func upstreamAnswered(_ answer: UpstreamAnswer)

    // MARK: Others

    /// Takes messages out of the ring's mailbox, oldest first.
    mutating func takeMessages() -> [RingMessage]

    /// Takes the tick that has come.
    mutating func takeTick()

    /// Has others do something; false: it is not done, and no message follows.
    mutating func start(_ work: RingWork) -> Bool

    /// Forgets the writes to a job's scratch that have not begun; returns the one that has, whose
    /// buffer stays in use until its message comes. Each is returned once.
    mutating func revokeWrites(to export: BackupExport) -> ScratchTicket?

    /// Workers that may carry out operations on files at once, as the kernel chose; nil where it
    /// does not tell.
    mutating func fileWorkers() -> UInt32?

    /// Lets so many workers carry them out; those that hang count.
    mutating func setFileWorkers(_ count: UInt32, tag: UInt64)
}

/// A world that makes all changes alike.
extension RingIO where Self: ~Copyable {
    mutating func enter(_: FileHandle, takesWrites _: Bool) {}
    mutating func leave(_: FileHandle) {}
}

/// A world without upstreams.
extension RingIO where Self: ~Copyable {
    mutating func prepareStatus(
        _: FileHandle, filePosition: UInt64, count: UInt64, tag: UInt64
    ) {}
    mutating func takeExtents(_: UInt64) -> [UpstreamExtent] { [] }
    mutating func upstream(_: UpstreamMessage) {}
    mutating func upstreamAnswered(_: UpstreamAnswer) {}
}
