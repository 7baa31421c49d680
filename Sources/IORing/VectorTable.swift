import CLibURing
import CLinux
import Glibc
package import SystemLayer

/// Lists of ranges of shared memory that operations read into or write from, one *lane* for each
/// operation.
///
/// Whoever appends a range vouches for it: it lies in a mapping that stays until the operation that
/// uses the lane has ended. Nothing is allocated after `init`, and a lane costs memory only once it
/// is used.
@safe
package struct VectorTable: ~Copyable {
    /// Ranges that fit in a lane.
    package static let laneCapacity = 128

    let vectors: UnsafeMutablePointer<iovec>
    private let mappedBytes: Int
    /// The first range of each lane that is left, counted from the lane's start, and the end.
    private var firsts: [Int32]
    private var ends: [Int32]
    private var open: [Int32]
    private let lanes: Int

    /// A table of so many lanes; ENOMEM.
    package init(lanes: Int) throws(SystemFault) {
        self.lanes = lanes
        mappedBytes = unsafe lanes * Self.laneCapacity * MemoryLayout<iovec>.stride
        // SAFETY: an anonymous mapping of our own, whose zero bytes are empty ranges; unmapped in
        // deinit.
        let memory = unsafe mmap(
            nil, mappedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
            -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        unsafe vectors = unsafe memory.bindMemory(
            to: iovec.self, capacity: lanes * Self.laneCapacity)
        firsts = [Int32](repeating: 0, count: lanes)
        ends = [Int32](repeating: 0, count: lanes)
        // The lowest are handed out first: they stay warm in the cache.
        open = (0..<Int32(lanes)).reversed()
    }

    deinit {
        // SAFETY: the mapping made in init; no operation uses a lane any more.
        unsafe munmap(vectors, mappedBytes)
    }

    /// Lanes that nobody uses.
    package var openLanes: Int { open.count }

    /// Takes an empty lane; nil when there is none.
    package mutating func take() -> Int? {
        guard let lane = open.popLast() else { return nil }
        firsts[Int(lane)] = 0
        ends[Int(lane)] = 0
        return Int(lane)
    }

    /// Gives a lane back.
    package mutating func giveBack(_ lane: Int) { open.append(Int32(lane)) }

    /// Whether no range fits any more.
    package func isFull(_ lane: Int) -> Bool { Int(ends[lane]) == Self.laneCapacity }

    /// Ranges that are left in a lane.
    package func count(_ lane: Int) -> Int { Int(ends[lane] - firsts[lane]) }

    /// Bytes of the ranges that are left in a lane.
    package func byteCount(_ lane: Int) -> Int {
        var count = 0
        for index in Int(firsts[lane])..<Int(ends[lane]) {
            // SAFETY: the place lies within the table.
            count += unsafe vectors[lane * Self.laneCapacity + index].iov_len
        }
        return count
    }

    /// Adds a range to a lane that is not full.
    package mutating func append(_ lane: Int, address: UInt64, byteCount: Int) {
        let end = Int(ends[lane])
        precondition(end < Self.laneCapacity, "a lane is asked before it is full")
        // SAFETY: the place lies within the table; the range is the caller's word.
        unsafe vectors[lane * Self.laneCapacity + end] = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(bitPattern: UInt(address)), iov_len: byteCount)
        ends[lane] += 1
    }

    /// Takes bytes off the front of a lane: they have been moved.
    package mutating func advance(_ lane: Int, by byteCount: Int) {
        var left = byteCount
        while left > 0, firsts[lane] < ends[lane] {
            let place = lane * Self.laneCapacity + Int(firsts[lane])
            // SAFETY: the place lies within the table, and the range it leaves within the old one.
            let length = unsafe vectors[place].iov_len
            guard left < length else {
                left -= length
                firsts[lane] += 1
                continue
            }
            unsafe vectors[place] = unsafe iovec(
                iov_base: vectors[place].iov_base + left, iov_len: length - left)
            left = 0
        }
    }

    /// Addresses and sizes of the ranges that are left in a lane, for a world without a kernel.
    package func ranges(_ lane: Int) -> [(address: UInt64, byteCount: Int)] {
        (Int(firsts[lane])..<Int(ends[lane])).map { index in
            // SAFETY: the place lies within the table.
            let vector = unsafe vectors[lane * Self.laneCapacity + index]
            return unsafe (UInt64(UInt(bitPattern: vector.iov_base)), Int(vector.iov_len))
        }
    }

    /// Whether every range of a lane begins and ends at a multiple of `alignment`, a power of two.
    package func isAligned(_ lane: Int, to alignment: Int) -> Bool {
        for index in Int(firsts[lane])..<Int(ends[lane]) {
            // SAFETY: the place lies within the table.
            let vector = unsafe vectors[lane * Self.laneCapacity + index]
            let bits = unsafe UInt(bitPattern: vector.iov_base) | UInt(vector.iov_len)
            guard bits & UInt(alignment - 1) == 0 else { return false }
        }
        return true
    }

    /// The ranges that are left.
    @unsafe
    func list(_ lane: Int) -> UnsafeMutablePointer<iovec> {
        unsafe vectors + lane * Self.laneCapacity + Int(firsts[lane])
    }
}

