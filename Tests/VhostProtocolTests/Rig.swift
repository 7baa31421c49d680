import VhostClient
import VhostProtocol

/// A queue with its memory and its driver.
final class Rig {
    let memory: GuestArray
    let driver: DriverQueue
    private var queue: Virtqueue
    private var segments: [GuestSegment]

    init(
        _ memory: GuestArray, _ driver: DriverQueue, base: UInt16 = 0, hasIndirect: Bool = true,
        area: GuestPlace? = nil, segments: Int = 8
    ) throws(VirtqueueFault) {
        self.memory = memory
        self.driver = driver
        self.segments = Array(
            repeating: GuestSegment(place: GuestPlace(rawValue: 0), byteCount: 0), count: segments)
        queue = try Virtqueue(
            memory, QueueSetup(driver, base: base, hasIndirect: hasIndirect), inflight: area)
    }

    convenience init(
        size: UInt16 = 4, base: UInt16 = 0, hasEventIndex: Bool = false
    ) throws(VirtqueueFault) {
        let memory = GuestArray(0x10000)
        let driver = DriverQueue(memory, size: size, at: 0, hasEventIndex: hasEventIndex)
        driver.begin(at: base)
        try self.init(memory, driver, base: base)
    }

    var inFlightCount: Int { queue.inFlightCount }
    var nextAvailable: UInt16 { queue.nextAvailable }

    func next() throws(VirtqueueFault) -> DescriptorChain? {
        var span = segments.mutableSpan
        return try queue.next(memory, into: &span)
    }
    /// The segments of the chain that was taken last, and what was there before.
    var kept: [GuestSegment] { segments.filter { $0.byteCount > 0 } }
    func hasNext() throws(VirtqueueFault) -> Bool { try queue.hasNext(memory) }
    func complete(_ head: UInt16, written: UInt32 = 1) {
        queue.complete(memory, head: head, written: written)
    }
    func publish() -> Bool { queue.publish(memory) }
    func wantKicks() throws(VirtqueueFault) -> Bool { try queue.wantKicks(memory) }
    func suppressKicks() { queue.suppressKicks(memory) }

    /// Lets a disk take all there is, carry it out and answer it; whether the guest wants a call.
    @discardableResult
    func run(_ disk: inout ModelDisk) throws(VirtqueueFault) -> Bool {
        try disk.run(&queue, memory)
    }
    func take(_ disk: inout ModelDisk) throws(VirtqueueFault) -> BlockVerdict? {
        try disk.take(&queue, memory)
    }
    func finish(_ index: Int, _ disk: inout ModelDisk) { disk.finish(index, &queue, memory) }
}
