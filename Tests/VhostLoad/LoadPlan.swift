/// What is to be done, and how.
struct LoadPlan: Sendable {
    enum Order: String, CaseIterable, Sendable {
        /// Anywhere, again and again.
        case random
        /// One block after the other, each queue in a part of its own.
        case sequential
        /// One block in each stride, in random order; once.
        case touch
    }

    /// How answers are waited for.
    enum Wait: String, CaseIterable, Sendable {
        case sleep
        case poll
    }

    var queues = 1
    /// Requests in flight on each queue.
    var depth = 1
    var blockBytes = 4096
    /// Reads of a hundred requests.
    var readShare = 100
    var order = Order.random
    /// One block is touched in so many bytes.
    var strideBytes = 65_536
    var wait = Wait.sleep
    var seconds = 2.0
    /// Bytes from the disk's start on that are used.
    var spanBytes = 0
    var usesIndirect = false
    var seed: UInt64 = 1

    /// Bytes of a request in memory: header, status and table, then data on pages of its own.
    var slotBytes: Int { 4096 + (blockBytes + 4095) / 4096 * 4096 }

    /// Entries of a queue that has room for all chains.
    var queueSize: UInt16 {
        var size: UInt16 = 128
        while Int(size) < depth * (usesIndirect ? 1 : LoadQueue.chainLength) { size *= 2 }
        return size
    }
}

/// What a queue's thread has to know; all of it can go to another thread.
struct WorkerSetup: Sendable {
    let plan: LoadPlan
    let index: Int
    let rings: LoadRings
    /// The places that are touched, if they are given.
    let places: [UInt64]
}

/// What came of it.
struct WorkerResult: Sendable {
    var latencies = Histogram()
    var reads = 0
    var writes = 0
    var errors = 0
    var kicks = 0
    var sleeps = 0
    var seconds = 0.0
}
