import Disk
import NBDProtocol
import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Tracking

/// One disk of a job as backup clients read it: the disk at the job's instant.
///
/// Connections hold it while they live, so the ledger, the scratch and the source outlast every
/// read in flight.
final class BackupExport: Sendable {
    let id = ExportID.next()
    let jobID: String
    let target: String
    let disk: DiskID
    let homeRing: Int
    let source: RawSource
    let scratch: ScratchStorage
    let writer: ScratchWriter
    let kept: KeptRoom
    /// Bytes that scratch can take as far as is known at the begin.
    let roomBytes: UInt64
    let ledger: Ledger
    let description: ExportDescription
    /// A client's TRIM says that it does not need the range any more.
    let mayRelease: Bool
    let geometry: ClusterGeometry
    let copyTimeoutNanoseconds: UInt64
    /// The bitmaps behind the export's contexts from index 1 on, each with everything written since
    /// its checkpoint, frozen at the instant.
    ///
    /// Filled before the first client can come; none on full backups.
    let bitmaps: [FrozenBitmap]
    /// The backup is made from the first of them.
    let isIncremental: Bool
    let clientCount = Atomic<Int>(0)
    let bytesRead = Atomic<UInt64>(0)
    /// Bytes that the source took on its file system at the begin.
    private let allocatedBytes: UInt64
    let scratchUsedBytes = Atomic<UInt64>(0)
    /// The watermark event has been sent.
    let watermarkSent = Atomic<Bool>(false)
    /// Bytes that scratch can still take, as the watch saw it last; `.max` before it has looked.
    let scratchFreeBytes = Atomic<UInt64>(.max)
    /// What clients have read and what is preserved, cell by cell, for people to see.
    let cells: JobCells
    /// Where the files lie by which the next process goes on; nil: nowhere.
    let memory: JobMemory?
    /// Losses of the source that were known before the job's instant.
    ///
    /// Where a checkpoint or a bitmap depends on it, the source is asked once more after this
    /// (`store`) and the begin refused: whatever is counted here is noticed there.
    private let earlierSourceLosses: Int
    private let reason = Mutex<BreakReason?>(nil)

    /// A new job's export, or one that an earlier process has `left`.
    ///
    /// `memory`: where the files lie by which the next process goes on.
    init(
        _ configuration: JobDiskConfiguration, jobID: String, live: LiveExport,
        scratch: ScratchStorage, home: Mailbox<RingMessage>, reservedBytes: UInt64,
        allocatedBytes: UInt64, granularityShift: UInt64, copyTimeoutMilliseconds: UInt64,
        mayRelease: Bool, startThread: @escaping ThreadStart = WorkerThread.start,
        memory: JobMemory? = nil, left: LeftExport? = nil
    ) throws(SystemFault) {
        bitmaps = configuration.bitmaps.map {
            FrozenBitmap(
                name: $0.bitmap, checkpoint: $0.checkpoint, granularityShift: granularityShift)
        }
        isIncremental = configuration.incremental != nil
        self.jobID = jobID
        target = configuration.target
        disk = live.disk
        homeRing = live.homeRing
        source = live.source
        // What was lost before a new job's instant is part of it; a job that goes on had its
        // instant before.
        earlierSourceLosses = left == nil ? live.source.losses().count : 0
        self.scratch = scratch
        kept = KeptRoom(reservedBytes)
        self.allocatedBytes = allocatedBytes
        let room = left?.facts.roomBytes ?? scratch.roomBytes(leaving: reservedBytes)
        roomBytes = room
        writer = ScratchWriter(scratch, home: home, kept: kept, start: startThread)
        // Once: a disk may grow meanwhile.
        let sizeBytes = left?.facts.sizeBytes ?? live.source.sizeBytes
        geometry = ClusterGeometry(sizeBytes: sizeBytes)
        cells = try JobCells(sizeBytes: sizeBytes)
        self.memory = left?.memory ?? memory
        if let left {
            ledger = left.ledger
            bytesRead.store(left.figures.bytesRead, ordering: .relaxed)
            watermarkSent.store(left.figures.isAboveWatermark, ordering: .relaxed)
        } else {
            let file = memory?.ledgerFile(
                LedgerFacts(
                    bootID: StateFiles.bootID(), jobID: jobID, target: configuration.target,
                    sizeBytes: sizeBytes, source: live.source.identity,
                    scratch: scratch.node?.text ?? "", scratchBytes: scratch.deviceBytes,
                    roomBytes: room, reservedBytes: reservedBytes,
                    allocatedBytes: allocatedBytes, hasBitmap: !bitmaps.isEmpty))
            do throws(SystemFault) {
                ledger = try Ledger(geometry: geometry, file: file)
            } catch {
                memory?.remove()
                throw error
            }
        }
        self.mayRelease = mayRelease
        copyTimeoutNanoseconds = copyTimeoutMilliseconds.saturatingMultiply(1_000_000)
        // A client sends no TRIM to an export that calls itself read-only.
        let kind: TransmissionFlags = mayRelease ? .sendTrim : .readOnly
        description = ExportDescription(
            name: configuration.exportName, description: nil,
            sizeBytes: sizeBytes,
            flags: kind.union([.hasFlags, .sendFlush, .sendFUA, .sendCache, .canMultiConn]),
            takesWrites: false,
            contexts: [MetaContext.allocation]
                + bitmaps.map { MetaContext.dirtyBitmapPrefix + $0.name })
    }

