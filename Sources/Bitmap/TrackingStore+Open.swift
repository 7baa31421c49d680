import IORing

/// A disk's tracking is taken up again, after a clean stop, a kill or a loss of power.
extension TrackingStore {
    /// What is known before the recording layer is open.
    private struct Found {
        var chain: LayerChain
        var granularityBytes: UInt32
        /// Size at which the bits were recorded.
        var recordedBytes: UInt64
        /// The bits are known to be exact.
        var isExact: Bool
        /// Every block counts as dirty.
        var isAllDirty = false
        /// The machine was restarted in between: regions that the log names count as dirty.
        var needsLog = false
        var problem: String?
    }

    /// Opens a disk's tracking, or begins it.
    ///
    /// On return the record says that the disk is in use; `intentBytes` of zeros (or more) are to
    /// be written to the log before the first change. `bootID` names the time since the machine was
    /// started: a change of it is a loss of power; an empty one counts as a change.
    package static func open(
        directory: String, source: SourceIdentity, granularityBytes: UInt32,
        bootID: String = StateFiles.bootID()
    ) throws(TrackingFault) -> TrackingStore {
        try naming(directory) { () throws(SystemFault) in
            try StateFiles.makeDirectory(directory)
        }
        let names = StateFiles.names(in: directory)
        let found = try find(directory, names, source, granularityBytes, bootID)
        let shift = UInt64(found.granularityBytes.trailingZeroBitCount)
        let blocks = blockCount(source.sizeBytes, shift)
        var problem = found.problem
        var isAllDirty = found.isAllDirty
        let recording = try openRecording(
            directory, found, blocks, shift
        ) { text in
            problem = problem ?? text
            isAllDirty = true
        }
        // A layer that was made anew is all dirty already.
        let before = isAllDirty && !found.isAllDirty ? 0 : recording.dirtyCount
        addUnknownLayers(directory, names, found, to: recording)
        if found.needsLog {
            isAllDirty = !addRegions(directory, source, to: recording) || isAllDirty
        }
        if source.sizeBytes > found.recordedBytes {
            let edge = found.recordedBytes
            recording.mark(offset: edge, length: source.sizeBytes - edge)
        }
        if isAllDirty { recording.mark(offset: 0, length: source.sizeBytes) }
        let path = bitsPath(directory, recording.serial)
        try naming(path) { () throws(SystemFault) in try recording.sync() }
        let added = UInt64(recording.dirtyCount - before) << shift
        let record = TrackingRecord(
            source: source, granularityBytes: found.granularityBytes,
            bootID: bootID, isClean: false, chain: found.chain)
        try write(record, in: directory)
        removeUnknown(directory, names, found.chain)
        return TrackingStore(
            directory: directory, record: record, recording: recording,
            recoveredBytes: min(added, source.sizeBytes), problem: problem)
    }

    private static func find(
        _ directory: String, _ names: [String], _ source: SourceIdentity,
        _ granularityBytes: UInt32, _ bootID: String
    ) throws(TrackingFault) -> Found {
        let path = directory + "/" + recordName
        let bytes = try naming(path) { () throws(SystemFault) in
            try StateFiles.read(path, limit: TrackingRecord.bytesMax)
        }
        // Serials go on, so that no file of a chain that was given up is taken for a new one.
        let first = (names.compactMap(serial(in:)).max() ?? 0) + 1
        func fresh(_ problem: String?) -> Found {
            Found(
                chain: LayerChain(firstSerial: first), granularityBytes: granularityBytes,
                recordedBytes: source.sizeBytes, isExact: true, problem: problem)
        }
        guard let bytes else {
            let leftover = names.contains { serial(in: $0) != nil }
            return fresh(leftover ? "'\(path)' is missing: older checkpoints are lost" : nil)
        }
        guard let record = TrackingRecord.decode(bytes) else {
            return fresh("'\(path)' is damaged: older checkpoints are lost")
        }
        if record.source.path != source.path || record.source.inode != source.inode {
            return fresh(
                "the disk is another file now ('\(source.path)', before '\(record.source.path)'):"
                    + " older checkpoints are lost")
        }
        if record.source.sizeBytes > source.sizeBytes {
            return fresh(
                "the disk has shrunk from \(record.source.sizeBytes) to \(source.sizeBytes) bytes:"
                    + " older checkpoints are lost")
        }
        var found = Found(
            chain: record.chain, granularityBytes: record.granularityBytes,
            recordedBytes: record.source.sizeBytes, isExact: true)
        if record.chain.checkpoints.isEmpty, record.granularityBytes != granularityBytes {
            // Nothing can ask for what was recorded so far.
            return fresh(nil)
        }
        if record.isClean {
            found.isAllDirty =
                record.source.changedNanoseconds != source.changedNanoseconds
        } else {
            found.needsLog = record.bootID != bootID || record.bootID.isEmpty
        }
        return found
    }

