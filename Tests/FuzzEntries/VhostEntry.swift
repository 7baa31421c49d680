import VhostProtocol

/// A front-end and a guest that say and write whatever they like: messages first, then rings.
///
/// The first byte chooses between both. Messages stand behind each other, each behind a byte whose
/// low half is the number of its descriptors and whose top bit lets its action fail. Of rings the
/// next three bytes choose size, features and how often memory changes; then comes memory, and the
/// last bytes of all are written over it, piece by piece, while the device looks.
enum VhostEntry {
    static func run(_ bytes: [UInt8]) {
        guard let first = bytes.first else { return }
        if first & 1 == 0 {
            messages(bytes.span.extracting(1...))
        } else {
            rings(bytes)
        }
    }

    // MARK: Messages

    private static func messages(_ input: Span<UInt8>) {
        var session = BackEndSession(
            BlockDescription(sizeBytes: 1 << 30, queueCount: 4, identity: "fuzz"))
        var position = 0
        while input.count - position > MessageHeader.byteCount {
            let choice = input[position]
            let start = position + 1
            guard
                let header = try? MessageHeader(
                    input.extracting(start..<start + MessageHeader.byteCount))
            else { return }
            let payload = start + MessageHeader.byteCount
            guard header.payloadBytes <= input.count - payload else { return }
            position = payload + header.payloadBytes
            var step = session.receive(
                header, input.extracting(payload..<position), descriptors: Int(choice & 0xf))
            if case .perform(let action) = step {
                check(action, session)
                step = session.performed(outcome(action, fails: choice & 0x80 != 0))
            }
            switch step {
            case .perform: preconditionFailure("one action for each message")
            case .close: return
            case .reply(let reply): check(reply)
            case .refused(_, let reply): reply.map(check)
            case .proceed: break
            }
            check(session.memory)
        }
    }

    private static func outcome(_ action: SessionAction, fails: Bool) -> ActionOutcome {
        if fails { return .failed("no memory") }
        if case .stopQueue = action { return .stopped(next: 3) }
        return .done
    }

    private static func check(_ reply: SessionReply) {
        precondition(reply.bytes.count >= MessageHeader.byteCount)
        precondition(reply.bytes.count <= MessageHeader.byteCount + VhostLimits.payloadBytesMax)
    }

    private static func check(_ memory: MemoryTable) {
        precondition(memory.entries.count <= VhostLimits.regionsMax)
        var end: UInt64 = 0
        for entry in memory.entries {
            let region = entry.region
            precondition(region.guestAddress >= end && region.byteCount > 0)
            let sum = region.guestAddress.addingReportingOverflow(region.byteCount)
            precondition(!sum.overflow && region.fileOffset <= UInt64(Int64.max) - region.byteCount)
            end = sum.partialValue
        }
    }

    private static func check(_ action: SessionAction, _ session: BackEndSession) {
        switch action {
        case .changeQueue(let index, .start(let setup)):
            precondition(index < 4 && !session.startedQueues.contains(index))
            precondition(setup.size > 0 && setup.size <= VhostLimits.queueSizeMax)
            let rings = setup.rings
            let bytes = RingAddresses.descriptorBytes(setup.size)
            precondition(isInside(rings.descriptors, bytes, session.memory))
            precondition(
                isInside(
                    rings.available, RingAddresses.availableBytes(setup.size), session.memory))
            precondition(
                isInside(rings.used, RingAddresses.usedBytes(setup.size), session.memory))
        case .makeInflight(let count):
            precondition(count > 0 && count <= 1 << 24)
        case .useInflight(let area):
            precondition(area.byteCount <= 1 << 24)
        case .changeQueue, .stopQueue, .reset, .changeMemory: break
        }
    }

    private static func isInside(
        _ address: UInt64, _ byteCount: UInt64, _ memory: MemoryTable
    ) -> Bool {
        memory.entries.contains {
            address >= $0.region.guestAddress
                && address + byteCount <= $0.region.guestAddress + $0.region.byteCount
        }
    }

    // MARK: Rings

