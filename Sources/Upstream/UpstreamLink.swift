import CLibNBD
import CLinux
import Glibc
import ServerInterface
import SystemLayer

/// Why an upstream cannot be used.
package struct UpstreamFault: Error, Sendable, Hashable {
    package let detail: String
    package init(_ detail: String) { self.detail = detail }
}

/// A stretch of an upstream that is all data, or reads as zeros.
package struct UpstreamExtent: Sendable, Hashable {
    package let count: UInt64
    package let isData: Bool

    package init(count: UInt64, isData: Bool) {
        self.count = count
        self.isData = isData
    }
}

/// What an upstream has told of its export.
package struct UpstreamFacts: Sendable, Hashable {
    package var sizeBytes: UInt64 = 0
    package var isReadOnly = false
    package var flushes = false
    package var durableWrites = false
    package var discards = false
    package var zeroes = false
    package var zeroesFast = false
    package var prefetches = false
    package var tellsAllocation = false
    package var takesConnections = false
    /// What positions and lengths are multiples of, in bytes.
    package var alignment = 1
    /// Most bytes that one read or write moves.
    package var transferBytesMax = 32 << 20

    package init() {}

    /// What is different so that what was begun cannot be gone on with; nil: nothing.
    func difference(from found: UpstreamFacts, forWriting: Bool) -> String? {
        if found.sizeBytes != sizeBytes {
            return "it has \(found.sizeBytes) bytes now, it had \(sizeBytes)"
        }
        if forWriting, found.isReadOnly { return "it is read-only now" }
        if found.alignment > alignment {
            return "its smallest block has \(found.alignment) bytes now, it had \(alignment)"
        }
        if found.transferBytesMax < transferBytesMax {
            return "it takes at most \(found.transferBytesMax) bytes at once now, it took"
                + " \(transferBytesMax)"
        }
        if tellsAllocation, !found.tellsAllocation {
            return "it does not tell what is allocated any more"
        }
        guard forWriting else { return nil }
        let lacking = [
            ("flush", flushes && !found.flushes),
            ("durable writes (FUA)", durableWrites && !found.durableWrites),
            ("trim", discards && !found.discards),
            ("writing of zeroes", zeroes && !found.zeroes),
        ].filter(\.1).map(\.0)
        return lacking.first.map { "it offers no \($0) any more" }
    }
}

/// One connection to an upstream: a handle of libnbd.
///
/// Made on a thread that may wait; from then on used by one ring's thread at a time, and never
/// waits.
// SAFETY (unchecked Sendable): one thread uses it at a time, and a mailbox's lock hands it over;
// the library locks each handle besides.
@safe
final class UpstreamLink: @unchecked Sendable {
    private let handle: OpaquePointer
    private let isInOrder: Bool
    /// A descriptor of our own for its socket: the library closes its own when the connection
    /// breaks, and the number may be somebody else's at once.
    let descriptor: Int32
    let facts: UpstreamFacts
    /// What tells its server from others, by whatever name it was reached.
    let server: String
    /// The port that it listens at, if it is on this machine.
    let localPort: UInt16?
    /// Tells it from all others of its ring.
    var serial: UInt32 = 0
    /// Polls that have not completed.
    var waitsForInput = false
    var waitsForOutput = false
    /// It is of no use any more.
    var isBroken = false
    private var isClosed = false

