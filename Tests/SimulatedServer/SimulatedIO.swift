import Simulation
import System

@testable import Disk
@testable import IORing
@testable import NBDServer

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
    ) {
        let stamps = Sectors.stamps(arena.bytes(offset, count: count))
        kernel.prepare(
            KernelOperation(
                tag, .write(file, position: filePosition, stamps, durable: durable)))
    }

    mutating func prepareAllocate(
        _ file: FileHandle, mode: AllocationMode, filePosition: UInt64, count: UInt64, tag: UInt64
    ) {
        kernel.prepare(
            KernelOperation(tag, .allocate(file, position: filePosition, count: count)))
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

    mutating func submit(waiting: Bool) { kernel.submit() }

    var completionCount: Int { kernel.ready.count }

    mutating func drain(into completions: inout [Completion], _ arena: inout BufferArena) {
        completions.removeAll(keepingCapacity: true)
        let count = min(kernel.ready.count, completions.capacity)
        for operation in kernel.ready.prefix(count) {
            Sectors.store(operation.bytes, in: &arena, at: operation.arenaOffset)
            completions.append(Completion(tag: operation.tag, result: operation.result))
        }
        kernel.ready.removeFirst(count)
    }

    // MARK: At once

    mutating func readNow(
        _ file: FileHandle, into arena: inout BufferArena, at offset: Int, count: Int,
        filePosition: UInt64, mayWait: Bool
    ) -> Int {
        let bytes = world.readNow(file, filePosition, count, mayWait: mayWait)
        guard let bytes else { return -Int(Errno.again) }
        Sectors.store(bytes, in: &arena, at: offset)
        return bytes.count
    }

    mutating func writeNow(
        _ file: FileHandle, from arena: borrowing BufferArena, at offset: Int, count: Int,
        filePosition: UInt64
    ) -> Int {
        world.writeNow(file, filePosition, Sectors.stamps(arena.bytes(offset, count: count)))
    }

    mutating func beginGather() { kernel.gathered = [] }

    mutating func gather(_ arena: borrowing BufferArena, at offset: Int, count: Int) {
        let bytes = arena.bytes(offset, count: count)
        for index in bytes.indices { kernel.gathered.append(bytes[index]) }
    }

    mutating func sendGathered(to socket: SocketHandle, more: Bool) -> Int {
        world.send(kernel.gathered, to: socket)
    }

    mutating func takePages(of file: FileHandle, filePosition: UInt64, count: Int) -> PageRun? {
        nil
    }

    mutating func sendPages(
        _ pages: PageRun, to socket: SocketHandle, count: Int, more: Bool
    ) -> Int { -Int(Errno.io) }

    mutating func endPages(_ pages: PageRun, unsent: Int) {}

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

    mutating func isUncached(_ file: FileHandle, _ range: Range<UInt64>) -> Bool { false }

    mutating func writeError(_ witness: FileHandle) -> Int32? { world.writeError(witness) }

    mutating func accept(_ listener: ListenerHandle) throws(SystemFault) -> SocketHandle? { nil }

    mutating func address(of socket: SocketHandle) -> PeerAddress? { nil }

    mutating func welcome(_ socket: SocketHandle, isUnix: Bool) -> LocalPeer? { nil }

    mutating func hasHungUp(_ socket: SocketHandle) -> Bool { world.hasHungUp(socket) }

    mutating func shutdown(_ socket: SocketHandle) { world.shutdown(socket) }

    mutating func close(_ socket: SocketHandle) { world.close(socket) }

    // MARK: Time

    mutating func now() -> UInt64 { world.now }

    // MARK: Others

    mutating func takeMessages() -> [RingMessage] { world.takeMessages(kernel.ring) }

    mutating func takeTick() {}

    mutating func start(_ work: RingWork) -> Bool { world.start(work, kernel.ring) }

    mutating func revokeWrites(to export: BackupExport) -> ScratchTicket? {
        world.revokeWrites(to: export)
    }

    mutating func fileWorkers() -> UInt32? { nil }

    mutating func setFileWorkers(_ count: UInt32, tag: UInt64) {
        kernel.prepare(KernelOperation(tag, .nothing))
    }
}

/// Content as bytes: a sector is its stamp again and again.
enum Sectors {
    static let bytes = 512

    static func bytes(of stamps: some Collection<Stamp>) -> [UInt8] {
        var all: [UInt8] = []
        all.reserveCapacity(stamps.count * bytes)
        for stamp in stamps {
            let four = (0..<4).map { UInt8(truncatingIfNeeded: stamp >> UInt32(8 * $0)) }
            for _ in 0..<bytes / 4 { all += four }
        }
        return all
    }

    /// The sectors' stamps; a sector that is not one stamp throughout is garbage.
    static func stamps(_ bytes: Span<UInt8>) -> [Stamp] {
        stamps(count: bytes.count) { bytes[$0] }
    }

    static func stamps(_ bytes: [UInt8]) -> [Stamp] {
        stamps(count: bytes.count) { bytes[$0] }
    }

    private static func stamps(count: Int, _ byte: (Int) -> UInt8) -> [Stamp] {
        func word(_ at: Int) -> Stamp {
            (0..<4).reduce(0) { $0 | Stamp(byte(at + $1)) << Stamp(8 * $1) }
        }
        return stride(from: 0, to: count / bytes * bytes, by: bytes).map { start in
            let stamp = word(start)
            let isWhole = [124, 252, 380, 508].allSatisfy { word(start + $0) == stamp }
            return isWhole ? stamp : .garbage
        }
    }

    static func store(_ bytes: [UInt8], in arena: inout BufferArena, at offset: Int) {
        guard !bytes.isEmpty else { return }
        var span = arena.mutableBytes(offset, count: bytes.count)
        for index in bytes.indices {
            span.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
        }
    }
}
