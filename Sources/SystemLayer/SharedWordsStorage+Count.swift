package import Tables

/// What the words of an array are, looked at before anybody else has a view.
///
/// Blocks whose words ascend one by one are told by one comparison for each word: neighbouring
/// clusters that were preserved one after the other have neighbouring slots. The words of other
/// blocks are counted several at a time.
extension SharedWordsStorage {
    private static let blockWords = 1024

    /// Counts what a run of words holds, and adds it.
    package func count(_ range: Range<Int>, into tally: inout WordTally) {
        // Counters as wide as the words.
        precondition(range.count <= Int(UInt32.max))
        var lanes = WordLanes()
        // SAFETY: a block is looked at during the call that hands it out only.
        unsafe forBlocks(of: range) { block in
            if let first = unsafe Self.firstOfAscending(block) {
                tally.add(ascendingFrom: first, count: block.count)
            } else {
                unsafe lanes.add(block, &tally)
            }
        }
        lanes.move(to: &tally)
    }

    /// Sets the bit of each slot that a run of words names, a word of 2 naming the first; slots
    /// beyond the bits are left out.
    package func mark(_ range: Range<Int>, in taken: inout [UInt64]) {
        let limit = taken.count * 64
        // SAFETY: a block is looked at during the call that hands it out only.
        unsafe forBlocks(of: range) { block in
            if let first = unsafe Self.firstOfAscending(block) {
                let slot = Int(first) - 2
                if slot + block.count <= limit {
                    Self.mark(slot..<slot + block.count, in: &taken)
                    return
                }
            }
            for index in 0..<block.count {
                let word = unsafe block[index]
                let slot = Int(word) - 2
                guard slot >= 0, slot < limit else { continue }
                taken[slot / 64] |= 1 << UInt64(slot % 64)
            }
        }
    }

    private static func mark(_ slots: Range<Int>, in taken: inout [UInt64]) {
        var slot = slots.lowerBound
        while slot < slots.upperBound {
            let bit = slot % 64
            let count = min(64 - bit, slots.upperBound - slot)
            taken[slot / 64] |= (UInt64.max >> UInt64(64 - count)) << UInt64(bit)
            slot += count
        }
    }

    @inline(__always)
    private func forBlocks(of range: Range<Int>, _ body: (UnsafeBufferPointer<UInt32>) -> Void) {
        precondition(range.lowerBound >= 0 && range.upperBound <= view.count)
        var first = range.lowerBound
        while first < range.upperBound {
            let count = min(Self.blockWords, range.upperBound - first)
            // SAFETY: the range lies in the mapping, and nobody stores in it meanwhile.
            unsafe body(
                UnsafeBufferPointer(
                    start: UnsafePointer(bitPattern: address + UInt(first * 4)), count: count))
            first += count
        }
    }

    /// The first of words that name slots and ascend one by one; nil when they do not.
    @inline(__always)
    private static func firstOfAscending(_ block: UnsafeBufferPointer<UInt32>) -> UInt32? {
        let count = UInt32(truncatingIfNeeded: block.count)
        // SAFETY: the block has words, and all that are looked at lie in it.
        let first = unsafe block[0]
        let last = unsafe block[block.count - 1]
        guard first >= 2, first <= .max - count, last == first + (count - 1) else { return nil }
        var difference: UInt32 = 0
        for index in 0..<block.count {
            difference |= unsafe block[index] ^ (first &+ UInt32(truncatingIfNeeded: index))
        }
        return difference == 0 ? first : nil
    }
}

/// Counters and sums of words, four at a time.
private struct WordLanes {
    private typealias Words = SIMD4<UInt32>
    private var zeros = Words()
    private var ones = Words()
    private var full = Words()
    /// Above the least number, so that a comparison of signed numbers finds the largest.
    private var largest = SIMD4<Int32>(repeating: .min)
    /// Of all words but full ones, as they are.
    private var sum = SIMD2<UInt64>()
    private var squares = SIMD2<UInt64>()
    private var count = 0

    @inline(__always)
    mutating func add(_ block: UnsafeBufferPointer<UInt32>, _ tally: inout WordTally) {
        let start = unsafe UnsafeRawPointer(block.baseAddress)
        let whole = block.count / 4
        if let start = unsafe start {
            // SAFETY: so many words lie in the block.
            for index in 0..<whole {
                add(unsafe start.loadUnaligned(fromByteOffset: index &* 16, as: Words.self))
            }
        }
        count += whole * 4
        for index in whole * 4..<block.count { tally.add(unsafe block[index]) }
    }

    @inline(__always)
    private mutating func add(_ words: Words) {
        let isFull = words .== Words(repeating: .max)
        zeros.replace(with: zeros &+ 1, where: words .== Words())
        ones.replace(with: ones &+ 1, where: words .== Words(repeating: 1))
        full.replace(with: full &+ 1, where: isFull)
        let kept = words.replacing(with: 0, where: isFull)
        let shifted = SIMD4<Int32>(truncatingIfNeeded: kept ^ Words(repeating: 1 << 31))
        largest.replace(with: shifted, where: shifted .> largest)
        let even = SIMD2<UInt64>(truncatingIfNeeded: kept.evenHalf)
        let odd = SIMD2<UInt64>(truncatingIfNeeded: kept.oddHalf)
        sum = sum &+ even &+ odd
        squares = squares &+ even &* even &+ odd &* odd
    }

    /// Adds what was counted.
    func move(to tally: inout WordTally) {
        var counted = WordTally()
        counted.zeros = Int(zeros.wrappedSum())
        counted.ones = Int(ones.wrappedSum())
        counted.full = Int(full.wrappedSum())
        let others = count - counted.zeros - counted.ones - counted.full
        counted.others = others
        counted.largest = UInt32(bitPattern: largest.max()) ^ 1 << 31
        // Of x - 2 instead of x, and without the words that are 1.
        let named = sum.wrappedSum() &- UInt64(counted.ones)
        counted.sum = named &- 2 &* UInt64(others)
        counted.squares =
            squares.wrappedSum() &- UInt64(counted.ones) &- 4 &* named &+ 4 &* UInt64(others)
        tally.add(counted)
    }
}
