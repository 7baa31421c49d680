import SystemLayer
package import Tracking

/// A disk's tracking is taken up again, after a clean stop, a kill or a loss of power.
extension TrackingStore {
    /// What is known before the bits are read.
    private struct Found {
        var chain: LayerChain
        var granularityBytes: UInt32
        /// Size at which the bits were recorded.
        var recordedBytes: UInt64
        /// The session that recorded them.
        var session = ""
        var trust = TrackingTrust.file
        var problem: String?
        /// Nothing was recorded before: there are no bits to be read.
        var isFresh = false
    }

    /// The bits that the recording layer begins with.
    private struct Bits {
        var bitmap: DirtyBitmap
        /// Blocks that were dirty already.
        var before: Int
        var problem: String?
    }

    /// Opens a disk's tracking, or begins it.
    ///
    /// On return the record says that the disk is in use, the session is announced, and the log
    /// marks nothing, or everything where the disk was not synced by a clean stop (`isAllMarked`).
    /// On an error nothing of this may have happened: then the disk is only to be served when a
    /// `TrackingDoubt` has said so.
    ///
    /// `earlierLoss`: the errno of writes that the disk has lost while nobody served it. No bit
    /// says which, so a chain with checkpoints is not opened.
    package static func open(
        _ places: TrackingPlaces, source: SourceIdentity, granularityBytes: UInt32,
        earlierLoss: Int32? = nil
    ) throws(TrackingFault) -> TrackingStore {
        let files = places.files
        let names = try naming(files.path) { () throws(SystemFault) in
            try files.make()
            return try files.names()
        }
        let mark = places.findMark()
        let found = try find(places, names, source, granularityBytes, mark)
        if let earlierLoss, !found.chain.checkpoints.isEmpty {
            throw .sourceLost(errno: earlierLoss)
        }
        let shift = UInt64(found.granularityBytes.trailingZeroBitCount)
        var bits = read(places, names, found, blockCount(source.sizeBytes, shift))
        if source.sizeBytes > found.recordedBytes, !found.isFresh {
            let edge = Int(found.recordedBytes >> shift)
            bits.bitmap.mark(edge..<bits.bitmap.blockCount)
        }
        let session = TrackingSession(
            id: TrackingSession.freshID(), bootID: places.bootID, state: .tracked,
            directory: files.path)
        let serial = found.chain.recordingSerial
        prepareMemory(places)
        let live = liveBits(serial, session: session.id, places)
        let whole = bits.bitmap
        // The bits take in what the old log marks, so they come before the new log; the record
        // comes last: until then all that it names is there, and more. Its name is made durable
        // with theirs, by one sync of the directory: nothing has changed on the disk before it, so
        // of each file the old and the new tell the truth, in any mixture that a loss of power
        // leaves.
        let recording = try naming(path(RecordingLayer.fileName(serial), places)) {
            () throws(SystemFault) in
            try RecordingLayer.create(
                in: files, serial: serial, granularityShift: shift, bits: whole, live: live,
                isNameDurable: false)
        }
        // What was written before may not have reached the disk yet, unless a clean stop has synced
        // it: a loss of power would undo changes of which the new log knows nothing.
        let isSynced = found.trust == .file && !found.isFresh
        let log = try naming(path(TrackingPlaces.intentName, places)) { () throws(SystemFault) in
            try IntentLogFile(
                in: files, diskBytes: source.sizeBytes, isAllMarked: !isSynced,
                isNameDurable: false)
        }
        let record = TrackingRecord(
            source: source, granularityBytes: found.granularityBytes, bootID: places.bootID,
            isClean: false, chain: found.chain, session: session.id, mark: mark.text)
        try write(record, places)
        removeUnknown(places, names, found.chain)
        _ = places.announce(session)
        let added = UInt64(whole.dirtyCount - bits.before) << shift
        return TrackingStore(
            places: places, record: record, recording: recording, log: log,
            recoveredBytes: min(added, source.sizeBytes), problem: found.problem ?? bits.problem)
    }

    // MARK: What there is

