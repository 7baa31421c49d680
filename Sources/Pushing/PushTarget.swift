import ServerInterface
import Synchronization

/// A target that has been opened and found fit, while the backup may still be refused.
///
/// What was there before is as it was until `begin`.
struct PreparedTarget {
    private let order: PushOrder
    let file: RawTarget
    /// Nil of an image that is made only when the backup has begun: on a device, it replaces what
    /// is there.
    let target: PushTarget?

    init(_ order: PushOrder) throws(PushFailure) {
        self.order = order
        file = try RawTarget(order)
        try file.room.look()
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

/// What is written, opened and ready: a raw file or device, an image by way of `qemu-nbd`, or one
/// whose places are known.
final class PushTarget: Sendable {
    /// The file itself; of an image, too, to hear of writes that were lost.
    let file: RawTarget
    private let image: ImageTarget?
    private let mapped: MappedImage?
    /// Of a mapped image, which no program has open.
    private let lock: Mutex<FileLock?>
    private let peers: [NBDPeer]
    private let order: PushOrder
    private let state = Mutex(State.written)

    private enum State { case written, done, given }

    /// Only whole units of so many bytes are written.
    var unitBytes: Int { max(image?.clusterBytes ?? 0, ImageTarget.clusterBytesDefault) }

    /// Makes or examines the image in an open file.
    init(_ order: PushOrder, in file: RawTarget) throws(PushFailure) {
        self.order = order
        self.file = file
        // Where it cannot be had, the ordinary way says why, or goes.
        if MappedImage.suits(order), let map = try? MappedImage(order, in: file.forPrograms) {
            (image, peers) = (nil, [])
            mapped = map
            lock = Mutex(try file.lockApart())
            return
        }
        mapped = nil
        lock = Mutex(nil)
        switch order.format {
        case .raw:
            try file.fit(order)
            (image, peers) = (nil, [])
        case .qcow2:
            let image = try ImageTarget(order, in: file.forPrograms)
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
        if let mapped { return .places(file, mapped) }
        return image == nil ? .file(file) : .peer(peers[index % peers.count])
    }

    /// How a thread reaches the target.
    enum Writer: Sendable {
        case file(RawTarget)
        case peer(NBDPeer)
        case places(RawTarget, MappedImage)

        func write(_ memory: UnsafeRawBufferPointer, at offset: UInt64) throws(PushFailure) {
            // SAFETY: the memory is handed on for the time of the call.
            switch self {
            case .file(let file): try unsafe file.write(memory, at: offset)
            case .peer(let peer): try unsafe peer.write(memory, at: offset)
            case .places(let file, let image):
                try image.each(at: offset, count: memory.count) {
                    done, count, position throws(PushFailure) in
                    // SAFETY: parts of the memory, as `each` cuts it.
                    let part = unsafe UnsafeRawBufferPointer(rebasing: memory[done..<done + count])
                    try unsafe file.write(part, at: position)
                }
            }
        }

        func zero(at offset: UInt64, count: Int) throws(PushFailure) {
            switch self {
            case .file(let file): try file.zero(at: offset, count: count)
            case .peer(let peer): try peer.zero(at: offset, count: count)
            case .places(let file, let image):
                try image.each(at: offset, count: count) {
                    _, count, position throws(PushFailure) in
                    try file.zero(at: position, count: count)
                }
            }
        }

        func read(_ memory: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(PushFailure) {
            // SAFETY: the memory is handed on for the time of the call.
            switch self {
            case .file(let file): try unsafe file.read(memory, at: offset)
            case .peer(let peer): try unsafe peer.read(memory, at: offset)
            case .places(let file, let image):
                try image.each(at: offset, count: memory.count) {
                    done, count, position throws(PushFailure) in
                    // SAFETY: parts of the memory, as `each` cuts it.
                    let part = unsafe UnsafeMutableRawBufferPointer(
                        rebasing: memory[done..<done + count])
                    try unsafe file.read(part, at: position)
                }
            }
        }
    }

    /// Begins to write a range of the disk back, so that the last flush has less to do.
    func beginWriteback(_ range: Range<UInt64>) {
        let count = Int(range.upperBound - range.lowerBound)
        if let mapped {
            // What is past the image has not been written either.
            try? mapped.each(at: range.lowerBound, count: count) { _, count, position in
                file.beginWriteback(at: position, count: count)
            }
        } else if image == nil {
            file.beginWriteback(at: range.lowerBound, count: count)
        }
    }

    /// Gives the room of a file back that was made for the backup, unless that is done by now;
    /// whether it is.
    @discardableResult
    func giveBack() -> Bool {
        let isDone = state.withLock { state in
            if state == .written { state = .given }
            return state == .done
        }
        guard !isDone else { return false }
        image?.kill()
        file.empty()
        return true
    }

    /// From here on it keeps its room; false when it has given it back.
    func keep() -> Bool {
        state.withLock { state in
            if state == .written { state = .done }
            return state == .done
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
        // Who reads it back has it for himself.
        lock.withLock { $0 = nil }
    }

    /// Calls `body` with ways to read the finished target.
    func readBack(_ body: ([Writer]) throws(PushFailure) -> Void) throws(PushFailure) {
        file.forgetCache()
        guard order.format == .qcow2 else { return try body([.file(file)]) }
        let (program, connect) = try ImageTarget.reopen(order, in: file.forPrograms)
        var peers: [NBDPeer] = []
        for _ in 0..<order.connections { peers.append(try connect()) }
        try body(peers.map { .peer($0) })
        for peer in peers { try peer.disconnect() }
        try program.wait()
    }
}
