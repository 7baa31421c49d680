import Disk
import IORing
import ScratchFiles
import SharedMemory
import SystemLayer
import Upstream

/// The world as the kernel gives it: an io_uring of the calling thread, and plain calls that do not
/// wait.
struct KernelIO: RingIO, ~Copyable {
    var ring: Ring
    private var list = GatherList()
    private var pipes: PipePool
    private let clock: PeriodicTimer
    let shared: ServerShared
    let mailbox: Mailbox<RingMessage>
    let index: Int
    /// Changes of files while disks lie on several file systems.
    var changes: ChangeThreads
    /// A poll for their wake-ups has not completed.
    var listensToChanges = false

    // Upstreams
    var upstreams = UpstreamRing()
    /// Polls that have not completed: some outlive the last upstream.
    var upstreamPolls = 0
    /// Answers of other rings' upstreams, until the loop takes them.
    var answers: [UpstreamAnswer] = []
    /// Where the bytes of those go, by tag.
    var targets: [UInt64: UpstreamTarget] = [:]
    var extents: [UInt64: [UpstreamExtent]] = [:]

    /// Must be made on the thread that will use it.
    init(index: Int, shared: ServerShared) throws(SystemFault) {
        let ring = try Ring(
            entries: 512, completionEntries: UInt32(Limits.operationsPerRing))
        let changes = try ChangeThreads()
        clock = try PeriodicTimer(milliseconds: Limits.tickMilliseconds)
        self.ring = ring
        self.changes = changes
        pipes = PipePool(limit: shared.layout.pipesPerRing)
        self.shared = shared
        self.index = index
        mailbox = shared.mailboxes[index]
    }

    // MARK: Prepared operations

    mutating func prepareRead(
        _ file: FileHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, tag: UInt64
    ) {
        if file.isUpstream {
            return ask(
                file, .read, filePosition, count, tag: tag,
                address: arena.address(offset, count: count), offset: offset)
        }
        ring.prepareRead(
            file.number, into: arena, at: offset, count: count, filePosition: filePosition,
            tag: tag)
    }

    mutating func prepareWrite(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable: Bool, tag: UInt64
    ) -> Bool {
        if file.isUpstream {
            ask(
                file, .write, filePosition, count, tag: tag,
                address: arena.address(offset, count: count), durable: durable)
            return false
        }
        if threadsMakeChanges,
            changes.write(
                file.number, from: arena, at: offset, count: count, filePosition: filePosition,
                durable: durable, tag: tag)
        {
            return false
        }
        ring.prepareWrite(
            file.number, from: arena, at: offset, count: count, filePosition: filePosition,
            durable: durable, tag: tag)
        return true
    }

    mutating func prepareAllocate(
        _ file: FileHandle, mode: AllocationMode, filePosition: UInt64, count: UInt64, tag: UInt64
    ) -> Bool {
        if file.isUpstream {
            let kind: UpstreamCommand.Kind =
                switch mode {
                case .discard: .discard
                case .punchHole: .zero(keepsSpace: false)
                case .zeroRange: .zero(keepsSpace: true)
                }
            ask(file, kind, filePosition, Int(count), tag: tag)
            return false
        }
        if threadsMakeChanges,
            changes.allocate(
                file.number, mode: mode, filePosition: filePosition, count: count, tag: tag)
        {
            return false
        }
        ring.prepareAllocate(
            file.number, mode: mode, filePosition: filePosition, count: count, tag: tag)
        return true
    }

    mutating func prepareSync(_ file: FileHandle, tag: UInt64) {
        if file.isUpstream { return ask(file, .flush, 0, 0, tag: tag) }
        ring.prepareSync(file.number, tag: tag)
    }

    mutating func prepareAdvice(
        _ advice: CacheAdvice, _ file: FileHandle, filePosition: UInt64, count: UInt32, tag: UInt64
    ) {
        if file.isUpstream {
            // What an upstream keeps in its cache is its own affair.
            if advice == .drop { return complete(tag, 0) }
            return ask(file, .prefetch, filePosition, Int(count), tag: tag)
        }
        ring.prepareAdvice(
            advice, file.number, filePosition: filePosition, count: count, tag: tag)
    }

    mutating func prepareReceive(
        _ socket: SocketHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        whole: Bool, tag: UInt64
    ) {
        ring.prepareReceive(
            socket.number, into: arena, at: offset, count: count, whole: whole, tag: tag)
    }

    mutating func prepareEvent(_ event: RingEvent, tag: UInt64) {
        switch event {
        case .writable(let socket): ring.preparePoll(socket.number, writable: true, tag: tag)
        case .acceptable(let listener): ring.preparePoll(listener.number, writable: false, tag: tag)
        case .readable(let socket): ring.preparePoll(socket.number, writable: false, tag: tag)
        case .messages: ring.preparePoll(mailbox.raw, writable: false, tag: tag)
        case .tick: ring.preparePoll(clock.raw, writable: false, tag: tag)
        }
    }