    /// Connects and negotiates; throws when that is not done by the deadline, in nanoseconds.
    ///
    /// `isInOrder`: the server sends the bytes of a read in their order, as those that this
    /// process starts do; others may not.
    init(
        _ address: UpstreamAddress, until deadline: UInt64, patienceMilliseconds: UInt64,
        isInOrder: Bool
    ) throws(UpstreamFault) {
        // SAFETY (all of init): the handle is this object's own, or closed before an error leaves;
        // the strings are copied by the library.
        guard let handle = unsafe nbd_create() else { throw Self.fault() }
        do throws(UpstreamFault) {
            // A reply may leave bytes out: they are zeros then, not what the memory held for
            // others. Where they come in order it is seen that none is left out.
            try Self.check(unsafe nbd_set_pread_initialize(handle, !isInOrder))
            try unsafe Self.connect(handle, address, until: deadline)
            facts = try unsafe Self.facts(of: handle)
            descriptor = try Self.duplicate(unsafe nbd_aio_get_fd(handle))
        } catch {
            unsafe nbd_close(handle)
            throw error
        }
        unsafe self.handle = unsafe handle
        self.isInOrder = isInOrder
        switch address.place {
        case .unix(let path):
            server = Self.server(path)
            localPort = nil
        case .tcp(let host, let port):
            if SocketCalls.isOfThisMachine(descriptor) {
                // It may listen at all of the machine's addresses.
                server = "here \(port)"
                localPort = port
            } else {
                let peer = SocketCalls.peerText(of: descriptor)
                server = "\(peer ?? host) \(port)"
                localPort = nil
            }
        }
        if case .tcp = address.place { Self.watch(descriptor, patienceMilliseconds) }
    }

    deinit { close() }

    /// What tells the server of a unix socket from others, by whatever name that is reached.
    static func server(_ path: String) -> String {
        FileCalls.node(path: path).map { "socket " + $0.text } ?? path
    }

    private static func duplicate(_ descriptor: Int32) throws(UpstreamFault) -> Int32 {
        let own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        guard own >= 0 else { throw UpstreamFault("no descriptor for its connection") }
        return own
    }

    /// Ends the connection: no command is answered any more, and no bytes of one are touched.
    func close() {
        guard !isClosed else { return }
        isClosed = true
        // SAFETY: the handle is used for the last time here; whatever else uses it asks first.
        if !isBroken { unsafe _ = nbd_aio_disconnect(handle, 0) }
        isBroken = true
        // A poll in flight keeps the socket open: it is ended for both sides.
        SocketCalls.shutdown(descriptor)
        unsafe nbd_close(handle)
        _ = Glibc.close(descriptor)
    }

    // MARK: Connecting

