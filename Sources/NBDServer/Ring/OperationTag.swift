/// What a completion belongs to.
enum OperationKind: UInt8 {
    case mailbox = 1
    case clock
    case accept
    case receive
    case writable
    case piece
    case copyRead
    /// Nobody waits for the result (a prefetch, a cancel).
    case ignored
}

/// The 64 bits that travel with an operation through the kernel.
///
/// `slot` is a slot number in the table of the kind, `detail` a number within it.
struct OperationTag {
    var kind: OperationKind
    var slot: Int
    var detail: Int = 0

    var raw: UInt64 {
        UInt64(kind.rawValue) << 56 | UInt64(detail) << 32 | UInt64(slot)
    }

    init(_ kind: OperationKind, slot: Int = 0, detail: Int = 0) {
        self.kind = kind
        self.slot = slot
        self.detail = detail
    }

    init(raw: UInt64) {
        guard let kind = OperationKind(rawValue: UInt8(raw >> 56)) else {
            preconditionFailure("a completion that was never submitted")
        }
        self.kind = kind
        detail = Int(raw >> 32 & 0xFF_FFFF)
        slot = Int(raw & 0xFFFF_FFFF)
    }
}