    private static func rings(_ bytes: [UInt8]) {
        guard bytes.count > 4 else { return }
        let size = UInt16(1) << UInt16(bytes[1] % 6)
        let memory = FuzzMemory(bytes, stride: Int(bytes[3]))
        let rings = RingAddresses(descriptors: 0, available: 0x200, used: 0x280)
        let setup = QueueSetup(
            size: size, base: UInt16(bytes[2] & 0xf), rings: rings,
            hasEventIndex: bytes[2] & 0x10 != 0, hasIndirectDescriptors: bytes[2] & 0x20 != 0)
        let area = bytes[2] & 0x40 != 0 ? GuestPlace(rawValue: FuzzMemory.area) : nil
        guard var queue = try? Virtqueue(memory, setup, inflight: area) else { return }
        let device = BlockDescription(
            sizeBytes: 64 * 512, isReadOnly: bytes[2] & 0x80 != 0, queueCount: 1, identity: "fuzz")
        let rules = BlockRules(device, device.features)
        do throws(VirtqueueFault) {
            for _ in 0..<4 { try turn(&queue, memory, rules) }
        } catch { precondition(!error.text.isEmpty) }
        precondition(queue.inFlightCount <= Int(size))
    }

    /// One turn of a device: all there is, carried out at once.
    private static func turn(
        _ queue: inout Virtqueue, _ memory: FuzzMemory, _ rules: BlockRules
    ) throws(VirtqueueFault) {
        var room = [GuestSegment](
            repeating: GuestSegment(place: GuestPlace(rawValue: 0), byteCount: 0), count: 20)
        var segments = room.mutableSpan
        queue.suppressKicks(memory)
        var left = 300
        while left > 0, let chain = try queue.next(memory, into: &segments) {
            left -= 1
            switch try rules.check(chain, memory, &segments) {
            case .answer(let answer): queue.answer(memory, answer)
            case .carryOut(let request):
                check(request, memory, segments.span)
                queue.answer(memory, request.answer(.ok))
            }
        }
        _ = queue.publish(memory)
        _ = try queue.wantKicks(memory)
    }

    private static func check(
        _ request: BlockRequest, _ memory: FuzzMemory, _ segments: Span<GuestSegment>
    ) {
        precondition(request.offset <= 64 * 512 && request.byteCount <= 64 * 512 - request.offset)
        var sum: UInt64 = 0
        for index in request.firstSegment..<request.firstSegment + request.segmentCount {
            memory.expect(segments[index])
            sum += segments[index].byteCount
        }
        switch request.command {
        case .read, .write: precondition(sum == request.byteCount && sum > 0)
        case .flush, .discard, .writeZeroes: precondition(request.segmentCount == 0)
        }
    }
}

/// Memory of two regions that a guest writes to between any two looks of the device.
private final class FuzzMemory: ChangingMemory {
    /// Where the in-flight area is, which no guest address reaches.
    static let area: UInt64 = 0x1000
    private static let guestBytes: UInt64 = 0x1000
    private static let allBytes = 0x1240

    var bytes: [UInt8]
    /// What the guest writes over and over: two bytes of place, two of content.
    private let changes: [UInt8]
    private var nextChange = 0
    private let stride: Int
    private var accesses = 0

    init(_ input: [UInt8], stride: Int) {
        let content = input.dropFirst(4)
        bytes = Array(content.prefix(Self.allBytes))
        bytes += [UInt8](repeating: 0, count: Self.allBytes - bytes.count)
        // The last bytes change what the first ones have said.
        changes = Array(input.suffix(min(content.count, 64)))
        self.stride = stride
    }

    func change() {
        accesses += 1
        guard stride > 0, accesses.isMultiple(of: stride), changes.count >= 4 else { return }
        if nextChange + 4 > changes.count { nextChange = 0 }
        let place =
            (Int(changes[nextChange]) | Int(changes[nextChange + 1]) << 8)
            % Int(Self.guestBytes - 1)
        bytes[place] = changes[nextChange + 2]
        bytes[place + 1] = changes[nextChange + 3]
        nextChange += 4
    }

    func segment(at address: UInt64, byteCount: UInt64) -> GuestSegment? {
        // Two regions that touch each other.
        let end = address < Self.guestBytes / 2 ? Self.guestBytes / 2 : Self.guestBytes
        guard address < end else { return nil }
        return GuestSegment(
            place: GuestPlace(rawValue: address), byteCount: min(byteCount, end - address))
    }

    /// Ends the process when a segment is not all in the guest's memory.
    func expect(_ segment: GuestSegment) {
        precondition(segment.byteCount > 0 && segment.place.rawValue < Self.guestBytes)
        precondition(segment.byteCount <= Self.guestBytes - segment.place.rawValue)
    }
}
