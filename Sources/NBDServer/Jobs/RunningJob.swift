import IORing
import Synchronization

/// A job between its begin and its end.
struct RunningJob: Sendable {
    let id: String
    let exports: [BackupExport]
    let scope: ExportScope
    let listener: RingListener
    let holdNanoseconds: UInt64

    var report: JobReport {
        JobReport(
            disks: exports.map(\.report),
            clientCount: exports.reduce(0) { $0 + $1.clientCount.load(ordering: .relaxed) },
            holdNanoseconds: holdNanoseconds,
            brokenReason: exports.lazy.compactMap(\.brokenReason).first)
    }
}
