import Disk
import IORing
import ServerInterface
import SystemLayer

@testable import NBDServer

/// A world for one ring, without a descriptor: files and sockets are arrays of bytes, and what is
/// prepared completes when the ring next looks, unless its file hangs.
final class StubWorld {
    struct Socket {
        /// On its way to the ring.
        var incoming: [UInt8] = []
        /// What the ring has sent.
        var outgoing: [UInt8] = []
        /// Descriptors that come with the next bytes, and those that were sent.
        var descriptors: [Int32] = []
        var sentDescriptors: [Int32] = []
        var isShut = false
        var isClosed = false
    }

    var files: [Int32: [UInt8]] = [:]
    var sockets: [Int32: Socket] = [:]
    var now: UInt64 = 1_000_000_000
    var ticks = 0
    /// The pages of files that are holes.
    ///
    /// Files that are not named have none, and nobody makes any.
    var holes: [Int32: Set<Int>] = [:]
    /// Reads, writes and syncs of these files do not complete.
    var hung: Set<Int32> = []
    /// Counts of events that are shared with the ring.
    var events: [Int32: UInt64] = [:]
    /// Descriptors that the ring has closed.
    var closed: [Int32] = []
    /// The system has no room for calls of guests; those that have ended.
    var callsFail = false
    var endedCalls: [UInt] = []
    /// Peers that wait at listeners.
    var waiting: [Int32: ArraySlice<SocketHandle>] = [:]
    /// What the next syncs end with; 0 when there are no more.
    var syncResults: ArraySlice<Int32> = []
    /// What the next writes that are prepared end with, before anything is written; 0: as they
    /// should.
    var writeResults: ArraySlice<Int32> = []
    var works: [RingWork] = []
    /// The kernel's workers; nil where it does not tell.
    var workers: UInt32?
    /// Files whose changes keep none of those.
    var changeThreads: Set<Int32> = []
    /// Files that the ring changes; whether they are written through the page cache.
    var entered: [Int32: Bool] = [:]
    /// Where folios were split, and what that and an inline write take.
    var splits: [UInt64] = []
    var canSplitFolios = true
    var splitNanoseconds: UInt64 = 0
    var writeNanoseconds: UInt64 = 0
    var inlineWrites = 0
    /// The writes to scratch that have begun.
    var running: [ScratchTicket] = []
    var pending: [(tag: UInt64, operation: Prepared)] = []
    /// How much was pending at each submit, and what happens then.
    var submits: [Int] = []
    var onSubmit: () -> Void = {}

    enum Prepared {
        case read(FileHandle, arena: Int, count: Int, position: UInt64)
        case write(FileHandle, [UInt8], position: UInt64)
        case receive(SocketHandle, arena: Int, count: Int)
        case event(RingEvent)
        case punch(FileHandle, position: UInt64, count: UInt64)
        case sync(FileHandle)
        case nothing(Int32)
        case kick(EventHandle)
        /// Is to be tried again when the file does not hang any more.
        case stuck(FileHandle)
    }

    /// Bytes that the ring has sent, taken away.
    func take(from socket: SocketHandle) -> [UInt8] {
        defer { sockets[socket.number]?.outgoing = [] }
        return sockets[socket.number]?.outgoing ?? []
    }

    func store(_ bytes: [UInt8], in file: FileHandle, at position: UInt64) {
        let range = Int(position)..<Int(position) + bytes.count
        files[file.number]?.replaceSubrange(range, with: bytes)
        if !range.isEmpty { holes[file.number]?.subtract(Self.pages(range)) }
    }

    /// Zeroes a range and makes holes of its pages; false when the file has none.
    func punch(_ range: Range<Int>, in file: FileHandle) -> Bool {
        guard holes[file.number] != nil else { return false }
        store([UInt8](repeating: 0, count: range.count), in: file, at: UInt64(range.lowerBound))
        holes[file.number]?.formUnion(Self.pages(range))
        return true
    }

    static let pageBytes = 4096

    private static func pages(_ range: Range<Int>) -> ClosedRange<Int> {
        range.lowerBound / pageBytes...(range.upperBound - 1) / pageBytes
    }
}

/// The seam on a `StubWorld`.
struct StubIO: RingIO, ~Copyable {
    let world: StubWorld
    let mailbox: Mailbox<RingMessage>
    private var gathered: [UInt8] = []
    /// Where bytes pass between files and a guest's memory.
    var passage: BufferArena

    init(_ world: StubWorld, _ mailbox: Mailbox<RingMessage>) throws(SystemFault) {
        self.world = world
        self.mailbox = mailbox
        passage = try BufferArena(capacityBytes: 1 << 20)
    }

