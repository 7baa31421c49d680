import ServerInterface

/// A target that has been opened and found fit, while the backup may still be refused.
///
/// What was there before is as it was until `begin`.
struct PreparedTarget {
    private let order: PushOrder
    private let file: RawTarget
    /// Nil of an image that is made only when the backup has begun: on a device, it replaces what
    /// is there.
    private let target: PushTarget?

    init(_ order: PushOrder) throws(PushFailure) {
        self.order = order
        file = try RawTarget(order)
        guard order.kind == .block, order.format == .qcow2, !order.keepsImage else {
            target = try PushTarget(order, in: file)
            return
        }
        try ImageTarget.check(order)
        target = nil
    }

    /// The target, to be written.
    func begin() throws(PushFailure) -> PushTarget {
        if let target { return target }
        return try PushTarget(order, in: file)
    }
}

/// What is written, opened and ready: a raw file or device, or an image by way of `qemu-nbd`.
final class PushTarget: Sendable {
    /// The file itself; of an image, too, to hear of writes that were lost.
    let file: RawTarget
    private let image: ImageTarget?
    private let peers: [NBDPeer]
    private let order: PushOrder

    /// Only whole units of so many bytes are written.
    var unitBytes: Int { max(image?.clusterBytes ?? 0, ImageTarget.clusterBytesDefault) }

    /// Makes or examines the image in an open file.
    init(_ order: PushOrder, in file: RawTarget) throws(PushFailure) {
        self.order = order
        self.file = file
        switch order.format {
        case .raw:
            try file.fit(order)
            (image, peers) = (nil, [])
        case .qcow2:
            let image = try ImageTarget(order)
            var peers: [NBDPeer] = []
            for _ in 0..<order.connections { peers.append(try image.connect()) }
            guard let size = peers.first?.sizeBytes, size == order.sizeBytes else {
                throw PushFailure(
                    "'\(order.path)' can hold \(peers.first?.sizeBytes ?? 0) bytes, and the disk "
                        + "has \(order.sizeBytes)")
            }
            (self.image, self.peers) = (image, peers)
        }
    }

    /// Whether what was never written reads as zeros.
    var isBlank: Bool { order.isNew || (order.format == .qcow2 && !order.keepsImage) }

    /// How one of the threads writes.
    func writer(_ index: Int) -> Writer {
        image == nil ? .file(file) : .peer(peers[index % peers.count])
    }

    /// How a thread reaches the target.
    enum Writer: Sendable {
        case file(RawTarget)
        case peer(NBDPeer)

        func write(_ memory: UnsafeRawBufferPointer, at offset: UInt64) throws(PushFailure) {
            // SAFETY: the memory is handed on for the time of the call.
            switch self {
            case .file(let file): try unsafe file.write(memory, at: offset)
            case .peer(let peer): try unsafe peer.write(memory, at: offset)
            }
        }

        func zero(at offset: UInt64, count: Int) throws(PushFailure) {
            switch self {
            case .file(let file): try file.zero(at: offset, count: count)
            case .peer(let peer): try peer.zero(at: offset, count: count)
            }
        }

        func read(_ memory: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(PushFailure) {
            // SAFETY: the memory is handed on for the time of the call.
            switch self {
            case .file(let file): try unsafe file.read(memory, at: offset)
            case .peer(let peer): try unsafe peer.read(memory, at: offset)
            }
        }
    }

    /// Closes the image and makes everything durable; throws when anything was lost.
    func finish() throws(PushFailure) {
        if let image {
            for peer in peers { try peer.flush() }
            for peer in peers { try peer.disconnect() }
            try image.close()
        }
        try file.flush()
    }

    /// Calls `body` with ways to read the finished target.
    func readBack(_ body: ([Writer]) throws(PushFailure) -> Void) throws(PushFailure) {
        file.forgetCache()
        guard image != nil else { return try body([.file(file)]) }
        let (program, connect) = try ImageTarget.reopen(order)
        var peers: [NBDPeer] = []
        for _ in 0..<order.connections { peers.append(try connect()) }
        try body(peers.map { .peer($0) })
        for peer in peers { try peer.disconnect() }
        try program.wait()
    }
}
