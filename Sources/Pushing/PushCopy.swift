import Foundation
import Glibc
import ServerInterface
import Synchronization
import SystemLayer

/// Copies one disk from the job's export to its target, and reads it back when asked to.
struct PushCopy: Sendable {
    let source: PushSource
    let order: PushOrder
    let target: PushTarget
    let progress: PushProgress

    /// What one request reads or writes.
    private static let pieceBytes = 512 << 10

    private let bitmap: String?
    private let content: BackupContent
    // Zeros are part of what changed; of a whole disk only where something else may be.
    private let writesZeros: Bool

    init(source: PushSource, order: PushOrder, target: PushTarget, progress: PushProgress) {
        self.source = source
        self.order = order
        self.target = target
        self.progress = progress
        bitmap = source.bitmap.map { "qemu:dirty-bitmap:" + $0 }
        content = BackupContent(
            sizeBytes: order.sizeBytes, bitmap: bitmap, unitBytes: target.unitBytes, progress)
        writesZeros = bitmap != nil || !target.isBlank
    }

    private func connect() throws(PushFailure) -> NBDPeer {
        try NBDPeer(
            socket: source.socketPath, export: source.exportName,
            contexts: [BackupContent.allocation] + (bitmap.map { [$0] } ?? []),
            what: "the job's export '\(source.exportName)'")
    }

    /// Copies everything, with as many threads as there are connections.
    func run() throws(PushFailure) {
        var peers = [try connect()]
        guard peers[0].sizeBytes == order.sizeBytes else {
            throw PushFailure(
                "the disk has \(peers[0].sizeBytes) bytes now, and \(order.sizeBytes) when its "
                    + "target was made")
        }
        try measure(peers[0])
        // A server that allows fewer connections is read over those that it does allow.
        while peers.count < order.connections, let more = try? connect() { peers.append(more) }
        // SAFETY (both of these calls): the memory is handed on for the time of the call.
        try unsafe each(peers) { index, peer, window, memory throws(PushFailure) in
            try unsafe copy(window, from: peer, to: target.writer(index), memory)
        }
        for peer in peers { try peer.disconnect() }
    }

    /// Compares what the finished target holds with the instant.
    func verify(_ readers: [PushTarget.Writer]) throws(PushFailure) {
        var peers = [try connect()]
        while peers.count < readers.count, let more = try? connect() { peers.append(more) }
        try unsafe each(peers) { index, peer, window, memory throws(PushFailure) in
            try unsafe compare(window, peer, readers[index], memory)
        }
        for peer in peers { try peer.disconnect() }
    }

    private func measure(_ peer: NBDPeer) throws(PushFailure) {
        let windows = DiskWindows(sizeBytes: order.sizeBytes)
        var total: UInt64 = 0
        while let window = windows.take() {
            for run in try content.runs(in: window, of: peer) where !run.isZero || writesZeros {
                total += run.count
            }
            progress.beat()
        }
        progress.total.store(total, ordering: .relaxed)
    }

    // One thread for each connection; the first failure ends all of them.
    private func each(
        _ peers: [NBDPeer],
        _ body:
            @escaping @Sendable (
                Int, NBDPeer, Range<UInt64>, UnsafeMutableRawBufferPointer
            ) throws(PushFailure) -> Void
    ) throws(PushFailure) {
        let windows = DiskWindows(sizeBytes: order.sizeBytes)
        let progress = progress
        let ended = Latch(count: peers.count)
        for (index, peer) in peers.enumerated() {
            let work: @Sendable () -> Void = {
                defer { ended.arrive() }
                // SAFETY: the memory is the thread's own until it is given back.
                let memory = UnsafeMutableRawBufferPointer.allocate(
                    byteCount: 2 * Self.pieceBytes, alignment: 4096)
                defer { unsafe memory.deallocate() }
                do throws(PushFailure) {
                    while progress.firstFailure == nil, let window = windows.take() {
                        try unsafe body(index, peer, window, memory)
                        progress.beat()
                    }
                } catch {
                    progress.fail(error)
                }
            }
            do throws(SystemFault) {
                try WorkerThread.start(name: "nbdpull-push-\(index)", body: work)
            } catch {
                progress.fail(PushFailure("no thread: \(error.call): \(error.errorText)"))
                ended.arrive()
            }
        }
        _ = ended.wait(milliseconds: -1)
        if let failure = progress.firstFailure { throw failure }
    }

