import VhostProtocol

/// A device over a disk that is an array: takes requests, carries them out, in any order a test
/// wants.
struct ModelDisk {
    var content: [UInt8]
    var rules: BlockRules
    private var segments: [GuestSegment]
    /// Requests that were taken, with their data segments.
    private(set) var inFlight: [(request: BlockRequest, segments: [GuestSegment])] = []
    /// All that was carried out, in order.
    private(set) var done: [BlockRequest] = []

    static let features: DeviceFeatures = [
        .segmentsMax, .blockSize, .flush, .topology, .multiQueue, .indirectDescriptors,
        .eventIndex, .discard, .writeZeroes, .version1, .protocolFeatures,
    ]

    init(
        sectors: Int, isReadOnly: Bool = false, features: DeviceFeatures = Self.features,
        segments: Int = 130
    ) {
        content = (0..<512 * sectors).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 9) }
        let device = BlockDescription(
            sizeBytes: UInt64(512 * sectors), isReadOnly: isReadOnly, queueCount: 4,
            identity: "model")
        rules = BlockRules(device, features)
        self.segments = Array(
            repeating: GuestSegment(place: GuestPlace(rawValue: 0), byteCount: 0), count: segments)
    }

    /// Takes one chain and answers at once what needs no disk.
    ///
    /// Returns nil when there is none.
    mutating func take(
        _ queue: inout Virtqueue, _ memory: GuestArray
    ) throws(VirtqueueFault) -> BlockVerdict? {
        let rules = rules
        var room = segments.mutableSpan
        guard let chain = try queue.next(memory, into: &room) else { return nil }
        let verdict = try rules.check(chain, memory, &room)
        switch verdict {
        case .answer(let answer):
            queue.answer(memory, answer)
        case .carryOut(let request):
            let range = request.firstSegment..<request.firstSegment + request.segmentCount
            var data: [GuestSegment] = []
            for index in range { data.append(room[index]) }
            inFlight.append((request, data))
        }
        return verdict
    }

    /// Carries out one of the requests in flight and answers it.
    mutating func finish(
        _ index: Int, _ queue: inout Virtqueue, _ memory: GuestArray
    ) {
        let (request, segments) = inFlight.remove(at: index)
        let range = Int(request.offset)..<Int(request.offset + request.byteCount)
        switch request.command {
        case .read: memory.scatter(Array(content[range]), segments)
        case .write: content.replaceSubrange(range, with: memory.gather(segments))
        case .flush: break
        case .discard, .writeZeroes: for place in range { content[place] = 0 }
        }
        done.append(request)
        queue.answer(memory, request.answer(.ok))
    }

    /// Does all there is; whether the guest wants a call.
    mutating func run(
        _ queue: inout Virtqueue, _ memory: GuestArray
    ) throws(VirtqueueFault) -> Bool {
        while try take(&queue, memory) != nil {}
        while !inFlight.isEmpty { finish(0, &queue, memory) }
        return queue.publish(memory)
    }
}