/// Reads, writes and copies of the ring's own thread, from and to the lanes of a table.
extension FileCalls {
    /// Reads a file range into a lane's ranges at once, as `read(_:into:…)` does into an arena.
    package static func read(
        _ descriptor: Int32, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        mayWait: Bool
    ) -> Int {
        while true {
            // SAFETY: the list lies in the table; the kernel checks the ranges themselves.
            let result = unsafe preadv2(
                descriptor, table.list(lane), Int32(table.count(lane)), off_t(filePosition),
                mayWait ? 0 : nbdpull_RWF_NOWAIT)
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }

    /// Writes a lane's ranges to a file at once.
    package static func write(
        _ descriptor: Int32, from table: borrowing VectorTable, lane: Int, filePosition: UInt64
    ) -> Int {
        while true {
            // SAFETY: as for read.
            let result = unsafe pwritev(
                descriptor, table.list(lane), Int32(table.count(lane)), off_t(filePosition))
            if result >= 0 { return result }
            if errno != EINTR { return -Int(errno) }
        }
    }

    /// Copies `count` bytes of a lane's ranges into the arena; fewer, or the negative errno, when
    /// the memory has gone.
    package static func copy(
        from table: borrowing VectorTable, lane: Int, to arena: borrowing BufferArena,
        at offset: Int, count: Int
    ) -> Int {
        // SAFETY: pointer() checks the arena's range; the kernel checks the lane's.
        let result = unsafe nbdpull_copy_in(
            arena.pointer(offset, count), count, table.list(lane), UInt(table.count(lane)))
        return result >= 0 ? result : -Int(errno)
    }

    /// Copies `count` bytes of the arena into a lane's ranges.
    package static func copy(
        from arena: borrowing BufferArena, at offset: Int, count: Int,
        to table: borrowing VectorTable, lane: Int
    ) -> Int {
        // SAFETY: as above.
        let result = unsafe nbdpull_copy_out(
            table.list(lane), UInt(table.count(lane)), arena.pointer(offset, count), count)
        return result >= 0 ? result : -Int(errno)
    }
}

extension Ring {
    /// Reads a file range into a lane's ranges, which stay as they are until the completion.
    package mutating func prepareRead(
        _ descriptor: Int32, into table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: the list stays in the table until the lane is given back; the kernel checks the
        // ranges.
        unsafe io_uring_prep_readv(
            entry, descriptor, table.list(lane), UInt32(table.count(lane)), filePosition)
        unsafe entry.pointee.user_data = tag
    }

    /// Writes a lane's ranges to a file; `durable` as for an arena.
    package mutating func prepareWrite(
        _ descriptor: Int32, from table: borrowing VectorTable, lane: Int, filePosition: UInt64,
        durable: Bool, tag: UInt64
    ) {
        let entry = unsafe next()
        // SAFETY: as for prepareRead.
        unsafe io_uring_prep_writev(
            entry, descriptor, table.list(lane), UInt32(table.count(lane)), filePosition)
        if durable { unsafe entry.pointee.rw_flags = nbdpull_RWF_DSYNC }
        unsafe entry.pointee.user_data = tag
    }

    /// Takes the count of an eventfd, as soon as it is not zero.
    package mutating func prepareEventRead(_ descriptor: Int32, tag: UInt64) {
        let entry = unsafe next()
        // SAFETY: eight bytes at words live as long as the ring; nobody looks at what is read
        // there.
        unsafe io_uring_prep_read(entry, descriptor, words, 8, 0)
        unsafe entry.pointee.user_data = tag
    }
}
