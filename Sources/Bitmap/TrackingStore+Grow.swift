import IORing

/// A disk that is served becomes larger.
extension TrackingStore {
    /// A store for the larger disk; nothing has changed for the smaller one.
    package struct Growth: Sendable {
        /// Its recording layer is the same file as the old one's, mapped anew.
        package let store: TrackingStore
        /// Blocks that are marked dirty in it already: they lie behind every word of the file that
        /// the home ring can still store to through the old layer.
        package let aheadBlocks: Int
        /// Where the first of them begins, in bytes; what the disk has grown by in front of it is
        /// for the home ring to mark.
        package let aheadStart: UInt64
    }

    /// Makes the recording layer's file long enough for `sizeBytes` and marks what is new.
    ///
    /// The record on disk still tells the old size, so that after a crash the new part counts as
    /// dirty, whatever became of its bits; `rewrite()` makes the new size durable once they are.
    package func grown(to sizeBytes: UInt64) throws(TrackingFault) -> Growth {
        let shift = granularityShift
        let serial = recording.serial
        let path = Self.bitsPath(directory, serial)
        let before = blockCount
        let after = Self.blockCount(sizeBytes, shift)
        let wide = try Self.naming(path) { () throws(SystemFault) in
            try RecordingLayer.open(
                path: path, serial: serial, blockCount: after, granularityShift: shift,
                recordedCount: before)
        }
        let known = wide.dirtyCount
        let firstAhead = (before + 63) & ~63
        let aheadStart = min(UInt64(firstAhead) << shift, sizeBytes)
        if aheadStart < sizeBytes {
            wide.mark(offset: aheadStart, length: sizeBytes - aheadStart)
        }
        var store = self
        store.record.source.sizeBytes = sizeBytes
        store.recording = wide
        return Growth(
            store: store, aheadBlocks: max(wide.dirtyCount - known, 0), aheadStart: aheadStart)
    }

    /// The largest disk whose changes can be tracked, in bytes.
    package static var growthBytesMax: UInt64 {
        UInt64(IntentLogCodec.regionCountMax) << IntentLogFile.regionShift
    }
}
