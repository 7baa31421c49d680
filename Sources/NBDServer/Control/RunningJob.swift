import ServerInterface
import Synchronization

/// A job between its begin and its end.
struct RunningJob: Sendable {
    let id: String
    let exports: [BackupExport]
    let scope: ExportScope
    let listener: RingListener
    let holdNanoseconds: UInt64

    /// A momentary look; asks storage whether it still has what was written to it.
    func report(_ shared: ServerShared) -> JobReport {
        let reason = Self.firstReason(of: exports, shared)
        return JobReport(
            disks: exports.map(\.report),
            clientCount: exports.reduce(0) { $0 + $1.clientCount.load(ordering: .relaxed) },
            holdNanoseconds: holdNanoseconds, brokenReason: reason)
    }

    /// Why the job is broken, after storage was asked; nil while it is whole.
    static func firstReason(of exports: [BackupExport], _ shared: ServerShared) -> String? {
        for export in exports {
            if let loss = export.loss { shared.breakNow(export, loss) }
        }
        return exports.lazy.compactMap { $0.brokenReason?.whole }.first
    }
}
