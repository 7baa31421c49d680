import Disk
import IORing
import Simulation
import SystemLayer

/// The world of a ring's loop, simulated.
struct SimulatedIO: RingIO, ~Copyable {
    let kernel: Kernel

    private var world: ServerWorld { kernel.world }

    // MARK: Prepared operations

    mutating func prepareRead(
        _ file: FileHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, tag: UInt64
    ) {
        kernel.prepare(
            KernelOperation(
                tag, .read(file, position: filePosition, count: count), arenaOffset: offset))
    }

    mutating func prepareWrite(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, durable: Bool, tag: UInt64
    ) -> Bool {
        // Looked at when the write takes effect, as the kernel may.
        let bytes = arena.lend(offset, count: count)
        kernel.prepare(
            KernelOperation(
                tag, .write(file, position: filePosition, .arena(bytes), durable: durable)))
        return true
    }

    mutating func prepareAllocate(
        _ file: FileHandle, mode: AllocationMode, filePosition: UInt64, count: UInt64, tag: UInt64
    ) -> Bool {
        kernel.prepare(
            KernelOperation(tag, .allocate(file, position: filePosition, count: count)))
        return true
    }

    mutating func prepareSync(_ file: FileHandle, tag: UInt64) {
        kernel.prepare(KernelOperation(tag, .sync(file)))
    }

    mutating func prepareAdvice(
        _ advice: CacheAdvice, _ file: FileHandle, filePosition: UInt64, count: UInt32, tag: UInt64
    ) {
        kernel.prepare(KernelOperation(tag, .nothing))
    }

    mutating func prepareReceive(
        _ socket: SocketHandle, into arena: borrowing BufferArena, at offset: Int, count: Int,
        whole: Bool, tag: UInt64
    ) {
        kernel.prepare(
            KernelOperation(
                tag, .receive(socket, count: count, whole: whole), arenaOffset: offset))
    }

    mutating func prepareEvent(_ event: RingEvent, tag: UInt64) {
        kernel.prepare(KernelOperation(tag, .event(event)))
    }

    mutating func prepareCancel(_ target: UInt64, tag: UInt64) {
        kernel.prepare(KernelOperation(tag, .cancel(target)))
    }

    mutating func submit(waiting: Bool) {
        kernel.submit()
        world.goOnMeanwhile(kernel)
    }

    var completionCount: Int { kernel.ready.count }

    mutating func drain(into completions: inout [Completion], _ arena: inout BufferArena) {
        completions.removeAll(keepingCapacity: true)
        for operation in kernel.take(atMost: completions.capacity) {
            if operation.guest == nil {
                Sectors.store(operation.bytes, in: &arena, at: operation.arenaOffset)
            }
            if operation.guest == nil, case .read(let file, let position, _) = operation.kind {
                kernel.noteRead(file, position, operation.bytes, at: operation.arenaOffset)
            }
            completions.append(Completion(tag: operation.tag, result: operation.result))
        }
    }

    // MARK: At once

    mutating func readNow(
        _ file: FileHandle, into arena: inout BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait: Bool
    ) -> Int {
        guard let bytes = world.readNow(file, filePosition, count, mayWait: mayWait) else {
            return -Int(Errno.again)
        }
        Sectors.store(bytes, in: &arena, at: offset)
        kernel.noteRead(file, filePosition, bytes, at: offset)
        return bytes.count
    }

    mutating func splitFolio(_: FileHandle, at _: UInt64) -> Bool { true }

    mutating func writeNow(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int {
        world.writeNow(file, filePosition, Sectors.stamps(Sectors.copy(arena, offset, count)))
    }

    mutating func beginGather() { kernel.gathered = [] }

    mutating func gather(_ arena: borrowing BufferArena, at offset: Int, count: Int) {
        kernel.gathered += kernel.lookedAtAgain(Sectors.copy(arena, offset, count), at: offset)
    }

    mutating func sendGathered(to socket: SocketHandle, more: Bool) -> Int {
        world.send(kernel.gathered, to: socket)
    }

    mutating func takePages(of file: FileHandle, filePosition: UInt64, count: Int) -> PageRun? {
        world.takePages(of: file, filePosition, count)
    }

    mutating func sendPages(
        _ pages: PageRun, to socket: SocketHandle, count: Int, more: Bool
    ) -> Int { world.sendPages(pages, count, to: socket) }

    mutating func endPages(_ pages: PageRun, unsent: Int) { world.endPages(pages) }

    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64
    ) -> (isData: Bool, end: UInt64) {
        world.allocation(FileHandle(source.raw), position, end)
    }

    mutating func allocation(
        of source: RawSource, at position: UInt64, end: UInt64, endsHole: Bool, ahead: Bool,
        map: inout AllocationMap
    ) -> AllocationRun {
        let known = world.allocation(FileHandle(source.raw), position, end)
        return AllocationRun(isData: known.isData, end: known.end, lookups: 1)
    }

    mutating func isUncached(_ file: FileHandle, _ range: Range<UInt64>) -> Bool {
        world.draw.chance(30)
    }

    mutating func writeError(_ witness: FileHandle) -> Int32? { world.writeError(witness) }

    // MARK: Sockets

    mutating func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle? {
        try world.accept(listener)
    }

    mutating func address(of socket: SocketHandle) -> PeerAddress? { nil }

    mutating func welcome(_ socket: SocketHandle, isUnix: Bool) -> LocalPeer? {
        isUnix ? LocalPeer(user: 0, group: 0) : nil
    }

    mutating func hasHungUp(_ socket: SocketHandle) -> Bool { world.hasHungUp(socket) }

    mutating func shutdown(_ socket: SocketHandle) { world.shutdown(socket) }

    mutating func close(_ socket: SocketHandle) { world.close(socket) }

    // MARK: Time

    mutating func now() -> UInt64 { world.now }

    mutating func takeTick() {}

    // MARK: Others

    mutating func takeMessages() -> [RingMessage] { world.takeMessages(kernel.ring) }

    mutating func start(_ work: RingWork) -> Bool { world.start(work, kernel.ring) }

    mutating func revokeWrites(to export: BackupExport) -> ScratchTicket? {
        world.revokeWrites(to: export)
    }

    mutating func fileWorkers() -> UInt32? { Kernel.ownWorkers }

    mutating func setFileWorkers(_ count: UInt32, tag: UInt64) {
        kernel.prepare(KernelOperation(tag, .workers(count)))
    }
}