    private static func connect(
        _ handle: OpaquePointer, _ address: UpstreamAddress, until deadline: UInt64
    ) throws(UpstreamFault) {
        // SAFETY (all of connect): as in init.
        try check(unsafe nbd_set_export_name(handle, address.name))
        try check(unsafe nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION))
        try unsafe secure(handle, address.security)
        switch address.place {
        case .unix(let path): try check(unsafe nbd_aio_connect_unix(handle, path))
        case .tcp(let host, let port):
            try check(unsafe nbd_aio_connect_tcp(handle, host, String(port)))
        }
        while unsafe nbd_aio_is_connecting(handle) > 0 {
            let now = MonotonicClock.now()
            guard now < deadline else { throw UpstreamFault("it does not answer") }
            let milliseconds = min((deadline - now) / 1_000_000 + 1, 1_000)
            try check(unsafe nbd_poll(handle, Int32(milliseconds)))
        }
        guard unsafe nbd_aio_is_ready(handle) > 0 else { throw fault() }
    }

    private static func secure(
        _ handle: OpaquePointer, _ security: UpstreamAddress.Security
    ) throws(UpstreamFault) {
        // SAFETY: as in init.
        guard security != .plain else { return }
        guard unsafe nbd_supports_tls(handle) > 0 else {
            throw UpstreamFault("libnbd was built without TLS")
        }
        try check(unsafe nbd_set_tls(handle, LIBNBD_TLS_REQUIRE))
        switch security {
        case .plain: break
        case .certificates(let directory):
            // Without it the library would trust any server.
            let authority = directory + "/ca-cert.pem"
            guard unsafe access(authority, R_OK) == 0 else {
                throw UpstreamFault("'\(authority)' cannot be read")
            }
            try check(unsafe nbd_set_tls_certificates(handle, directory))
            try check(unsafe nbd_set_tls_verify_peer(handle, true))
        case .keys(let file, let user):
            try check(unsafe nbd_set_tls_psk_file(handle, file))
            if !user.isEmpty { try check(unsafe nbd_set_tls_username(handle, user)) }
        }
    }

    private static func facts(of handle: OpaquePointer) throws(UpstreamFault) -> UpstreamFacts {
        // SAFETY: the handle is connected; the calls only look.
        var facts = UpstreamFacts()
        let size = unsafe nbd_get_size(handle)
        guard size >= 0 else { throw UpstreamFault("its size is more than can be served") }
        facts.sizeBytes = UInt64(size)
        facts.isReadOnly = unsafe nbd_is_read_only(handle) > 0
        facts.flushes = unsafe nbd_can_flush(handle) > 0
        facts.durableWrites = unsafe nbd_can_fua(handle) > 0
        facts.discards = unsafe nbd_can_trim(handle) > 0
        facts.zeroes = unsafe nbd_can_zero(handle) > 0
        facts.zeroesFast = unsafe nbd_can_fast_zero(handle) > 0
        facts.prefetches = unsafe nbd_can_cache(handle) > 0
        facts.takesConnections = unsafe nbd_can_multi_conn(handle) > 0
        facts.tellsAllocation =
            unsafe nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0
        let smallest = unsafe nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM)
        if smallest > 1 { facts.alignment = Int(smallest) }
        let largest = unsafe nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM)
        if largest > 0 { facts.transferBytesMax = Int(min(largest, 32 << 20)) }
        return facts
    }

    /// A peer that is gone without a word is noticed about when patience is over.
    private static func watch(_ descriptor: Int32, _ milliseconds: UInt64) {
        let limit = Int32(clamping: max(milliseconds, 1_000))
        set(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1)
        set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPIDLE, 5)
        set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPINTVL, 5)
        set(descriptor, Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, limit)
    }

    private static func set(_ descriptor: Int32, _ level: Int32, _ name: Int32, _ value: Int32) {
        var value = value
        // SAFETY: the value outlives the call.
        unsafe _ = setsockopt(
            descriptor, level, name, &value, socklen_t(MemoryLayout<Int32>.size))
    }

    private static func check(_ result: Int32) throws(UpstreamFault) {
        if result < 0 { throw fault() }
    }

    /// What the library says of its last error on this thread.
    private static func fault() -> UpstreamFault {
        // SAFETY: the text is copied before the next call.
        guard let text = unsafe nbd_get_error() else { return UpstreamFault("unknown error") }
        return UpstreamFault(unsafe String(cString: text))
    }

    // MARK: Driving

    /// Whether commands may be sent.
    var isAlive: Bool {
        // SAFETY: the handle lives as long as this object; so below.
        unsafe !isBroken && (nbd_aio_is_ready(handle) > 0 || nbd_aio_is_processing(handle) > 0)
    }

    /// Whether it has commands that are not answered.
    var isAsked: Bool { unsafe !isClosed && nbd_aio_in_flight(handle) > 0 }

    var wantsInput: Bool { direction & UInt32(LIBNBD_AIO_DIRECTION_READ) != 0 }
    var wantsOutput: Bool { direction & UInt32(LIBNBD_AIO_DIRECTION_WRITE) != 0 }
    private var direction: UInt32 { isClosed ? 0 : unsafe nbd_aio_get_direction(handle) }

    /// The socket has something to read, or takes more.
    func notify(output: Bool) {
        guard !isBroken else { return }
        if output {
            if wantsOutput { unsafe _ = nbd_aio_notify_write(handle) }
        } else if wantsInput {
            // Told so while it sends, the library waits for a reply before it sends the rest; the
            // server waits for that first, so there has to be one.
            guard !wantsOutput || SocketCalls.isReadable(descriptor) else { return }
            unsafe _ = nbd_aio_notify_read(handle)
        }
        if !isAlive { isBroken = true }
    }

    /// Sends a command; 0, or the errno of one that the library refuses.
    ///
    /// The answer comes to the place of `index` in the queue.
    /// Its bytes stay where they are until then, or until this object goes.
    func send(
        _ command: UpstreamCommand, asFlush: Bool, _ index: Int32, to answers: AnswerQueue,
        durable: Bool
    ) -> Int32 {
        // SAFETY: the place outlives every link that is given it; bytes are looked after by the
        // asker.
        let done = unsafe answers.completion(of: index)
        let position = command.position
        let count = UInt64(command.count)
        let bytes = unsafe UnsafeMutableRawPointer(bitPattern: command.address)
        let fua: UInt32 = durable ? 1 : 0  // LIBNBD_CMD_FLAG_FUA
        let result: Int64
        switch asFlush ? .flush : command.kind {
        case .read:
            guard let bytes = unsafe bytes else { return EFAULT }
            result = unsafe nbd_aio_pread_structured(
                handle, bytes, command.count, position,
                answers.chunks(of: index, from: isInOrder ? position : nil), done, 0)
        case .write:
            guard let bytes = unsafe bytes else { return EFAULT }
            result = unsafe nbd_aio_pwrite(handle, bytes, command.count, position, done, fua)
        case .flush: result = unsafe nbd_aio_flush(handle, done, 0)
        case .discard: result = unsafe nbd_aio_trim(handle, count, position, done, fua)
        case .zero(let keepsSpace):
            // LIBNBD_CMD_FLAG_NO_HOLE
            result = unsafe nbd_aio_zero(handle, count, position, done, fua | (keepsSpace ? 2 : 0))
        case .prefetch: result = unsafe nbd_aio_cache(handle, count, position, done, 0)
        case .status:
            result = unsafe nbd_aio_block_status(
                handle, count, position, answers.extents(of: index), done, 0)
        }
        guard result < 0 else { return 0 }
        let errno = nbd_get_errno()
        if !isAlive { isBroken = true }
        return errno == 0 ? EIO : errno
    }
}

