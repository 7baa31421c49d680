/// What one connection may hold of what its ring has, so that none can take another's (promise P6).
///
/// Asked once a request and once an operation; nothing here is counted twice.
package struct ConnectionBudget: Sendable, Hashable, BitwiseCopyable {
    /// Requests that are begun and not yet answered.
    package let requests: Int
    /// Bytes of replies that the peer has not taken.
    package let unsentBytes: Int
    /// Replies that the peer has not taken.
    package let replies: Int
    /// Pages of buffers, for requests and replies.
    package let pages: Int

    @inlinable
    package init(requests: Int, unsentBytes: Int, replies: Int, pages: Int) {
        self.requests = requests
        self.unsentBytes = unsentBytes
        self.replies = replies
        self.pages = pages
    }

    /// What a connection holds that may begin another request.
    package struct Use: Sendable, Hashable, BitwiseCopyable {
        package var requests: Int
        package var unsentBytes: Int
        package var replies: Int

        @inlinable
        package init(requests: Int, unsentBytes: Int, replies: Int) {
            self.requests = requests
            self.unsentBytes = unsentBytes
            self.replies = replies
        }
    }

    /// Whether another request may be begun.
    package enum Permission: Sendable, Hashable {
        case granted
        /// The peer has replies to take first.
        case waitsForPeer
        /// Others have to give room back first.
        case waitsForRoom
    }

    /// The peer's own bounds come first: one that has to take replies does not wait for others'
    /// room, or it would be woken in vain.
    @inlinable
    package func permission(_ use: Use, isRingFull: Bool) -> Permission {
        guard use.requests < requests, use.unsentBytes < unsentBytes, use.replies < replies else {
            return .waitsForPeer
        }
        return isRingFull ? .waitsForRoom : .granted
    }

    /// Whether so many pages more may be taken by one that has `taken`.
    @inlinable
    package func allows(_ pages: Int, besides taken: Int) -> Bool { taken + pages <= self.pages }
}

/// What is kept of a table of operations for those that must get one for certain.
///
/// Reads and writes may take `data`; a request may begin below `begun`, which leaves room for its
/// flush or its reply; what lies above is for those that were admitted before. Of both, a peer has at
/// most as many as are left to others.
package struct OperationShares: Sendable, Hashable, BitwiseCopyable {
    package let data: Int
    package let begun: Int

    @inlinable
    package init(data: Int, begun: Int) {
        precondition(data <= begun, "data leaves room for what else is begun")
        self.data = data
        self.begun = begun
    }

    /// Whether a peer that has `own` operations may cut another piece of data while `count` of all
    /// peers are there.
    ///
    /// Nobody has more than are left: however many peers wait for disks that hang, there is room for
    /// the next.
    @inlinable
    package func allowData(_ count: Int, own: Int) -> Bool { count < data && own <= data - count }
    /// Whether it may begin another request.
    @inlinable
    package func allowBegin(_ count: Int, own: Int) -> Bool {
        count < begun && own <= begun - count
    }
}

/// What one connection may do before others are served.
package struct TurnBudget: Sendable, Hashable, BitwiseCopyable {
    @usableFromInline var stepsLeft: Int
    @usableFromInline let bytesEnd: UInt64

    /// `bytes` have been moved before the turn; at most about `bytesPerTurn` more are moved in it.
    @inlinable
    package init(steps: Int, bytes: UInt64, bytesPerTurn: UInt64) {
        stepsLeft = steps
        bytesEnd =
            bytes.addingReportingOverflow(bytesPerTurn).overflow
            ? .max : bytes + bytesPerTurn
    }

    /// Takes another step; false: others come first.
    @inlinable
    package mutating func goesOn(bytes: UInt64) -> Bool {
        guard stepsLeft > 0, bytes < bytesEnd else { return false }
        stepsLeft -= 1
        return true
    }
}