    private static func openRecording(
        _ directory: String, _ found: Found, _ blocks: Int, _ shift: UInt64,
        lost: (String) -> Void
    ) throws(TrackingFault) -> RecordingLayer {
        let serial = found.chain.recordingSerial
        let path = bitsPath(directory, serial)
        if FileCalls.exists(path) {
            do throws(SystemFault) {
                return try RecordingLayer.open(
                    path: path, serial: serial, blockCount: blocks, granularityShift: shift,
                    recordedCount: blockCount(found.recordedBytes, shift))
            } catch {
                lost("'\(path)' cannot be read (\(error.errorText)): every block counts as dirty")
            }
        } else if !found.chain.checkpoints.isEmpty {
            lost("'\(path)' is missing: every block counts as dirty")
        }
        return try naming(path) { () throws(SystemFault) in
            if !found.chain.checkpoints.isEmpty {
                // Never clean, not even for a moment: the process may die before the next step.
                let bytes = RecordingLayer.allDirtyFile(serial: serial, blockCount: blocks)
                try StateFiles.replace(path, with: bytes)
                return try RecordingLayer.open(
                    path: path, serial: serial, blockCount: blocks, granularityShift: shift)
            }
            try FileCalls.remove(path)
            let layer = try RecordingLayer.create(
                path: path, serial: serial, blockCount: blocks, granularityShift: shift)
            try StateFiles.syncDirectory(of: path)
            return layer
        }
    }

    /// A layer that no record names was being made when the process died; it may have recorded.
    private static func addUnknownLayers(
        _ directory: String, _ names: [String], _ found: Found, to recording: RecordingLayer
    ) {
        guard !found.isAllDirty, found.problem == nil else { return }
        let known = Set(found.chain.layers.map(\.serial))
        for name in names where name.hasSuffix(".bits") {
            guard let serial = serial(in: name), !known.contains(serial),
                serial >= found.chain.nextSerial
            else { continue }
            do throws(SystemFault) {
                let layer = try RecordingLayer.open(
                    path: directory + "/" + name, serial: serial,
                    blockCount: recording.blockCount,
                    granularityShift: recording.granularityShift)
                recording.formUnion(layer.snapshot())
            } catch {
                recording.mark(
                    offset: 0,
                    length: UInt64(recording.blockCount) << recording.granularityShift)
            }
        }
    }

    /// Marks the regions that the log names; false when it cannot be read.
    private static func addRegions(
        _ directory: String, _ source: SourceIdentity, to recording: RecordingLayer
    ) -> Bool {
        guard let ranges = IntentLogFile.markedRanges(directory + "/" + intentName) else {
            return false
        }
        for range in ranges where range.lowerBound < source.sizeBytes {
            let end = min(range.upperBound, source.sizeBytes)
            recording.mark(offset: range.lowerBound, length: end - range.lowerBound)
        }
        return true
    }

    private static func removeUnknown(
        _ directory: String, _ names: [String], _ chain: LayerChain
    ) {
        let known = Set(chain.layers.map(\.serial))
        for name in names {
            guard let serial = serial(in: name), !known.contains(serial) else { continue }
            try? FileCalls.remove(directory + "/" + name)
        }
    }
}
