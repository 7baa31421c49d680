import BoundedCalls
import Disk
import PointInTime
import ScratchFiles
import ServerInterface
import SystemLayer
import Tracking

/// Judges what an earlier process has left of one disk of a job: where any doubt is left, the job
/// does not go on.
struct LeftJob {
    private typealias Refusal = PreparedExport.Refusal

    private let job: JobResumption
    private let configuration: JobDiskConfiguration
    private let memory: JobMemory
    private let readers: Int
    private let reserved: ReservedPaths

    init(
        _ job: JobResumption, _ disk: Int, _ memory: JobMemory, readers: Int,
        reserved: ReservedPaths
    ) {
        self.job = job
        self.reserved = reserved
        self.memory = memory
        self.readers = readers
        configuration = job.configuration.disks[disk]
    }

    private var target: String { configuration.target }
    var jobID: String { job.configuration.id }
    var scratchPath: String { configuration.scratch.path }

    /// Opens the ledger, which lies in memory.
    func ledger() throws(PreparedExport.Refusal) -> LedgerFile.Found {
        guard StateFiles.isMemory(memory.directory) else {
            throw Refusal("'\(memory.directory)' does not lie in memory")
        }
        let found = try sorted { () throws(LedgerFileFault) in try memory.leftLedger() }
        let facts = found.facts
        guard facts.jobID == job.configuration.id, facts.target == target else {
            throw Refusal("the ledger of disk '\(target)' is another job's")
        }
        let boot = StateFiles.bootID()
        guard !boot.isEmpty, facts.bootID == boot else {
            throw Refusal("the machine was restarted while the job ran")
        }
        return found
    }

    /// Opens scratch and bitmap; may wait as long as scratch does.
    func open(_ found: LedgerFile.Found) throws(PreparedExport.Refusal) -> PreparedExport.Found {
        let facts = found.facts
        let scratch = try openScratch(facts)
        let ledger = try sorted { () throws(LedgerFileFault) in
            try Ledger(found, slotLimit: scratch.slotLimit)
        }
        try judge(scratch, ledger, found)
        let (bitmaps, shift) = try openBitmaps(facts)
        return PreparedExport.Found(
            left: LeftExport(
                facts: facts, figures: found.figures, ledger: ledger, memory: memory,
                bitmaps: bitmaps, granularityShift: shift),
            scratch: scratch)
    }

    // MARK: Ledger

    private func sorted<Value>(
        _ body: () throws(LedgerFileFault) -> Value
    ) throws(PreparedExport.Refusal) -> Value {
        do throws(LedgerFileFault) {
            return try body()
        } catch {
            throw Refusal(text(error))
        }
    }

    private func text(_ fault: LedgerFileFault) -> String {
        let ledger = "the ledger of disk '\(target)'"
        return switch fault {
        case .system(let fault) where fault.errno == Errno.notFound:
            "\(ledger) is gone from memory"
        case .system(let fault): "\(ledger) cannot be read: \(fault.call): \(fault.errorText)"
        case .header(.version(let version)):
            "\(ledger) has version \(version), this program reads version \(LedgerFacts.version)"
        case .header, .implausible: "\(ledger) is damaged"
        case .notWhole: "the server stopped while the job was broken, or was being begun or ended"
        }
    }

    // MARK: Source

    /// Refuses a source that may not be as it was left; may wait as long as the source does.
    func judge(
        _ source: RawSource, _ found: LedgerFile.Found
    ) throws(PreparedExport.Refusal) {
        guard !source.identity.isEmpty, source.identity == found.facts.source else {
            throw Refusal("disk '\(target)' is another file or device now ('\(source.path)')")
        }
        guard source.sizeBytes >= found.facts.sizeBytes else {
            throw Refusal(
                "disk '\(target)' was cut from \(found.facts.sizeBytes) to \(source.sizeBytes)"
                    + " bytes while no server had it")
        }
        if let errno = source.earlierLoss {
            throw Refusal(
                "writes of the machine to disk '\(target)' were lost: \(SystemFault.text(for: errno))"
            )
        }
        switch found.figures.doubt {
        case nil: break
        case .hungSync:
            throw Refusal(
                "a sync of disk '\(target)' had not ended when its server did: writes of the machine"
                    + " may be lost, and nobody is told of that any more")
        case .lostWrites:
            throw Refusal(
                "writes of the machine to disk '\(target)' were lost while its server let go of it")
        }
        // Who else has changed an upstream cannot be told, as of a device.
        guard source.remote == nil else { return }
        try judgeTime(of: source.raw, "disk '\(target)'", found)
    }

