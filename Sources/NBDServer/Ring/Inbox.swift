/// What a connection has received and not parsed yet.
struct Inbox {
    /// What is being received.
    enum Receiving: Equatable {
        case nothing
        /// Messages, into the buffer.
        case input
        /// The rest of a write's payload, straight into its piece.
        case payload(PieceIndex)
        /// The stream has ended: nothing more is received.
        case ended
    }

    /// Arena offset of the buffer, `Limits.inputBytes` long.
    let buffer: Int
    /// Unparsed bytes, counted from the buffer's start.
    private(set) var start = 0
    private(set) var end = 0
    var receiving = Receiving.nothing

    init(buffer: Int) { self.buffer = buffer }

    /// Unparsed bytes.
    var count: Int { end - start }
    /// Arena offset of the first of them.
    var first: Int { buffer + start }
    /// Arena offset of what is received next, and how many bytes have room there.
    var free: Int { buffer + end }
    var freeBytes: Int { Limits.inputBytes - end }

    var isReceiving: Bool {
        switch receiving {
        case .input, .payload: true
        case .nothing, .ended: false
        }
    }

    /// Bytes were received behind the unparsed ones.
    mutating func append(_ bytes: Int) { end += bytes }

    /// Unparsed bytes were parsed.
    mutating func consume(_ bytes: Int) { start += bytes }

    /// The unparsed bytes were moved to the buffer's start.
    mutating func moveToStart() {
        end -= start
        start = 0
    }
}
