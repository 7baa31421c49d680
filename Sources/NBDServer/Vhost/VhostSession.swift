import Disk
import IORing
import NBDProtocol
import SharedMemory
import SystemLayer
import Tables
import VhostProtocol

/// What a front-end of vhost-user shares, on the disk's home ring.
///
/// Everything that it points at may change or go away at any moment; what is loaded is checked by
/// `VhostProtocol`, and believed only while no memory has gone (`isMemoryGone`).
struct VhostSession: ~Copyable {
    let export: LiveExport
    /// The listener that it came by: it takes the next one when this one has gone.
    let listener: UInt64
    let slot: ConnectionIndex
    var session: BackEndSession
    /// Fixed by the features; consulted for every request.
    var rules: BlockRules
    var memory = MappedMemory()
    var queues: [VhostQueue]
    var rings: SlotTable<Virtqueue>
    /// Numbers of the queues that run.
    var running: [Int] = []
    /// Where the next turn begins in `running`.
    var nextQueue = 0
    var vectors: VectorTable
    var requests = SlotTable<GuestRequest>(capacity: Limits.requestsPerGuest)
    /// The chain at hand.
    var segments = [GuestSegment](
        repeating: GuestSegment(place: GuestPlace(rawValue: 0), byteCount: 0),
        count: Self.segmentsMax)
    var cursor = SegmentCursor()

    /// The in-flight area in use.
    var area: GuestMapping?
    /// One that was made, on its way to the front-end.
    var madeArea: Int32?

    /// The header of the message at hand, once it is there, and what has come of the part at hand.
    var header: MessageHeader?
    var input: [UInt8] = []
    var descriptors: [Int32] = []
    var hasInput = true
    /// The kernel waits for a message.
    var isListening = false
    var waiting: WaitingAction?

    /// Kicks that the kernel waits for.
    var armedKicks = 0
    private var losses: UInt
    /// Lines of the event log that are about it.
    var reports = 0
    /// It was said that it keeps no in-flight area.
    var hasSaidUnsafe = false
    /// It closes, and what the kernel waits for has been cancelled.
    var isEnding = false

    /// The longest chain, with a header and a status of their own.
    private static let segmentsMax = Int(VhostLimits.chainDescriptorsMax) + 16

    init(
        _ export: LiveExport, listener: UInt64, slot: ConnectionIndex, sizeBytes: UInt64
    ) throws(SystemFault) {
        self.export = export
        self.listener = listener
        self.slot = slot
        let device = BlockDescription(
            sizeBytes: sizeBytes, isReadOnly: export.source.isReadOnly,
            queueCount: VhostLimits.queuesMax, identity: Self.identity(export))
        session = BackEndSession(device)
        rules = session.rules
        queues = Array(repeating: VhostQueue(), count: device.queueCount)
        rings = SlotTable(capacity: device.queueCount)
        vectors = try VectorTable(lanes: Limits.lanesPerGuest)
        losses = GuestMapping.losses
    }

