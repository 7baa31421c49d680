import SystemLayer
import Tracking

/// A disk that is served becomes larger.
extension TrackingStore {
    /// A log for the larger disk that marks every region, durable when this returns.
    ///
    /// It covers whatever the present one marks, now and until the ring uses this one; after a
    /// crash in between everything counts as dirty.
    package func logForGrowth(to sizeBytes: UInt64) throws(TrackingFault) -> IntentLogFile {
        try Self.checkBlocks(sizeBytes, record.granularityBytes)
        return try Self.naming(Self.path(TrackingPlaces.intentName, places)) {
            () throws(SystemFault) in
            try IntentLogFile(in: places.files, diskBytes: sizeBytes, isAllMarked: true)
        }
    }

    /// Blocks of the disk when it has so many bytes.
    package func blockCount(of sizeBytes: UInt64) -> Int {
        Self.blockCount(sizeBytes, granularityShift)
    }

    /// The store of the larger disk, whose home ring records in `recording` and marks in `log`.
    ///
    /// The record on disk still tells the old size, so that after a crash the new part counts as
    /// dirty, whatever became of its bits; `saveGrowth` makes the new size durable once they are.
    package func grown(
        to sizeBytes: UInt64, recording: RecordingLayer, log: IntentLogFile
    ) -> TrackingStore {
        var store = self
        store.record.source.sizeBytes = sizeBytes
        store.recording = recording
        store.log = log
        return store
    }

    /// Makes the bits of the larger disk durable, then its size.
    package func saveGrowth() throws(TrackingFault) {
        let layer = recording
        try Self.naming(Self.path(RecordingLayer.fileName(layer.serial), places)) {
            () throws(SystemFault) in try layer.saveWhole()
        }
        try rewrite()
    }
}
