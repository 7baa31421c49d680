import Glibc
package import SystemLayer

/// The pages of one ring: every buffer that the kernel reads from or writes to lies here.
///
/// Space is handed out in runs of 4 KiB pages, lowest address first, so that on warm data the same
/// few pages are used over and over and stay in the cache. Addresses are byte offsets into the
/// arena; only this module turns them into pointers. Memory is reserved, not committed: a page
/// costs nothing before its first use.
@safe
package struct BufferArena: ~Copyable {
    /// Unit of allocation, and the alignment of every run, in bytes.
    package static let pageBytes = 4096

    /// Bytes that can be handed out.
    package let capacityBytes: Int
    let base: UnsafeMutableRawPointer
    /// One bit a page; set = in use.
    private var used: [UInt64]
    /// Words below this one are known to be full.
    private var firstOpenWord = 0
    /// Behind the last page that may have memory, and behind the last that was taken since `trim`.
    private var touchedEnd = 0
    private var takenEnd = 0
    /// From here on pages go back.
    private var trimEnd = 0

    /// Reserves an arena of at least the given size.
    package init(capacityBytes: Int) throws(SystemFault) {
        let words = (capacityBytes + Self.pageBytes * 64 - 1) / (Self.pageBytes * 64)
        self.capacityBytes = words * 64 * Self.pageBytes
        // SAFETY: an anonymous mapping of our own; unmapped in deinit.
        let memory = unsafe mmap(
            nil, self.capacityBytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw SystemFault(call: "mmap", errno: errno)
        }
        unsafe base = memory
        used = [UInt64](repeating: 0, count: words)
    }

    deinit {
        // SAFETY: base..capacity is the mapping made in init; the ring is gone before its arena.
        unsafe munmap(base, capacityBytes)
    }

    /// Takes a run of neighbouring pages and returns its byte offset, or nil when none is free.
    package mutating func allocate(pages: Int) -> Int? {
        precondition(pages > 0)
        while firstOpenWord < used.count, used[firstOpenWord] == .max { firstOpenWord += 1 }
        var runStart = 0
        var runLength = 0
        var page = firstOpenWord * 64
        let end = used.count * 64
        while page < end {
            let rest = used[page >> 6] >> UInt64(page & 63)
            let left = 64 - (page & 63)
            let open = min(rest.trailingZeroBitCount, left)
            if open > 0 {
                if runLength == 0 { runStart = page }
                runLength += open
                if runLength >= pages {
                    mark(runStart, pages, true)
                    return runStart * Self.pageBytes
                }
                page += open
                if open == left { continue }
            }
            runLength = 0
            page += min((~(rest >> UInt64(open))).trailingZeroBitCount, left - open)
        }
        return nil
    }

    /// Gives a run back; `offset` and `pages` are those of the allocation.
    package mutating func free(_ offset: Int, pages: Int) {
        precondition(offset % Self.pageBytes == 0 && offset >= 0 && pages > 0)
        mark(offset / Self.pageBytes, pages, false)
        firstOpenWord = min(firstOpenWord, offset / Self.pageBytes / 64)
    }

    /// Pages given back by one call: 16 MiB take the kernel about a millisecond, and the ring waits.
    package static let trimPages = (16 << 20) / pageBytes

    /// Begins to give the memory back of the last pages that nobody has had since this was called
    /// the last time; `goOnTrimming` gives back what is left.
    ///
    /// They are zero when they are taken again.
    package mutating func trim() {
        touchedEnd = max(touchedEnd, takenEnd)
        trimEnd = takenEnd
        var word = min((takenEnd + 63) / 64, used.count)
        while word > 0, used[word - 1] == 0 { word -= 1 }
        takenEnd = word * 64
        goOnTrimming()
    }

    /// Gives back at most `trimPages` of what `trim` has begun to give back, the last ones first.
    package mutating func goOnTrimming() {
        // Some may have been taken since.
        let start = max(trimEnd, takenEnd, touchedEnd - Self.trimPages)
        guard start < touchedEnd else { return }
        // SAFETY: pages of our own mapping, which nobody has.
        unsafe _ = madvise(
            base + start * Self.pageBytes, (touchedEnd - start) * Self.pageBytes, MADV_DONTNEED)
        touchedEnd = start
    }

    /// Pages that may have memory; for tests and statistics.
    package var touchedPages: Int { max(touchedEnd, takenEnd) }

    /// Pages handed out now; for tests and statistics.
    package var usedPages: Int { used.reduce(0) { $0 + $1.nonzeroBitCount } }

    private mutating func mark(_ first: Int, _ count: Int, _ value: Bool) {
        if value { takenEnd = max(takenEnd, first + count) }
        var page = first
        var left = count
        while left > 0 {
            let bit = page & 63
            let step = min(left, 64 - bit)
            let mask = (step == 64 ? UInt64.max : (UInt64(1) << UInt64(step)) - 1) << UInt64(bit)
            if value {
                precondition(used[page >> 6] & mask == 0, "page handed out twice")
                used[page >> 6] |= mask
            } else {
                precondition(used[page >> 6] & mask == mask, "page freed twice")
                used[page >> 6] &= ~mask
            }
            page += step
            left -= step
        }
    }

    func pointer(_ offset: Int, _ count: Int) -> UnsafeMutableRawPointer {
        precondition(offset >= 0 && count >= 0 && offset + count <= capacityBytes)
        // SAFETY: the range was just checked against the mapping.
        return unsafe base + offset
    }

    /// The bytes of a range, for reading.
    @_lifetime(borrow self)
    package borrowing func bytes(_ offset: Int, count: Int) -> Span<UInt8> {
        // SAFETY: pointer() checks the range; the span cannot outlive this borrow of the arena.
        let start = unsafe pointer(offset, count).assumingMemoryBound(to: UInt8.self)
        let span = unsafe Span(_unsafeStart: start, count: count)
        return unsafe _overrideLifetime(span, borrowing: self)
    }

    /// The bytes of a range, for writing.
    @_lifetime(&self)
    package mutating func mutableBytes(_ offset: Int, count: Int) -> MutableRawSpan {
        // SAFETY: pointer() checks the range; the span cannot outlive this exclusive access to the
        // arena.
        let start = unsafe pointer(offset, count)
        let span = unsafe MutableRawSpan(_unsafeStart: start, byteCount: count)
        return unsafe _overrideLifetime(span, mutating: &self)
    }

    /// Lends one range for reading and another for writing; they must not overlap.
    package mutating func transfer<Value>(
        from source: Range<Int>, to target: Range<Int>,
        _ body: (Span<UInt8>, inout MutableRawSpan) -> Value
    ) -> Value {
        precondition(!source.overlaps(target), "one range is read while the other is written")
        let first = unsafe pointer(source.lowerBound, source.count)
        let second = unsafe pointer(target.lowerBound, target.count)
        // SAFETY: pointer() checks both ranges, which are apart; the spans end with the call,
        // during which nobody else has the arena.
        let input = unsafe Span(
            _unsafeStart: first.assumingMemoryBound(to: UInt8.self), count: source.count)
        var output = unsafe MutableRawSpan(_unsafeStart: second, byteCount: target.count)
        return body(input, &output)
    }

    /// Copies bytes within the arena; the ranges may overlap.
    package mutating func copy(from source: Int, to target: Int, count: Int) {
        // SAFETY: both ranges are checked by pointer(); memmove allows overlap.
        unsafe _ = memmove(pointer(target, count), pointer(source, count), count)
    }

    /// Copies bytes of others into the arena.
    package mutating func copy(_ bytes: Span<UInt8>, to target: Int) {
        // SAFETY: pointer() checks the range; the span lives during the call.
        unsafe bytes.withUnsafeBufferPointer { source in
            guard let start = source.baseAddress else { return }
            unsafe _ = memcpy(pointer(target, source.count), start, source.count)
        }
    }

    /// Sets a range to zeros.
    package mutating func zero(_ offset: Int, count: Int) {
        // SAFETY: the range is checked by pointer().
        unsafe _ = memset(pointer(offset, count), 0, count)
    }

    /// Whether every byte of a range is zero.
    ///
    /// Stops at the first 64 bytes that are not.
    package func isZero(_ offset: Int, count: Int) -> Bool {
        let start = unsafe pointer(offset, count)
        var position = 0
        // SAFETY: every load lies within the range that pointer() checked; loadUnaligned needs no
        // alignment.
        while position + 64 <= count {
            let block = unsafe start.loadUnaligned(
                fromByteOffset: position, as: SIMD8<UInt64>.self)
            if block != SIMD8<UInt64>() { return false }
            position += 64
        }
        while position < count {
            if unsafe start.load(fromByteOffset: position, as: UInt8.self) != 0 { return false }
            position += 1
        }
        return true
    }
}
