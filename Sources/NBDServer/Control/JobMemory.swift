import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Tracking

/// The files in memory by which the next process goes on with one disk of a job.
struct JobMemory: Sendable {
    let directory: String
    let jobID: String
    /// The disk's number in its job.
    let disk: Int
    /// Why the first of the files that could not be kept was not.
    var fault: SystemFault? { firstFault.value }
    private let firstFault = FirstFault()

    init(directory: String, jobID: String, disk: Int) {
        self.directory = directory
        self.jobID = jobID
        self.disk = disk
    }

    private final class FirstFault: Sendable {
        private let kept = Mutex<SystemFault?>(nil)
        var value: SystemFault? { kept.withLock { $0 } }
        func note(_ fault: SystemFault) { kept.withLock { $0 = $0 ?? fault } }
    }

    private var ledgerPath: String { "\(directory)/\(jobID).\(disk).ledger" }
    /// Of the first bitmap that the disk's export offers, or one that follows.
    private func bitmapPath(_ index: Int) -> String {
        "\(directory)/\(jobID).\(disk).bitmap" + (index == 0 ? "" : "-\(index)")
    }

    /// Where the jobs' files of a server lie; nil when nothing there would outlive the process for
    /// certain.
    static func directory(_ configuration: ServerConfiguration) -> String? {
        guard configuration.servesJobs, let state = configuration.stateDirectory,
            let memory = NBDServer.memory("jobs", for: state, configuration.witnessDirectory),
            memory.isInMemory
        else { return nil }
        return memory.path
    }

    /// Makes a ledger's file; nil when that cannot be done: the job then ends with its process.
    func ledgerFile(_ facts: LedgerFacts) -> LedgerFile? {
        guard !facts.bootID.isEmpty, !facts.source.isEmpty, !facts.scratch.isEmpty else {
            return nil
        }
        do throws(SystemFault) {
            try StateFiles.makeDirectory(directory)
            guard StateFiles.isPrivate(directory), StateFiles.isMemory(directory) else {
                return nil
            }
            return try LedgerFile.create(path: ledgerPath, facts: facts)
        } catch {
            firstFault.note(error)
            return nil
        }
    }

    /// Opens the ledger's file that an earlier process has left.
    func leftLedger() throws(LedgerFileFault) -> LedgerFile.Found {
        try LedgerFile.open(path: ledgerPath)
    }

    /// Keeps a dirty bitmap as it is served; false when that cannot be done.
    func keep(_ bitmap: DirtyBitmap, _ index: Int, _ identity: LayerIdentity) -> Bool {
        do throws(SystemFault) {
            try FileCalls.remove(bitmapPath(index))
            let file = try FileCalls.open(bitmapPath(index), [.write, .createNew])
            try FileCalls.write(
                file.raw, LayerCodec.encode(bitmap, identity: identity), at: 0)
            return true
        } catch {
            firstFault.note(error)
            return false
        }
    }

    /// The dirty bitmap that an earlier process has kept; nil when it is not there, or not whole.
    func leftBitmap(_ index: Int) -> (DirtyBitmap, LayerIdentity)? {
        guard let bytes = try? StateFiles.read(bitmapPath(index), limit: Self.bitmapBytesMax)
        else {
            return nil
        }
        return try? LayerCodec.decode(bytes)
    }

    /// Removes all; who has them open goes on.
    func remove() {
        try? FileCalls.remove(ledgerPath)
        for name in StateFiles.names(in: directory)
        where name.hasPrefix("\(jobID).\(disk).bitmap") {
            try? FileCalls.remove(directory + "/" + name)
        }
    }

    /// Removes what belongs to none of these jobs.
    static func removeOthers(than jobs: Set<String>, in directory: String) {
        for name in StateFiles.names(in: directory) {
            guard let dot = name.firstIndex(of: "."), !jobs.contains(String(name[..<dot])) else {
                continue
            }
            try? FileCalls.remove(directory + "/" + name)
        }
    }

    private static let bitmapBytesMax = 1 << 30
}

/// What an earlier process has left of one disk of a job, checked and found whole.
struct LeftExport: Sendable {
    let facts: LedgerFacts
    let figures: LedgerFile.Figures
    let ledger: Ledger
    let memory: JobMemory
    /// The frozen bitmaps that its export offers, and the shift of their granularity.
    let bitmaps: [DirtyBitmap]
    let granularityShift: UInt64
}

extension BackupExport {
    /// Keeps the frozen bitmaps for the next process; where that fails the job ends with this one.
    func keepBitmaps() {
        guard let memory, let file = ledger.file else { return }
        for (index, dirty) in bitmaps.enumerated() {
            let identity = LayerIdentity(
                diskBytes: geometry.sizeBytes,
                granularityBytes: UInt32(1) << UInt32(dirty.granularityShift), serial: 0)
            let bitmap = dirty.bitmap
            guard UInt64(bitmap.blockCount) == identity.blockCount,
                memory.keep(bitmap, index, identity)
            else { return file.giveUp() }
        }
    }
}