    mutating func prepareCancel(_ target: UInt64, tag: UInt64) {
        ring.prepareCancel(target, tag: tag)
    }

    mutating func submit(waiting: Bool) {
        guard changes.inFlight > 0 else { return submitRest(waiting: waiting) }
        listenToChanges()
        submitRest(waiting: waiting && changes.mayWait())
        changes.haveWaited()
    }

    private mutating func submitRest(waiting: Bool) {
        guard usesUpstreams else { return ring.submit(waiting: waiting) }
        settleUpstreams()
        // From here on programs call; what one has answered meanwhile is taken first.
        let mayWait = waiting && !hasUpstreamCompletions && !upstreams.wantCalls()
        ring.submit(waiting: mayWait)
        // What the kernel has not taken names call rings by their numbers.
        if !ring.hasUnsubmitted { upstreams.haveKicked() }
    }

    var completionCount: Int {
        // What has woken the ring is none itself.
        let wakeUps = changes.isWoken ? min(1, ring.completionCount) : 0
        return ring.completionCount - wakeUps + changes.completionCount
            + upstreams.errands.completions.count + answers.count
    }

    mutating func drain(into completions: inout [Completion], _ arena: inout BufferArena) {
        ring.drain(into: &completions)
        if usesUpstreams { drainUpstreams(into: &completions, &arena) }
        if usesChangeThreads { drainChanges(into: &completions) }
    }

    // MARK: At once

    mutating func readNow(
        _ file: FileHandle, into arena: inout BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait: Bool
    ) -> Int {
        // Nothing of an upstream is here.
        if file.isUpstream { return -Int(Errno.again) }
        return FileCalls.read(
            file.number, into: arena, at: offset, count: count, filePosition: filePosition,
            mayWait: mayWait)
    }

    mutating func splitFolio(_ file: FileHandle, at filePosition: UInt64) -> Bool {
        !file.isUpstream && FileCalls.splitFolio(file.number, at: filePosition)
    }

