// Access to memory that a guest shares and that must not be trusted. These types and the queue's
// are public and inlinable because the compiler does not specialise `package` functions across
// modules.

/// A checked place in shared memory: made by a `GuestMemory`, or advanced within a range it
/// returned.
@frozen
public struct GuestPlace: Equatable, Sendable, BitwiseCopyable {
    /// An address of this process; in tests, any number.
    public let rawValue: UInt64
    /// A place for `GuestMemory` implementations to hand out.
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The place `byteCount` bytes further on.
    @inlinable public func advanced(by byteCount: UInt64) -> GuestPlace {
        GuestPlace(rawValue: rawValue &+ byteCount)
    }
}

/// A contiguous part of a request's buffer: one iovec entry.
@frozen
public struct GuestSegment: Equatable, Sendable, BitwiseCopyable {
    /// The first byte.
    public var place: GuestPlace
    /// Number of bytes; not zero.
    public var byteCount: UInt64
    /// A segment at `place`.
    @inlinable public init(place: GuestPlace, byteCount: UInt64) {
        self.place = place
        self.byteCount = byteCount
    }
}

/// Memory that a guest shares and may change at any moment.
///
/// Each load reads memory exactly once, and callers check and use only the value returned. Loads
/// have acquire and stores release ordering. Integers are little-endian.
public protocol GuestMemory: ~Copyable {
    /// The longest contiguous prefix of the range, at least one byte; nil if the first byte is in
    /// no region.
    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment?

    /// One byte.
    func load8(_ place: GuestPlace) -> UInt8
    /// Two bytes; the place is aligned.
    func load16(_ place: GuestPlace) -> UInt16
    /// Sixteen bytes at any alignment, each read once, in any order.
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

    /// A full fence: orders earlier stores before later loads.
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