    private static func find(
        _ places: TrackingPlaces, _ names: [String], _ source: SourceIdentity,
        _ granularityBytes: UInt32, _ mark: Finding<String>
    ) throws(TrackingFault) -> Found {
        let name = TrackingPlaces.recordName
        let path = path(name, places)
        let bytes = try naming(path) { () throws(SystemFault) in
            try places.files.read(name, limit: TrackingRecord.bytesMax)
        }
        // Serials go on, so that no file of a chain that was given up is taken for a new one.
        let first = (names.compactMap(serial(in:)).max() ?? 0) + 1
        func fresh(_ problem: String?) throws(TrackingFault) -> Found {
            try checkBlocks(source.sizeBytes, granularityBytes)
            return Found(
                chain: LayerChain(firstSerial: first), granularityBytes: granularityBytes,
                recordedBytes: source.sizeBytes, problem: problem, isFresh: true)
        }
        guard let bytes else {
            let leftover = names.contains { serial(in: $0) != nil }
            return try fresh(leftover ? "'\(path)' is missing: older checkpoints are lost" : nil)
        }
        if let version = TrackingRecord.newerVersion(bytes) {
            throw .newer(path: path, version: version)
        }
        guard let record = TrackingRecord.decode(bytes) else {
            return try fresh("'\(path)' is damaged: older checkpoints are lost")
        }
        if let problem = difference(record.source, source) { return try fresh(problem) }
        if record.chain.checkpoints.isEmpty, record.granularityBytes != granularityBytes {
            // Nothing can ask for what was recorded so far.
            return try fresh(nil)
        }
        if blocksAreTooMany(source.sizeBytes, record.granularityBytes) {
            return try fresh(
                "the disk has grown to \(source.sizeBytes) bytes, too many for bits of"
                    + " \(record.granularityBytes) bytes: older checkpoints are lost")
        }
        let evidence = TrackingEvidence(
            record: record, session: places.findSession(), sessionIsInMemory: places.isInMemory,
            mark: mark, changedNanoseconds: source.changedNanoseconds, bootID: places.bootID)
        return Found(
            chain: record.chain, granularityBytes: record.granularityBytes,
            recordedBytes: record.source.sizeBytes, session: record.session,
            trust: evidence.trust)
    }

    /// Why a disk is not the one that was recorded, or nil.
    private static func difference(
        _ recorded: SourceIdentity, _ source: SourceIdentity
    ) -> String? {
        if recorded.path != source.path || recorded.inode != source.inode {
            return "the disk is another file now ('\(source.path)', before '\(recorded.path)'):"
                + " older checkpoints are lost"
        }
        if recorded.sizeBytes > source.sizeBytes {
            return "the disk has shrunk from \(recorded.sizeBytes) to \(source.sizeBytes) bytes:"
                + " older checkpoints are lost"
        }
        return nil
    }

    private static func blocksAreTooMany(_ sizeBytes: UInt64, _ granularityBytes: UInt32) -> Bool {
        let shift = UInt64(granularityBytes.trailingZeroBitCount)
        return UInt64(blockCount(sizeBytes, shift)) > LayerCodec.blockCountMax
    }

    static func checkBlocks(
        _ sizeBytes: UInt64, _ granularityBytes: UInt32
    ) throws(TrackingFault) {
        guard blocksAreTooMany(sizeBytes, granularityBytes) else { return }
        var needed = UInt64(granularityBytes)
        while (sizeBytes - 1) / needed >= LayerCodec.blockCountMax { needed *= 2 }
        throw .tooManyBlocks(
            sizeBytes: sizeBytes, granularityBytes: granularityBytes, neededBytes: needed)
    }

    // MARK: Bits