/// Answers that a ring's links of one upstream have had, and nobody has looked at.
///
/// The library calls back while it holds a handle's lock, so that nothing is done there but noting.
// SAFETY: one thread owns it, as it owns the links.
@safe
final class AnswerQueue {
    struct Answer {
        let index: Int32
        let errno: Int32
        /// Bytes of a read that the reply had.
        let byteCount: Int
    }

    @safe
    private struct Place {
        let index: Int32
        var byteCount = 0
        /// Where the next bytes of a read have to come from; nil: from anywhere.
        private var next: UInt64?
        let queue: UnsafeMutableRawPointer

        init(index: Int32, queue: UnsafeMutableRawPointer) {
            self.index = index
            unsafe self.queue = unsafe queue
        }

        mutating func startReading(_ position: UInt64?) {
            byteCount = 0
            next = position
        }

        mutating func got(_ count: Int, at offset: UInt64) {
            if let next {
                guard offset == next else { return }
                self.next = next &+ UInt64(count)
            }
            byteCount &+= count
        }
    }

    private(set) var answers: [Answer] = []
    private(set) var extents: [Int32: [UpstreamExtent]] = [:]
    private var chunks: [UnsafeMutablePointer<Place>] = unsafe []
    private static let chunkCount = 256
    /// Most of one answer's extents that are looked at; who wants more asks again.
    private static let extentsMax = 4096

    deinit {
        // SAFETY: each was allocated in `place`, and no link that has one lives.
        while let chunk = unsafe chunks.popLast() { unsafe chunk.deallocate() }
    }

    func takeAll(into other: inout [Answer]) {
        swap(&answers, &other)
        answers.removeAll(keepingCapacity: true)
    }

    /// A command was carried out that no link was asked for.
    func note(_ index: Int32, byteCount: Int) {
        answers.append(Answer(index: index, errno: 0, byteCount: byteCount))
    }