    mutating func writeNow(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int {
        if file.isUpstream { return -Int(Errno.again) }
        return FileCalls.write(
            file.number, from: arena, at: offset, count: count, filePosition: filePosition)
    }

    mutating func beginGather() { list.removeAll() }

    mutating func gather(_ arena: borrowing BufferArena, at offset: Int, count: Int) {
        list.append(arena, at: offset, count: count)
    }

    mutating func sendGathered(to socket: SocketHandle, more: Bool) -> Int {
        list.send(socket.number, more: more)
    }

    mutating func takePages(of file: FileHandle, filePosition: UInt64, count: Int) -> PageRun? {
        guard !file.isUpstream,
            FileCalls.isResident(file.number, position: filePosition, count: count),
            let pipe = pipes.take()
        else { return nil }
        let filled = pipes.fill(
            pipe, from: file.number, filePosition: filePosition, count: count)
        guard filled == count else {
            pipes.discard(pipe)
            return nil
        }
        return PageRun(pipe)
    }

    mutating func sendPages(
        _ pages: PageRun, to socket: SocketHandle, count: Int, more: Bool
    ) -> Int {
        pipes.send(Int(pages.number), to: socket.number, count: count, more: more)
    }

    mutating func endPages(_ pages: PageRun, unsent: Int) {
        if unsent == 0 {
            pipes.giveBack(Int(pages.number))
        } else {
            pipes.discard(Int(pages.number))
        }
    }

    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64
    ) -> (isData: Bool, end: UInt64) {
        source.allocation(at: position, end: end, mayWait: false)
    }

    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64, endsHole: Bool, ahead: Bool,
        map: inout AllocationMap
    ) -> AllocationRun {
        source.allocation(
            at: position, end: end, endsHole: endsHole, ahead: ahead, mayWait: false, map: &map)
    }

    mutating func isUncached(_ file: FileHandle, _ range: Range<UInt64>) -> Bool {
        !file.isUpstream && FileCalls.isAbsent(file.number, range)
    }

    mutating func writeError(_ witness: FileHandle) -> Int32? {
        FileCalls.writeError(witness.number)
    }

    // MARK: Sockets

    mutating func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle? {
        guard let descriptor = try SocketCalls.accept(listener.number)?.giveAway() else {
            return nil
        }
        return SocketHandle(descriptor)
    }

    mutating func address(of socket: SocketHandle) -> PeerAddress? {
        SocketCalls.peer(of: socket.number)
    }

    mutating func welcome(_ socket: SocketHandle, isUnix: Bool) -> LocalPeer? {
        SocketCalls.tune(socket.number, isUnix: isUnix)
        guard isUnix, let peer = SocketCalls.peer(socket.number) else { return nil }
        return LocalPeer(process: peer.process, user: peer.user, group: peer.group)
    }

    mutating func hasHungUp(_ socket: SocketHandle) -> Bool {
        SocketCalls.hasHungUp(socket.number)
    }

    mutating func shutdown(_ socket: SocketHandle) { SocketCalls.shutdown(socket.number) }

    mutating func close(_ socket: SocketHandle) {
        _ = OwnedDescriptor(adopting: socket.number)
    }

    // MARK: A guest's memory

    mutating func prepareRead(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        tag: UInt64
    ) {
        if file.isUpstream {
            return ask(file, .read, filePosition, table.byteCount(lane), tag: tag, table.lend(lane))
        }
        ring.prepareRead(
            file.number, into: table, lane: lane, filePosition: filePosition, tag: tag)
    }

    mutating func prepareWrite(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable: Bool, tag: UInt64
    ) -> Bool {
        if file.isUpstream {
            ask(
                file, .write, filePosition, table.byteCount(lane), tag: tag, table.lend(lane),
                durable: durable)
            return false
        }
        if threadsMakeChanges,
            changes.write(
                file.number, from: table, lane: lane, filePosition: filePosition, durable: durable,
                tag: tag)
        {
            return false
        }
        ring.prepareWrite(
            file.number, from: table, lane: lane, filePosition: filePosition, durable: durable,
            tag: tag)
        return true
    }

    mutating func readNow(
        _ file: FileHandle, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        mayWait: Bool
    ) -> Int {
        if file.isUpstream { return -Int(Errno.again) }
        return FileCalls.read(
            file.number, into: table, lane: lane, filePosition: filePosition, mayWait: mayWait)
    }

    mutating func writeNow(
        _ file: FileHandle, from table: borrowing VectorTable, lane: Int, filePosition: UInt64
    ) -> Int {
        if file.isUpstream { return -Int(Errno.again) }
        return FileCalls.write(file.number, from: table, lane: lane, filePosition: filePosition)
    }

    mutating func copy(
        from table: borrowing VectorTable, lane: Int, to arena: inout BufferArena, at offset: Int,
        count: Int
    ) -> Int {
        FileCalls.copy(from: table, lane: lane, to: arena, at: offset, count: count)
    }

    mutating func copy(
        from arena: borrowing BufferArena, at offset: Int, count: Int,
        to table: borrowing VectorTable, lane: Int
    ) -> Int {
        FileCalls.copy(from: arena, at: offset, count: count, to: table, lane: lane)
    }

    mutating func prepareKick(_ event: EventHandle, tag: UInt64) {
        ring.prepareEventRead(event.number, tag: tag)
    }

    mutating func makeCall(
        _ event: EventHandle, replacing old: CallHandle?
    ) throws(SystemFault) -> CallHandle {
        if let old {
            try CallRing(number: old.number).replace(event.number)
            return old
        }
        return CallHandle(try CallRing.make(event.number).number)
    }

    mutating func prepareCall(_ call: CallHandle, tag: UInt64) {
        ring.prepareCall(CallRing(number: call.number), tag: tag)
    }

    mutating func close(_ call: CallHandle) {
        // What was prepared names it by number.
        ring.submit(waiting: false)
        CallRing(number: call.number).close()
    }

    mutating func receiveMessage(
        _ socket: SocketHandle, count: Int, into bytes: inout [UInt8], descriptors: inout [Int32]
    ) -> Int {
        DescriptorSocket.receive(socket.number, count, into: &bytes, descriptors: &descriptors)
    }

    mutating func sendMessage(
        _ socket: SocketHandle, _ bytes: [UInt8], descriptor: Int32?
    ) -> Int {
        DescriptorSocket.send(socket.number, bytes, descriptor: descriptor)
    }

    mutating func event(_ descriptor: Int32) -> EventHandle? {
        guard DescriptorSocket.isEvent(descriptor) else { return nil }
        DescriptorSocket.makeNonblocking(descriptor)
        return EventHandle(descriptor)
    }

    mutating func close(_ descriptors: [Int32], by closer: SlowCloser) { closer.close(descriptors) }

    mutating func close(_ socket: SocketHandle, by closer: SlowCloser) {
        closer.close([socket.number])
    }

    // MARK: Time

    mutating func now() -> UInt64 { MonotonicClock.now() }

    mutating func takeTick() {
        clock.consume()
        if !upstreams.isEmpty { upstreams.tick(now: MonotonicClock.now()) }
    }

    // MARK: Others

    mutating func takeMessages() -> [RingMessage] { mailbox.takeAll() }

    mutating func start(_ work: RingWork) -> Bool {
        if case .writeScratch(let export, let ticket, let bytes, let position) = work,
            let upstream = export.scratch.remote as? UpstreamSource
        {
            write(UpstreamWrite(ticket: ticket, bytes: bytes, position: position), to: upstream)
            return true
        }
        if case .closeScratch(let export) = work { closeUpstreamScratch(of: export) }
        return work.start(for: mailbox, shared)
    }

    mutating func revokeWrites(to export: BackupExport) -> ScratchTicket? {
        closeUpstreamScratch(of: export)
        return export.writer.revoke()
    }

    mutating func fileWorkers() -> UInt32? { ring.fileWorkers() }

    mutating func setFileWorkers(_ count: UInt32, tag: UInt64) {
        ring.setFileWorkers(count, tag: tag)
    }
}