    private static func read(
        _ places: TrackingPlaces, _ names: [String], _ found: Found, _ blocks: Int
    ) -> Bits {
        var bits = Bits(bitmap: DirtyBitmap(blockCount: blocks), before: 0)
        if found.isFresh { return bits }
        func everything(_ problem: String?) -> Bits {
            bits.bitmap.mark(0..<blocks)
            bits.problem = problem
            return bits
        }
        let shift = UInt64(found.granularityBytes.trailingZeroBitCount)
        let serial = found.chain.recordingSerial
        if case .memory = found.trust, let live = liveUnion(places, names, found, blocks) {
            bits.bitmap = live
            bits.before = live.dirtyCount
            return bits
        }
        let path = path(RecordingLayer.fileName(serial), places)
        do throws(SystemFault) {
            guard let file = try places.files.openIfThere(RecordingLayer.fileName(serial)) else {
                if found.chain.checkpoints.isEmpty { return bits }
                return everything("'\(path)' is missing: every block counts as dirty")
            }
            bits.bitmap = try LayerFile.read(
                file, serial: serial, blockCount: blocks,
                recordedCount: blockCount(found.recordedBytes, shift))
            bits.before = bits.bitmap.dirtyCount
        } catch {
            return everything(
                "'\(path)' cannot be read (\(error.errorText)): every block counts as dirty")
        }
        switch found.trust {
        case .nothing(let reason):
            return everything(reason.map { "every block counts as dirty: \($0)" })
        case .file: return bits
        case .log, .memory: break
        }
        let isWhole =
            addUnknownLayers(places, names, found, to: &bits.bitmap)
            && addRegions(places, shift, to: &bits.bitmap)
        return isWhole ? bits : everything(nil)
    }

    /// The live bits of the layer that recorded, and of one that a checkpoint was being made with;
    /// nil when they are not all there.
    private static func liveUnion(
        _ places: TrackingPlaces, _ names: [String], _ found: Found, _ blocks: Int
    ) -> DirtyBitmap? {
        guard let memory = places.memory else { return nil }
        var serials: Set<UInt64> = [found.chain.recordingSerial]
        for name in names where name.hasSuffix(".bits") {
            if let serial = serial(in: name), serial >= found.chain.nextSerial {
                serials.insert(serial)
            }
        }
        var union = DirtyBitmap(blockCount: blocks)
        for serial in serials {
            do throws(SystemFault) {
                guard let file = try memory.openIfThere(LiveBits.fileName(serial)),
                    let bits = try LayerFile.readLive(
                        file, session: found.session, serial: serial, blockCount: blocks)
                else { return nil }
                union.formUnion(bits)
            } catch {
                return nil
            }
        }
        return union
    }

    /// A layer that no record names was being made when the process died; it may have recorded.
    ///
    /// False when one cannot be read.
    private static func addUnknownLayers(
        _ places: TrackingPlaces, _ names: [String], _ found: Found, to bitmap: inout DirtyBitmap
    ) -> Bool {
        for name in names where name.hasSuffix(".bits") {
            guard let serial = serial(in: name), serial >= found.chain.nextSerial else { continue }
            do throws(SystemFault) {
                let file = try places.files.open(name, writable: false)
                bitmap.formUnion(
                    try LayerFile.read(file, serial: serial, blockCount: bitmap.blockCount))
            } catch {
                return false
            }
        }
        return true
    }

    /// Marks the regions that the log names; false when it cannot be read.
    private static func addRegions(
        _ places: TrackingPlaces, _ shift: UInt64, to bitmap: inout DirtyBitmap
    ) -> Bool {
        guard let ranges = IntentLogFile.markedRanges(in: places.files) else { return false }
        for range in ranges {
            let first = Int(clamping: range.lowerBound >> shift)
            let end = min(Int(clamping: ((range.upperBound - 1) >> shift) + 1), bitmap.blockCount)
            if first < end { bitmap.mark(first..<end) }
        }
        return true
    }

    // MARK: Leftovers

    private static func removeUnknown(
        _ places: TrackingPlaces, _ names: [String], _ chain: LayerChain
    ) {
        let known = Set(chain.layers.map(\.serial))
        for name in names {
            let isUnknown = serial(in: name).map { !known.contains($0) } ?? false
            // What was being written when the process died.
            if isUnknown || name.hasSuffix(".new") { try? places.files.remove(name) }
            // The disk is served here again: what another server got of it is history.
            if name == TrackingPlaces.movedName { try? places.files.remove(name) }
        }
    }

    /// Live files of older sessions go: what they said has been read.
    private static func prepareMemory(_ places: TrackingPlaces) {
        guard let memory = places.memory else { return }
        try? memory.make()
        for name in (try? memory.names()) ?? [] where name.hasSuffix(".live") {
            try? memory.remove(name)
        }
    }
}

extension Finding<String> {
    /// What was found, or nothing.
    fileprivate var text: String {
        if case .found(let text) = self { text } else { "" }
    }
}