    // MARK: Prepared operations

    mutating func prepareRead(
        _ file: FileHandle, into _: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, tag: UInt64
    ) {
        world.pending.append(
            (tag, .read(file, arena: offset, count: count, position: filePosition)))
    }

    mutating func prepareWrite(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable _: Bool, tag: UInt64
    ) -> Bool {
        let bytes = arena.lend(offset, count: count).copy()
        world.pending.append((tag, .write(file, bytes, position: filePosition)))
        return !world.changeThreads.contains(file.number)
    }

    mutating func prepareAllocate(
        _ file: FileHandle, mode _: AllocationMode, filePosition: UInt64, count: UInt64,
        tag: UInt64
    ) -> Bool {
        world.pending.append((tag, .punch(file, position: filePosition, count: count)))
        return !world.changeThreads.contains(file.number)
    }

    mutating func prepareSync(_ file: FileHandle, tag: UInt64) {
        world.pending.append((tag, .sync(file)))
    }

    mutating func prepareAdvice(
        _: CacheAdvice, _: FileHandle, filePosition _: UInt64, count _: UInt32, tag: UInt64
    ) {
        world.pending.append((tag, .nothing(0)))
    }

    mutating func prepareReceive(
        _ socket: SocketHandle, into _: borrowing BufferArena, at offset: Int, count: Int,
        whole _: Bool, tag: UInt64
    ) {
        world.pending.append((tag, .receive(socket, arena: offset, count: count)))
    }

    mutating func prepareEvent(_ event: RingEvent, tag: UInt64) {
        world.pending.append((tag, .event(event)))
    }

    mutating func prepareCancel(_ target: UInt64, tag: UInt64) {
        for position in world.pending.indices where world.pending[position].tag == target {
            world.pending[position].operation = .nothing(-Errno.canceled)
        }
        world.pending.append((tag, .nothing(0)))
    }

    mutating func submit(waiting _: Bool) {
        world.submits.append(world.pending.count)
        world.onSubmit()
    }

    var completionCount: Int { 0 }

    mutating func drain(into completions: inout [Completion], _ arena: inout BufferArena) {
        completions.removeAll(keepingCapacity: true)
        let pending = world.pending
        world.pending = []
        for (tag, operation) in pending {
            if completions.count < 64, let result = complete(operation, &arena) {
                completions.append(Completion(tag: tag, result: result))
            } else {
                world.pending.append((tag, operation))
            }
        }
    }

    private func complete(
        _ operation: StubWorld.Prepared, _ arena: inout BufferArena
    ) -> Int32? {
        switch operation {
        case .read(let file, _, _, _) where world.hung.contains(file.number): nil
        case .write(let file, _, _) where world.hung.contains(file.number): nil
        case .read(let file, let offset, let count, let position):
            Int32(read(file, count, position, into: offset, &arena))
        case .write(let file, let bytes, let position): write(bytes, to: file, position)
        case .punch(let file, let position, let count):
            world.punch(Int(position)..<Int(position + count), in: file) ? 0 : -Errno.notSupported
        case .receive(let socket, let offset, let count): receive(socket, count, offset, &arena)
        case .event(let event): happens(event)
        case .sync(let file) where world.hung.contains(file.number): nil
        case .sync: world.syncResults.popFirst() ?? 0
        case .nothing(let result): result
        case .kick(let event): kick(event)
        case .stuck(let file):
            world.hung.contains(file.number) ? nil : -Errno.interrupted
        }
    }

    private func write(_ bytes: [UInt8], to file: FileHandle, _ position: UInt64) -> Int32 {
        // A guest's memory is written from only when its file does not hang.
        if bytes.isEmpty { return -Errno.again }
        if let result = world.writeResults.popFirst(), result < 0 { return result }
        world.store(bytes, in: file, at: position)
        return Int32(bytes.count)
    }

    private func read(
        _ file: FileHandle, _ count: Int, _ position: UInt64, into offset: Int,
        _ arena: inout BufferArena
    ) -> Int {
        let bytes = world.files[file.number, default: []].dropFirst(Int(position)).prefix(count)
        Self.store(bytes, at: offset, &arena)
        return bytes.count
    }

    private func receive(
        _ socket: SocketHandle, _ count: Int, _ offset: Int, _ arena: inout BufferArena
    ) -> Int32? {
        guard let state = world.sockets[socket.number], !state.isShut else { return 0 }
        let bytes = state.incoming.prefix(count)
        guard !bytes.isEmpty else { return nil }
        Self.store(bytes, at: offset, &arena)
        world.sockets[socket.number]?.incoming.removeFirst(bytes.count)
        return Int32(bytes.count)
    }