    /// Why the job's disk broke, or nil while it is whole.
    var brokenReason: BreakReason? { reason.withLock { $0 } }

    /// Keeps the first reason; returns whether this was it.
    func noteBroken(_ new: BreakReason) -> Bool {
        reason.withLock { reason in
            if reason != nil { return false }
            reason = new
            return true
        }
    }

    /// Why what was read so far cannot be relied on, as far as the kernel has found out; asked
    /// before any verdict, and now and then.
    var loss: BreakCause? {
        if let errno = scratch.writeError() { return .scratchLost(errno: errno) }
        let found = source.losses()
        return found.count > earlierSourceLosses ? .sourceLost(errno: found.errno) : nil
    }

    /// Whether the next process could go on with it.
    var isLasting: Bool { ledger.file?.isWhole ?? false }

    /// Keeps what people want to know, and when it was known, for the next process.
    func keepFigures() {
        ledger.file?.keep(
            LedgerFile.Figures(
                wallTime: MonotonicClock.wallTime(),
                bytesRead: bytesRead.load(ordering: .relaxed),
                isAboveWatermark: watermarkSent.load(ordering: .relaxed),
                doubt: source.doubt))
    }

    var report: JobDiskReport {
        var report = JobDiskReport(
            target: target, sizeBytes: source.sizeBytes,
            scratchUsedBytes: scratchUsedBytes.load(ordering: .relaxed),
            preservedClusters: ledger.preservedClusters.load(ordering: .relaxed),
            zeroClusters: ledger.zeroClusters.load(ordering: .relaxed),
            bytesRead: bytesRead.load(ordering: .relaxed), bytesToRead: bytesToRead)
        report.scratchLimitBytes = roomBytes
        report.scratchFreeBytes = freeBytes(used: report.scratchUsedBytes)
        return report
    }

    /// Where reads of a client leave their mark.
    var readCells: ReadCells { cells.read }

    private func freeBytes(used: UInt64) -> UInt64? {
        if scratch.deviceBytes > 0 { return scratch.deviceBytes - min(used, scratch.deviceBytes) }
        let seen = scratchFreeBytes.load(ordering: .relaxed)
        return seen == .max ? nil : seen - min(kept.bytes, seen)
    }

    private var bytesToRead: UInt64 {
        (isIncremental ? bitmaps.first : nil)?.dirtyBytes(ofSize: geometry.sizeBytes)
            ?? min(allocatedBytes, geometry.sizeBytes)
    }
}

/// One dirty bitmap of an incremental job.
final class FrozenBitmap: Sendable {
    /// Behind `qemu:dirty-bitmap:`.
    let name: String
    let checkpoint: String
    let granularityShift: UInt64
    private let box = BitmapBox()

    init(name: String, checkpoint: String, granularityShift: UInt64) {
        self.name = name
        self.checkpoint = checkpoint
        self.granularityShift = granularityShift
    }

    /// Set once, before the job's listener accepts.
    func freeze(_ bitmap: DirtyBitmap) { box.put(bitmap) }

    /// Bytes that are dirty, of a disk of `sizeBytes`.
    func dirtyBytes(ofSize sizeBytes: UInt64) -> UInt64 {
        let bitmap = bitmap
        let blocks = UInt64(bitmap.dirtyCount) << granularityShift
        guard bitmap.blockCount > 0, bitmap.isDirty(bitmap.blockCount - 1) else { return blocks }
        let covered = UInt64(bitmap.blockCount) << granularityShift
        return blocks - min(covered - min(sizeBytes, covered), blocks)
    }

    /// The bits; a job without them is never served.
    var bitmap: DirtyBitmap {
        guard let bitmap = box.bitmap else {
            preconditionFailure("an incremental export is served before its bitmap is frozen")
        }
        return bitmap
    }
}
