/// Which pages of a shared area are in use.
///
/// The lowest run that is long enough is taken, so that what is rarely needed is rarely touched.
struct PageRuns {
    static let pageBytes = 4096
    /// A bit for each page: in use.
    private var words: [UInt64]
    /// Pages up to the highest that was in use since `lower`.
    private(set) var high = 0
    private(set) var inUse = 0

    /// For so many pages, a multiple of 64.
    init(pages: Int) { words = Array(repeating: 0, count: pages / 64) }

    /// Pages that so many bytes take.
    static func pages(for bytes: Int) -> Int { (bytes + pageBytes - 1) / pageBytes }

    /// Takes a run of at least one page; its first page, nil: there is none so long.
    mutating func take(_ pages: Int) -> Int? {
        let count = words.count * 64
        var page = 0
        while page + pages <= count {
            let taken = (~(words[page / 64] >> UInt64(page % 64))).trailingZeroBitCount
            if taken > 0 {
                page += min(taken, 64 - page % 64)
                continue
            }
            let length = freeLength(from: page, upTo: pages)
            if length >= pages {
                mark(page, pages, inUse: true)
                high = max(high, page + pages)
                inUse += pages
                return page
            }
            page += length
        }
        return nil
    }

    /// Gives a run back that was taken.
    mutating func give(_ page: Int, _ pages: Int) {
        mark(page, pages, inUse: false)
        inUse -= pages
    }

    /// Nothing behind so many pages is remembered as having been in use; nothing may be.
    mutating func lower(to pages: Int) { high = min(high, pages) }

    private func freeLength(from page: Int, upTo most: Int) -> Int {
        var length = 0
        while length < most {
            let place = page + length
            let room = 64 - place % 64
            let word = words[place / 64] >> UInt64(place % 64)
            guard word == 0 else { return length + word.trailingZeroBitCount }
            length += room
        }
        return length
    }

    private mutating func mark(_ page: Int, _ pages: Int, inUse: Bool) {
        var place = page
        let end = page + pages
        while place < end {
            let bits = min(64 - place % 64, end - place)
            let mask = (bits == 64 ? UInt64.max : (1 << UInt64(bits)) - 1) << UInt64(place % 64)
            if inUse { words[place / 64] |= mask } else { words[place / 64] &= ~mask }
            place += bits
        }
    }
}