    private func happens(_ event: RingEvent) -> Int32? {
        switch event {
        case .messages: mailbox.isEmpty ? nil : 1
        case .tick: world.ticks == 0 ? nil : 1
        case .writable: 1
        case .readable(let socket): hasMessage(socket) ? 1 : nil
        case .acceptable(let listener):
            world.waiting[listener.number, default: []].isEmpty ? nil : 1
        }
    }

    private static func store(
        _ bytes: ArraySlice<UInt8>, at offset: Int, _ arena: inout BufferArena
    ) {
        var span = arena.mutableBytes(offset, count: bytes.count)
        for (index, byte) in bytes.enumerated() {
            span.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
        }
    }

    // MARK: At once

    mutating func readNow(
        _ file: FileHandle, into arena: inout BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait _: Bool
    ) -> Int {
        if world.hung.contains(file.number) { return -Int(Errno.again) }
        return read(file, count, filePosition, into: offset, &arena)
    }

    mutating func splitFolio(_ file: FileHandle, at filePosition: UInt64) -> Bool {
        world.splits.append(filePosition)
        world.now += world.splitNanoseconds
        return world.canSplitFolios
    }

    mutating func writeNow(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int {
        world.now += world.writeNanoseconds
        world.inlineWrites += 1
        if world.hung.contains(file.number) { return -Int(Errno.again) }
        world.store(arena.lend(offset, count: count).copy(), in: file, at: filePosition)
        return count
    }

    mutating func beginGather() { gathered = [] }

    mutating func gather(_ arena: borrowing BufferArena, at offset: Int, count: Int) {
        gathered += arena.lend(offset, count: count).copy()
    }

    mutating func sendGathered(to socket: SocketHandle, more _: Bool) -> Int {
        world.sockets[socket.number]?.outgoing += gathered
        return gathered.count
    }

    mutating func takePages(of _: FileHandle, filePosition _: UInt64, count _: Int) -> PageRun? {
        nil
    }

    mutating func sendPages(
        _: PageRun, to _: SocketHandle, count _: Int, more _: Bool
    ) -> Int { 0 }

    mutating func endPages(_: PageRun, unsent _: Int) {}

    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64
    ) -> (isData: Bool, end: UInt64) {
        let holes = world.holes[source.raw] ?? []
        let first = Int(position) / StubWorld.pageBytes
        let isHole = holes.contains(first)
        var next = first + 1
        while next * StubWorld.pageBytes < Int(end), holes.contains(next) == isHole { next += 1 }
        return (!isHole, min(UInt64(next * StubWorld.pageBytes), end))
    }

    mutating func allocation(
        of _: RawSource, at _: UInt64, end: UInt64, endsHole _: Bool, ahead _: Bool,
        map _: inout AllocationMap
    ) -> AllocationRun { AllocationRun(isData: true, end: end, lookups: 1) }

    mutating func isUncached(_: FileHandle, _: Range<UInt64>) -> Bool { false }

    mutating func writeError(_: FileHandle) -> Int32? { nil }

    mutating func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle? {
        world.waiting[listener.number]?.popFirst()
    }

    mutating func address(of _: SocketHandle) -> PeerAddress? { nil }

    mutating func welcome(_: SocketHandle, isUnix _: Bool) -> LocalPeer? { nil }

    mutating func hasHungUp(_: SocketHandle) -> Bool { false }

    mutating func shutdown(_ socket: SocketHandle) { world.sockets[socket.number]?.isShut = true }

    mutating func close(_ socket: SocketHandle) { world.sockets[socket.number]?.isClosed = true }

    // MARK: Time and others

    mutating func now() -> UInt64 { world.now }

    mutating func takeTick() { world.ticks -= 1 }

    mutating func takeMessages() -> [RingMessage] { mailbox.takeAll() }

    mutating func start(_ work: RingWork) -> Bool {
        if case .writeScratch(_, let ticket, _, _) = work { world.running.append(ticket) }
        world.works.append(work)
        return true
    }

    mutating func revokeWrites(to _: BackupExport) -> ScratchTicket? { world.running.popLast() }

    mutating func fileWorkers() -> UInt32? { world.workers }

    mutating func setFileWorkers(_ count: UInt32, tag _: UInt64) { world.workers = count }

    mutating func enter(_ file: FileHandle, takesWrites: Bool) {
        world.entered[file.number] = takesWrites
    }

    mutating func leave(_ file: FileHandle) { world.entered[file.number] = nil }
}
