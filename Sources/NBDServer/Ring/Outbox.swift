/// What a connection has to send.
struct Outbox {
    var replies = OutputQueue()
    /// The socket took no more: the ring is told when it does.
    var waitsForWritable = false
}

/// One run of the arena that waits to be sent, and the pages of a file that follow it.
struct OutputSegment {
    /// Next byte to send.
    var start: Int
    var end: Int
    /// Pages of a file, and the bytes of them not yet taken by the socket.
    var filePages: PageRun?
    var filePageBytes = 0
    /// The pages that hold it.
    let buffer: ArenaRun
    /// Further small replies may be added at the end.
    var isOpen: Bool

    /// Bytes not yet taken by the socket.
    var unsentBytes: Int { end - start + filePageBytes }

    /// Notes that the socket took bytes of it, but not all.
    mutating func advance(_ bytes: Int) {
        let inMemory = min(bytes, end - start)
        start += inMemory
        filePageBytes -= bytes - inMemory
    }
}

/// Replies in the order in which they leave; room for all that limits allow, allocated once.
struct OutputQueue {
    static let capacity = 512
    private var segments: [OutputSegment] = []
    private var head = 0
    private(set) var count = 0
    /// Bytes not yet taken by the socket.
    private(set) var unsentBytes = 0

    var isEmpty: Bool { count == 0 }

    private func index(_ position: Int) -> Int { (head + position) & (Self.capacity - 1) }

    subscript(_ position: Int) -> OutputSegment {
        get { segments[index(position)] }
        set { segments[index(position)] = newValue }
    }

    var last: OutputSegment? { count == 0 ? nil : segments[index(count - 1)] }

    mutating func append(_ segment: OutputSegment) {
        if segments.isEmpty {
            let empty = OutputSegment(
                start: 0, end: 0, buffer: ArenaRun(offset: 0, pages: 0), isOpen: false)
            segments = [OutputSegment](repeating: empty, count: Self.capacity)
        }
        precondition(count < Self.capacity, "limits allow no more replies than this")
        segments[index(count)] = segment
        count += 1
        unsentBytes += segment.unsentBytes
    }

    /// Adds bytes at the end of the last segment, which is open and has room.
    mutating func extendLast(by bytes: Int) {
        segments[index(count - 1)].end += bytes
        unsentBytes += bytes
    }

    /// Notes that the socket took bytes of the first segment, but not all.
    mutating func advance(_ bytes: Int) {
        segments[head].advance(bytes)
        unsentBytes -= bytes
    }

    mutating func removeFirst() -> OutputSegment {
        let segment = segments[head]
        unsentBytes -= segment.unsentBytes
        head = (head + 1) & (Self.capacity - 1)
        count -= 1
        return segment
    }
}