    /// What a guest is told as its disk's serial: the end of the export's name, or of the file's.
    private static func identity(_ export: LiveExport) -> String {
        let name = export.description.name
        let text = name.isEmpty ? export.source.path : name
        let plain = text.map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "-" }
        return String(plain.suffix(20))
    }

    /// Whether memory that it has mapped is gone: then nothing that was loaded in this turn counts.
    mutating func isMemoryGone() -> Bool {
        let found = GuestMapping.losses
        guard found != losses else { return false }
        // Another guest's, or this one's: a mapping stays gone.
        if memory.isGone || area?.isGone ?? false { return true }
        losses = found
        return false
    }

    // MARK: Chains

    /// Takes the next chain of a queue that is open; nil when there is none.
    ///
    /// Its segments become the chain at hand.
    mutating func next(_ queue: Int) throws(VirtqueueFault) -> BlockVerdict? {
        guard let ring = queues[queue].ring else { return nil }
        return try Self.next(&rings[ring], memory, rules, &segments)
    }

    private static func next(
        _ ring: inout Virtqueue, _ memory: borrowing MappedMemory, _ rules: BlockRules,
        _ segments: inout [GuestSegment]
    ) throws(VirtqueueFault) -> BlockVerdict? {
        var span = segments.mutableSpan
        guard let chain = try ring.next(memory, into: &span) else { return nil }
        return try rules.check(chain, memory, &span)
    }

    /// Answers a chain; the guest sees it after the next `publish`.
    mutating func answer(_ queue: Int, _ answer: BlockAnswer) {
        guard let ring = queues[queue].ring else { return }
        rings[ring].answer(memory, answer)
    }

    /// Whether the guest does not see all answers of a queue yet.
    mutating func hasUnpublished(_ queue: Int) -> Bool {
        guard let ring = queues[queue].ring else { return false }
        return rings[ring].unpublishedCount > 0
    }

    /// Shows what was answered of a queue; returns how many answers, and whether the guest wants a
    /// call for them.
    mutating func publish(_ queue: Int) -> (count: Int, wantsCall: Bool) {
        guard let ring = queues[queue].ring else { return (0, false) }
        let count = rings[ring].unpublishedCount
        return (count, rings[ring].publish(memory))
    }

    /// The index behind the last chain of a queue, and how many are to be taken yet; nothing was
    /// checked.
    mutating func available(_ queue: Int) -> (index: UInt16, left: UInt16) {
        guard let ring = queues[queue].ring else { return (0, 0) }
        let index = rings[ring].availableIndex(memory)
        return (index, index &- rings[ring].nextAvailable)
    }

    /// Chains of all open queues that are to be taken yet; nothing was checked.
    var chainsLeft: Int {
        mutating get {
            var count = 0
            for position in running.indices where queues[running[position]].isOpen {
                count += Int(available(running[position]).left)
            }
            return count
        }
    }

    /// Asks the guest to leave kicks out, as its queue is polled anyway.
    mutating func suppressKicks(_ queue: Int) {
        guard let ring = queues[queue].ring else { return }
        rings[ring].suppressKicks(memory)
    }

    /// Whether a chain waits in a queue that is open.
    mutating func hasNext(_ queue: Int) throws(VirtqueueFault) -> Bool {
        guard queues[queue].isOpen, let ring = queues[queue].ring else { return false }
        return try rings[ring].hasNext(memory)
    }

    /// Asks for a kick with the next chain; whether there is one already.
    mutating func wantKicks(_ queue: Int) throws(VirtqueueFault) -> Bool {
        guard queues[queue].isOpen, let ring = queues[queue].ring else { return false }
        return try rings[ring].wantKicks(memory)
    }

    // MARK: Segments

    /// The chain at hand is that of a request: its segments are given to pieces from here on.
    mutating func begin(_ block: BlockRequest) {
        cursor = SegmentCursor(
            index: block.firstSegment, offset: 0, end: block.firstSegment + block.segmentCount)
    }

    /// Fills a lane with the next segments, up to so many bytes or as many as fit; returns their
    /// bytes.
    mutating func fill(_ lane: Int, upTo byteCount: UInt64) -> UInt64 {
        var left = byteCount
        while left > 0, cursor.index < cursor.end, !vectors.isFull(lane) {
            let segment = segments[cursor.index]
            let count = min(segment.byteCount - cursor.offset, left)
            vectors.append(
                lane, address: segment.place.advanced(by: cursor.offset).rawValue,
                byteCount: Int(count))
            left -= count
            cursor.offset += count
            if cursor.offset == segment.byteCount {
                cursor.index += 1
                cursor.offset = 0
            }
        }
        return byteCount - left
    }

    // MARK: Ends

    /// Whether the kernel still has something of it.
    var isReferenced: Bool { isListening || armedKicks > 0 }

    /// Its memory, which is somebody else's to unmap when it has gone.
    mutating func takeMemory() -> [GuestMapping] {
        var all = memory.takeAll()
        if let area { all.append(area) }
        area = nil
        return all
    }

    /// Descriptors that are to be closed when it has gone.
    var allDescriptors: [Int32] {
        var all = descriptors + (waiting?.descriptors ?? [])
        for queue in queues {
            all += [queue.kick, queue.error].compactMap { $0?.number }
        }
        if let madeArea { all.append(madeArea) }
        return all.filter { $0 >= 0 }
    }
}