    func takeExtents(of index: Int32) -> [UpstreamExtent] {
        extents.removeValue(forKey: index) ?? []
    }

    /// Nothing of what was noted counts.
    func removeAll() {
        answers.removeAll(keepingCapacity: true)
        extents.removeAll()
    }

    /// A place that does not move for as long as the queue lives.
    private func place(of index: Int32) -> UnsafeMutableRawPointer {
        // SAFETY: a chunk is allocated whole and initialized; it goes with the queue.
        while unsafe Int(index) >= chunks.count * Self.chunkCount {
            let chunk = UnsafeMutablePointer<Place>.allocate(capacity: Self.chunkCount)
            let first = unsafe Int32(chunks.count * Self.chunkCount)
            let queue = unsafe Unmanaged.passUnretained(self).toOpaque()
            for offset in 0..<Self.chunkCount {
                unsafe (chunk + offset).initialize(
                    to: unsafe Place(index: first + Int32(offset), queue: queue))
            }
            unsafe chunks.append(chunk)
        }
        return unsafe UnsafeMutableRawPointer(
            chunks[Int(index) / Self.chunkCount] + Int(index) % Self.chunkCount)
    }

    fileprivate func completion(of index: Int32) -> nbd_completion_callback {
        // SAFETY: the library hands the place back as it got it, at most until the link is closed;
        // the queue outlives its links.
        unsafe nbd_completion_callback(
            callback: { data, error in
                guard let data = unsafe data else { return 1 }
                let place = unsafe data.assumingMemoryBound(to: Place.self).pointee
                let queue = unsafe Unmanaged<AnswerQueue>.fromOpaque(place.queue)
                    .takeUnretainedValue()
                queue.answers.append(
                    unsafe Answer(
                        index: place.index, errno: error?.pointee ?? 0, byteCount: place.byteCount))
                // The library forgets the command.
                return 1
            }, user_data: place(of: index), free: nil)
    }

    /// Counts the bytes of a read's reply, which the library does not; where they come in order
    /// from a position on, those that do so only.
    fileprivate func chunks(of index: Int32, from position: UInt64?) -> nbd_chunk_callback {
        // SAFETY: as for completion; nothing else looks at the place while this does.
        let place = unsafe place(of: index)
        unsafe place.assumingMemoryBound(to: Place.self).pointee.startReading(position)
        return unsafe nbd_chunk_callback(
            callback: { data, _, count, offset, status, _ in
                guard let data = unsafe data else { return 0 }
                // LIBNBD_READ_DATA, LIBNBD_READ_HOLE; an error has no bytes.
                if status == 1 || status == 2 {
                    unsafe data.assumingMemoryBound(to: Place.self).pointee.got(count, at: offset)
                }
                return 0
            }, user_data: place, free: nil)
    }

    fileprivate func extents(of index: Int32) -> nbd_extent_callback {
        // SAFETY: as for completion; pairs of 32-bit words lie at `words`, as many as `count` says.
        unsafe nbd_extent_callback(
            callback: { data, _, _, words, count, _ in
                guard let data = unsafe data, let words = unsafe words else { return 0 }
                let place = unsafe data.assumingMemoryBound(to: Place.self).pointee
                let queue = unsafe Unmanaged<AnswerQueue>.fromOpaque(place.queue)
                    .takeUnretainedValue()
                var found: [UpstreamExtent] = []
                for pair in 0..<min(count / 2, AnswerQueue.extentsMax) {
                    let length = unsafe words[2 * pair]
                    // LIBNBD_STATE_ZERO: only what reads as zeros need not be read.
                    let isZero = unsafe words[2 * pair + 1] & 2 != 0
                    found.append(UpstreamExtent(count: UInt64(length), isData: !isZero))
                }
                queue.extents[place.index] = found
                return 0
            }, user_data: place(of: index), free: nil)
    }
}