    private func judgeTime(
        of descriptor: Int32, _ what: String, _ found: LedgerFile.Found
    ) throws(PreparedExport.Refusal) {
        let changed: UInt64?
        do throws(SystemFault) {
            changed = try FileCalls.changeTime(descriptor)
        } catch {
            throw Refusal("\(what) cannot be looked at: \(error.call): \(error.errorText)")
        }
        guard let changed else { return }
        let known = found.figures.wallTime
        if changed > known, changed - known > Limits.resumeSlackNanoseconds {
            throw Refusal("\(what) was changed while no server had it")
        }
    }

    // MARK: Scratch

    private func openScratch(
        _ facts: LedgerFacts
    ) throws(PreparedExport.Refusal) -> ScratchStorage {
        let scratch = try openFreeScratch(ClusterGeometry(sizeBytes: facts.sizeBytes))
        guard scratch.node?.text == facts.scratch, scratch.deviceBytes == facts.scratchBytes else {
            throw Refusal("scratch '\(scratchPath)' is not the one that the job had")
        }
        return scratch
    }

    /// What the last process had asked the kernel for when it died keeps the file in use for a
    /// moment.
    private func openFreeScratch(
        _ geometry: ClusterGeometry
    ) throws(PreparedExport.Refusal) -> ScratchStorage {
        do throws(ScratchFault) {
            return try InUse.outwait(
                nanoseconds: Limits.resumeInUseNanoseconds, while: NBDServer.isInUse
            ) { () throws(ScratchFault) in try openScratch(geometry) }
        } catch {
            throw Refusal(text(error))
        }
    }

    private func openScratch(_ geometry: ClusterGeometry) throws(ScratchFault) -> ScratchStorage {
        let path = scratchPath
        return switch (configuration.scratch.kind, configuration.scratch.reuseExternal) {
        case (.network, _):
            throw .unusable(.system(SystemFault(call: "open", errno: Errno.notSupported)))
        case (.block, _):
            try .device(path: path, geometry: geometry, readers: readers, reserved: reserved)
        case (.file, true):
            try .reuse(path: path, geometry: geometry, readers: readers, reserved: reserved)
        case (.file, false):
            try .reopen(path: path, geometry: geometry, readers: readers, reserved: reserved)
        }
    }

    private func text(_ fault: ScratchFault) -> String {
        let scratch = "scratch '\(scratchPath)'"
        return switch fault {
        case .unusable(.system(let fault)) where fault.errno == Errno.notFound:
            "\(scratch) is gone"
        case .unusable(let fault): "\(scratch) cannot be opened: \(NBDServer.detail(of: fault))"
        case .exists, .cannotCreate, .tooSmall:
            "\(scratch) is not the one that the job had"
        }
    }

    private func judge(
        _ scratch: ScratchStorage, _ ledger: Ledger, _ found: LedgerFile.Found
    ) throws(PreparedExport.Refusal) {
        let what = "scratch '\(scratchPath)'"
        let size: UInt64
        do throws(SystemFault) {
            size = try FileCalls.facts(scratch.raw).sizeBytes
        } catch {
            throw Refusal("\(what) cannot be looked at: \(error.call): \(error.errorText)")
        }
        let needed = UInt64(ledger.found?.slotsUsed ?? 0) << ClusterGeometry.shift
        guard size >= needed else {
            throw Refusal("\(what) was cut to \(size) bytes: the job has \(needed) there")
        }
        if let errno = scratch.earlierError ?? scratch.writeError() {
            throw Refusal("\(what) lost what was written to it: \(SystemFault.text(for: errno))")
        }
        try judgeTime(of: scratch.raw, what, found)
    }

    // MARK: Bitmap

    private func openBitmaps(
        _ facts: LedgerFacts
    ) throws(PreparedExport.Refusal) -> ([DirtyBitmap], UInt64) {
        var bitmaps: [DirtyBitmap] = []
        var shift: UInt64 = 0
        for index in configuration.bitmaps.indices {
            guard facts.hasBitmap, let (bitmap, identity) = memory.leftBitmap(index),
                identity.diskBytes == facts.sizeBytes
            else { throw Refusal("a dirty bitmap of disk '\(target)' is gone from memory") }
            bitmaps.append(bitmap)
            shift = UInt64(identity.granularityBytes.trailingZeroBitCount)
        }
        return (bitmaps, shift)
    }
}
