// Memory that is shared with a guest, as the code sees it that must not trust it. These types are
// public and inlinable, as are the queue's: the compiler hands bodies of `package` functions to no
// other module.

/// A place in shared memory whose bytes may be touched: the memory has made it, or it was advanced
/// within what the memory had checked.
@frozen
public struct GuestPlace: Equatable, Sendable, BitwiseCopyable {
    /// What it is to the memory: an address of this process, or a number in a test.
    public let rawValue: UInt64
    /// A place that the memory knows by `rawValue`.
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The place so many bytes behind this one.
    @inlinable public func advanced(by byteCount: UInt64) -> GuestPlace {
        GuestPlace(rawValue: rawValue &+ byteCount)
    }
}

/// Bytes of a request that lie in one piece: an entry of an iovec.
@frozen
public struct GuestSegment: Equatable, Sendable, BitwiseCopyable {
    /// The first byte.
    public var place: GuestPlace
    /// How many there are; more than none.
    public var byteCount: UInt64
    /// A segment of so many bytes.
    @inlinable public init(place: GuestPlace, byteCount: UInt64) {
        self.place = place
        self.byteCount = byteCount
    }
}

/// Memory that a guest shares, and changes at any moment.
///
/// Every load reads once: what it returns is what is checked and used. Loads have acquire order and
/// stores release order, and the compiler keeps all of them in their order. Integers are
/// little-endian.
public protocol GuestMemory: ~Copyable {
    /// The leading bytes of `byteCount` at a guest's address that lie in one piece: at least one
    /// and at most all of them; nil when the first byte is in no region.
    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment?

    /// One byte.
    func load8(_ place: GuestPlace) -> UInt8
    /// Two bytes; the place is aligned.
    func load16(_ place: GuestPlace) -> UInt16
    /// Sixteen bytes as two words, of any alignment; only here each byte may be read in any order.
    func loadPair(_ place: GuestPlace) -> GuestWords
    /// Eight bytes; the place is aligned.
    func load64(_ place: GuestPlace) -> UInt64

    /// One byte.
    func store8(_ value: UInt8, _ place: GuestPlace)
    /// Two bytes; the place is aligned.
    func store16(_ value: UInt16, _ place: GuestPlace)
    /// Four bytes; the place is aligned.
    func store32(_ value: UInt32, _ place: GuestPlace)
    /// Eight bytes; the place is aligned.
    func store64(_ value: UInt64, _ place: GuestPlace)

    /// What was stored before is seen by all before anything is loaded after.
    func fence()
}

/// Sixteen bytes: a descriptor, or the header of a request.
@frozen
public struct GuestWords: Equatable, Sendable, BitwiseCopyable {
    /// The first eight.
    public let first: UInt64
    /// The others.
    public let second: UInt64
    /// Two words.
    @inlinable public init(first: UInt64, second: UInt64) {
        self.first = first
        self.second = second
    }
}
