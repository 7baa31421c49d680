import Glibc
import IORing
import SharedMemory
import SystemLayer
import VhostClient

/// A range of memory that a guest shares, where the server has mapped it.
struct GuestRange {
    let address: UInt64
    let byteCount: Int
}

/// What a write looks at when it takes effect.
enum WrittenBytes {
    case arena(LentBytes)
    case guest([GuestRange])
}

/// The kernel's way to memory that guests share: by the calls that production has for it.
final class GuestBytes {
    private var arena: BufferArena
    private var table: VectorTable

    init() throws(SystemFault) {
        arena = try BufferArena(capacityBytes: 256 << 10)
        table = try VectorTable(lanes: 1)
    }

    private func lane(_ ranges: [GuestRange]) -> Int {
        guard let lane = table.take() else { preconditionFailure("one at a time") }
        for range in ranges {
            table.append(lane, address: range.address, byteCount: range.byteCount)
        }
        return lane
    }

    /// What the ranges hold now.
    func load(_ ranges: [GuestRange]) -> [UInt8] {
        let lane = lane(ranges)
        defer { table.giveBack(lane) }
        let count = table.byteCount(lane)
        let got = FileCalls.copy(from: table, lane: lane, to: arena, at: 0, count: count)
        return arena.lend(0, count: max(got, 0)).copy()
    }

    /// Stores bytes from so many bytes of the ranges on.
    func store(_ bytes: ArraySlice<UInt8>, in ranges: [GuestRange], from start: Int) {
        guard !bytes.isEmpty else { return }
        let lane = lane(ranges)
        defer { table.giveBack(lane) }
        table.advance(lane, by: start)
        Sectors.store(Array(bytes), in: &arena, at: 0)
        _ = FileCalls.copy(from: arena, at: 0, count: bytes.count, to: table, lane: lane)
    }
}

/// A file in memory that a front-end and the server share.
final class SharedFile {
    let byteCount: UInt64
    private let file: OwnedDescriptor

    /// A new one, of zeros.
    init(byteCount: UInt64) throws(SystemFault) {
        self.byteCount = byteCount
        file = try FixedMemory.make(byteCount: byteCount)
    }

    /// One that the server has made; its descriptor is taken over.
    init(adopting raw: Int32, byteCount: UInt64) {
        self.byteCount = byteCount
        file = OwnedDescriptor(adopting: raw)
    }

    /// Another descriptor of it.
    var another: Int32 { dup(file.raw) }

    func read(_ position: UInt64, _ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        // SAFETY: the array is passed with its size.
        let got = unsafe pread(file.raw, &bytes, count, off_t(position))
        precondition(got == count, "a machine looks at its own memory")
        return bytes
    }

    func write(_ bytes: [UInt8], _ position: UInt64) {
        // SAFETY: the array is passed with its size.
        let got = unsafe pwrite(file.raw, bytes, bytes.count, off_t(position))
        precondition(got == bytes.count, "a machine writes to its own memory")
    }
}

/// A machine's memory as its driver sees it.
final class MachineMemory: DriverMemory {
    static let byteCount: UInt64 = 2 << 20
    let file: SharedFile

    init() throws(SystemFault) { file = try SharedFile(byteCount: Self.byteCount) }

    func read(_ address: UInt64, _ count: Int) -> [UInt8] { file.read(address, count) }
    func write(_ bytes: [UInt8], _ address: UInt64) { file.write(bytes, address) }
    /// The machine and the rings have turns on one thread.
    func fence() {}
}
