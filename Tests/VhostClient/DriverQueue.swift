// The driver's side of a split virtqueue: what runs in a guest. Every step that another side can
// see is a function of its own, so that a test can put something between any two.

/// The guest's memory as its own driver sees it.
package protocol DriverMemory: AnyObject {
    func read(_ address: UInt64, _ count: Int) -> [UInt8]
    func write(_ bytes: [UInt8], _ address: UInt64)
    /// What was written before is seen by all before anything is read after.
    func fence()
}

extension DriverMemory {
    package func read16(_ address: UInt64) -> UInt16 {
        number(read(address, 2), 0, as: UInt16.self)
    }
    package func write16(_ value: UInt16, _ address: UInt64) { write(little(value), address) }
}

/// A buffer of a chain.
package struct DriverBuffer: Sendable, Equatable {
    package var address: UInt64
    package var count: UInt32
    package var isWritable: Bool

    package init(_ address: UInt64, _ count: UInt32, isWritable: Bool = false) {
        self.address = address
        self.count = count
        self.isWritable = isWritable
    }
}

/// What the device has given back.
package struct DriverUsed: Sendable, Equatable {
    package let id: UInt32
    package let written: UInt32
}

/// A split virtqueue in a guest.
package final class DriverQueue {
    package let size: UInt16
    package let descriptors: UInt64
    package let available: UInt64
    package let used: UInt64
    package let hasEventIndex: Bool
    private let memory: any DriverMemory
    private var free: [UInt16]
    /// Descriptors of each chain in flight, by head.
    private var chains: [UInt16: [UInt16]] = [:]
    /// The index that is to be published.
    package private(set) var staged: UInt16 = 0
    /// The index that was published.
    package private(set) var published: UInt16 = 0
    /// The used index up to which buffers were taken back.
    package private(set) var collected: UInt16 = 0

    /// A queue whose rings lie behind each other from `address`, which is aligned to 16.
    package init(
        _ memory: any DriverMemory, size: UInt16, at address: UInt64, hasEventIndex: Bool
    ) {
        self.memory = memory
        self.size = size
        self.hasEventIndex = hasEventIndex
        descriptors = address
        available = address + 16 * UInt64(size)
        used = (available + 6 + 2 * UInt64(size) + 3) & ~3
        free = (0..<size).reversed()
    }

    /// Bytes that the rings take.
    package static func byteCount(_ size: UInt16) -> UInt64 { 26 * UInt64(size) + 16 }

    /// Chains that were not given back.
    package var inFlight: Int { chains.count }

    /// Goes on from other indices than zero, before anything was done.
    package func begin(at index: UInt16) {
        staged = index
        published = index
        collected = index
        memory.write16(index, available + 2)
        memory.write16(index, used + 2)
    }

    /// Puts a chain into the ring without telling of it; nil: there is no room.
    package func stage(_ buffers: [DriverBuffer]) -> UInt16? {
        guard !buffers.isEmpty, buffers.count <= free.count else { return nil }
        let chain = buffers.map { _ in free.removeLast() }
        for (index, buffer) in buffers.enumerated() {
            let next = index + 1 < chain.count ? chain[index + 1] : nil
            put(buffer, at: descriptors + 16 * UInt64(chain[index]), next: next)
        }
        return enter(chain)
    }

    /// The same with a table of descriptors, which lies at `table`.
    package func stage(_ buffers: [DriverBuffer], table: UInt64) -> UInt16? {
        guard !buffers.isEmpty, let head = free.popLast() else { return nil }
        for (index, buffer) in buffers.enumerated() {
            let next = index + 1 < buffers.count ? UInt16(index + 1) : nil
            put(buffer, at: table + 16 * UInt64(index), next: next)
        }
        memory.write(
            little(table) + little(UInt32(16 * buffers.count)) + little(UInt16(4))
                + little(UInt16(0)), descriptors + 16 * UInt64(head))
        return enter([head])
    }

    private func put(_ buffer: DriverBuffer, at address: UInt64, next: UInt16?) {
        let flags: UInt16 = (next == nil ? 0 : 1) | (buffer.isWritable ? 2 : 0)
        memory.write(
            little(buffer.address) + little(buffer.count) + little(flags) + little(next ?? 0),
            address)
    }

    private func enter(_ chain: [UInt16]) -> UInt16 {
        chains[chain[0]] = chain
        memory.write16(chain[0], available + 4 + 2 * UInt64(staged % size))
        staged &+= 1
        return chain[0]
    }

    /// Tells the device of all that was staged.
    package func publish() {
        memory.write16(staged, available + 2)
    }

    /// Whether the device wants a kick for what was published; after a fence.
    package func wantsKick() -> Bool {
        let old = published
        published = staged
        guard hasEventIndex else { return memory.read16(used) & 1 == 0 }
        let event = memory.read16(used + 4 + 8 * UInt64(size))
        return staged &- event &- 1 < staged &- old
    }

    /// Whether there is something to take back.
    package var hasUsed: Bool { memory.read16(used + 2) != collected }

    /// The used index that the device has published.
    package var usedIndex: UInt16 { memory.read16(used + 2) }

    /// Takes back what the device has given; throws when that cannot be.
    package func collect() throws -> [DriverUsed] {
        let index = memory.read16(used + 2)
        var all: [DriverUsed] = []
        while collected != index {
            let place = used + 4 + 8 * UInt64(collected % size)
            let entry = memory.read(place, 8)
            let id = number(entry, 0, as: UInt32.self)
            guard let head = UInt16(exactly: id), let chain = chains.removeValue(forKey: head)
            else { throw ClientViolation("chain \(id) is given back, which is not in flight") }
            free += chain.reversed()
            all.append(DriverUsed(id: id, written: number(entry, 4, as: UInt32.self)))
            collected &+= 1
        }
        return all
    }

    /// Wants to be called after the next chain; the caller fences and collects once more.
    package func wantCalls() {
        if hasEventIndex {
            memory.write16(collected, available + 4 + 2 * UInt64(size))
        } else {
            memory.write16(0, available)
        }
    }

    /// Wants no calls.
    package func suppressCalls() {
        guard !hasEventIndex else { return }
        memory.write16(1, available)
    }
}