    private func copy(
        _ window: Range<UInt64>, from peer: NBDPeer, to writer: PushTarget.Writer,
        _ memory: UnsafeMutableRawBufferPointer
    ) throws(PushFailure) {
        for run in try content.runs(in: window, of: peer) {
            let length = Int(run.count)
            if run.isZero {
                guard writesZeros else { continue }
                try writer.zero(at: run.offset, count: length)
                progress.note(written: length)
                continue
            }
            var done = 0
            while done < length {
                let count = min(Self.pieceBytes, length - done)
                let offset = run.offset + UInt64(done)
                progress.await(count)
                try target.file.room.check(count)
                // SAFETY: `count` is within the memory, which is this thread's.
                let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: memory[..<count])
                try unsafe peer.read(piece, at: offset)
                try unsafe write(UnsafeRawBufferPointer(piece), at: offset, to: writer)
                done += count
                progress.note(written: count)
            }
        }
        target.beginWriteback(window)
    }

    // Units of zeros are made holes, not written.
    private func write(
        _ piece: UnsafeRawBufferPointer, at offset: UInt64, to writer: PushTarget.Writer
    ) throws(PushFailure) {
        let unit = target.unitBytes
        var start = 0
        while start < piece.count {
            let isZero = unsafe Self.isZero(piece, start, unit)
            var end = min(start + unit, piece.count)
            while end < piece.count, unsafe Self.isZero(piece, end, unit) == isZero {
                end = min(end + unit, piece.count)
            }
            // SAFETY: both ends are within the piece.
            let part = unsafe UnsafeRawBufferPointer(rebasing: piece[start..<end])
            if !isZero {
                try unsafe writer.write(part, at: offset + UInt64(start))
            } else if writesZeros {
                try writer.zero(at: offset + UInt64(start), count: end - start)
            }
            start = end
        }
    }

    private static func isZero(
        _ piece: UnsafeRawBufferPointer, _ start: Int, _ unit: Int
    ) -> Bool {
        let count = min(unit, piece.count - start)
        guard count > 0, unsafe piece[start] == 0 else { return false }
        // SAFETY: bytes that equal their neighbours all equal the first; both ranges are within the
        // piece.
        guard count > 1, let base = unsafe piece.baseAddress?.advanced(by: start) else {
            return true
        }
        return unsafe memcmp(base, base.advanced(by: 1), count - 1) == 0
    }

    private func compare(
        _ window: Range<UInt64>, _ peer: NBDPeer, _ reader: PushTarget.Writer,
        _ memory: UnsafeMutableRawBufferPointer
    ) throws(PushFailure) {
        for run in try content.runs(in: window, of: peer) {
            let length = Int(run.count)
            var done = 0
            while done < length {
                let count = min(Self.pieceBytes, length - done)
                let offset = run.offset + UInt64(done)
                progress.await(count)
                // SAFETY: two ranges of the thread's memory, which has room for both.
                let wanted = unsafe UnsafeMutableRawBufferPointer(rebasing: memory[..<count])
                let found = unsafe UnsafeMutableRawBufferPointer(
                    rebasing: memory[Self.pieceBytes..<Self.pieceBytes + count])
                try unsafe peer.read(wanted, at: offset)
                try unsafe reader.read(found, at: offset)
                guard let one = wanted.baseAddress, let other = found.baseAddress,
                    unsafe memcmp(one, other, count) == 0
                else {
                    throw PushFailure(
                        "'\(order.path)' differs from the disk between bytes \(offset) and "
                            + "\(offset + UInt64(count)), read back")
                }
                done += count
                progress.beat()
            }
        }
    }
}
