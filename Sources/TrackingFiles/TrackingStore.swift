package import SystemLayer
package import Tracking

/// Why a disk's tracking cannot do what it is asked.
package enum TrackingFault: Error, Sendable, Hashable {
    /// A call on a file of the tracking directory failed.
    case system(path: String, SystemFault)
    /// The chain has no such checkpoint.
    case unknownCheckpoint(String)
    /// The chain has a checkpoint of that name.
    case checkpointExists(String)
    /// A sealed layer cannot be read: checkpoints that need it cannot be used.
    case damagedLayer(path: String, detail: String)
    /// The disk has more blocks than a bitmap can have; `neededBytes` is the smallest granularity
    /// that would do.
    case tooManyBlocks(sizeBytes: UInt64, granularityBytes: UInt32, neededBytes: UInt64)
    /// The disk has lost writes that had succeeded, and checkpoints depend on them.
    case sourceLost(errno: Int32)
    /// The record has no room for another checkpoint.
    case recordFull(limitBytes: Int)
    /// A later version wrote the record: nothing of it is changed.
    case newer(path: String, version: UInt64)
    /// It was said meanwhile that changes are not recorded: nothing is written that says otherwise.
    case lost
    /// The disk's tracking cannot go to another server, or come from one; says why.
    case notMoved(String)
}

/// The tracking of one disk: its files and what they mean.
///
/// `record` says which layers there are. `layer-N.bits` holds the bits of the layer that records,
/// or of one sealed lately. `layer-N.z` is a sealed layer, compressed. `intent` is the write-intent
/// log. In memory lie `session` and, for each layer that records, `layer-N.live`. Used by the
/// control thread; the home ring has the recording layer and the log.
///
/// What survives: a killed process loses nothing, because every bit lies in the live file before
/// its change is made. After a loss of power, or where the live file is not to be had, every region
/// that the log names counts as dirty. A layer file that no record knows (the process died between
/// two steps) is added to what is recorded. Every doubt makes more blocks dirty, never fewer.
///
/// Whatever must last is written to a new file, synced, and put in place with its name: an error
/// that was reported once, and a later success that means nothing, cannot be mistaken for it.
package struct TrackingStore: Sendable {
    package let places: TrackingPlaces
    package internal(set) var record: TrackingRecord
    package internal(set) var recording: RecordingLayer
    package internal(set) var log: IntentLogFile
    /// Bytes that became dirty to be safe, when the store was opened.
    package let recoveredBytes: UInt64
    /// Why older checkpoints were given up, or everything counts as dirty, when the store was
    /// opened.
    package let problem: String?

    /// The largest granularity there is, in bytes.
    package static let granularityBytesMax: UInt64 = 2 << 20

    /// log2 of the bytes that one bit covers.
    package var granularityShift: UInt64 {
        UInt64(record.granularityBytes.trailingZeroBitCount)
    }

    /// Blocks of the disk.
    package var blockCount: Int {
        Self.blockCount(record.source.sizeBytes, granularityShift)
    }

    /// No overflow: sizes have at most 62 bits.
    static func blockCount(_ sizeBytes: UInt64, _ shift: UInt64) -> Int {
        Int((sizeBytes + (UInt64(1) << shift) - 1) >> shift)
    }

    init(
        places: TrackingPlaces, record: TrackingRecord, recording: RecordingLayer,
        log: IntentLogFile, recoveredBytes: UInt64, problem: String?
    ) {
        self.places = places
        self.record = record
        self.recording = recording
        self.log = log
        self.recoveredBytes = recoveredBytes
        self.problem = problem
    }

    // MARK: Files

    private var files: any TrackedDirectory { places.files }

    static func path(_ name: String, _ places: TrackingPlaces) -> String {
        places.files.path + "/" + name
    }

    static func sealedName(_ serial: UInt64) -> String { "layer-\(serial).z" }

    /// The serial in a layer file's name, or nil for other names.
    static func serial(in name: String) -> UInt64? {
        guard name.hasPrefix("layer-"), let dot = name.lastIndex(of: "."),
            let serial = UInt64(name[name.index(name.startIndex, offsetBy: 6)..<dot]),
            serial <= LayerChain.serialMax / 2
        else { return nil }
        return serial
    }

    /// Runs a file call and names the file when it fails.
    static func naming<Value>(
        _ path: String, _ body: () throws(SystemFault) -> Value
    ) throws(TrackingFault) -> Value {
        do throws(SystemFault) {
            return try body()
        } catch {
            throw .system(path: path, error)
        }
    }

    static func write(
        _ record: TrackingRecord, _ places: TrackingPlaces
    ) throws(TrackingFault) {
        let bytes = record.encode()
        guard bytes.count <= TrackingRecord.bytesMax else {
            throw .recordFull(limitBytes: TrackingRecord.bytesMax)
        }
        let isIn = try naming(path(TrackingPlaces.recordName, places)) {
            () throws(SystemFault) in
            try places.files.replace(
                TrackingPlaces.recordName, with: bytes, through: places.gate)
        }
        if !isIn { throw .lost }
    }

    /// A live file for a layer, when there is memory for it.
    static func liveBits(
        _ serial: UInt64, session: String, _ places: TrackingPlaces
    ) -> LiveBits? {
        guard places.isInMemory, let memory = places.memory else { return nil }
        return try? LiveBits(in: memory, serial: serial, session: session)
    }

    /// A layer without a live file: one that an earlier attempt could not remove would be taken for
    /// its own.
    private static func removeLive(
        _ serial: UInt64, _ places: TrackingPlaces
    ) throws(TrackingFault) {
        guard places.isInMemory, let memory = places.memory else { return }
        let name = LiveBits.fileName(serial)
        try naming(memory.path + "/" + name) { () throws(SystemFault) in try memory.remove(name) }
    }

    // MARK: Checkpoints

    /// Makes the layer that will record after the next checkpoint.
    ///
    /// Its file is durable before any change is recorded in it; until `seal` no record names it.
    package func prepareNext() throws(TrackingFault) -> RecordingLayer {
        let serial = record.chain.nextSerial
        let bits = DirtyBitmap(blockCount: blockCount)
        let live = Self.liveBits(serial, session: record.session, places)
        if live == nil { try Self.removeLive(serial, places) }
        let shift = granularityShift
        return try Self.naming(Self.path(RecordingLayer.fileName(serial), places)) {
            () throws(SystemFault) in
            try RecordingLayer.create(
                in: files, serial: serial, granularityShift: shift, bits: bits, live: live)
        }
    }

    /// Gives up a layer that `prepareNext` made and that has recorded nothing of its own.
    package func abandon(_ next: RecordingLayer) {
        try? files.remove(RecordingLayer.fileName(next.serial))
        next.dropLive()
    }

    /// The home ring records in `next` since the instant of the checkpoint: makes that durable.
    ///
    /// When it fails nothing has changed here; the caller takes the ring back to the old layer.
    package mutating func seal(
        checkpoint: String, next: RecordingLayer
    ) throws(TrackingFault) {
        var changed = record
        guard let step = changed.chain.begin(checkpoint: checkpoint) else {
            throw .checkpointExists(checkpoint)
        }
        precondition(step.recording == next.serial, "layers are used in order")
        let old = recording
        try saveSurely(old)
        try Self.write(changed, places)
        record = changed
        recording = next
        if !step.keepsSealed { try? files.remove(RecordingLayer.fileName(old.serial)) }
        old.dropLive()
    }

    /// Makes a layer's bits durable, in a new file when the present one fails.
    private func saveSurely(_ layer: RecordingLayer) throws(TrackingFault) {
        try Self.naming(Self.path(RecordingLayer.fileName(layer.serial), places)) {
            () throws(SystemFault) in
            do throws(SystemFault) {
                try layer.save()
            } catch {
                try layer.saveWhole()
            }
        }
    }

    /// What the sealed layers since a checkpoint say; with the recording layer's bits it is
    /// everything written since.
    package func sealedUnion(since checkpoint: String) throws(TrackingFault) -> DirtyBitmap {
        guard let serials = record.chain.serials(since: checkpoint) else {
            throw .unknownCheckpoint(checkpoint)
        }
        var union = DirtyBitmap(blockCount: blockCount)
        for serial in serials.dropLast() { union.formUnion(try sealed(serial)) }
        return union
    }

    /// Everything written since a checkpoint: its layer and all later ones, `recording` the last.
    package func union(
        since checkpoint: String, recording bits: DirtyBitmap
    ) throws(TrackingFault) -> DirtyBitmap {
        var union = try sealedUnion(since: checkpoint)
        union.formUnion(bits)
        return union
    }

    /// A sealed layer, widened with clean blocks when the disk has grown since.
    ///
    /// What a disk has grown by is dirty in the layer that recorded then.
    package func sealed(_ serial: UInt64) throws(TrackingFault) -> DirtyBitmap {
        try Self.sealed(serial, of: record, places)
    }

    static func sealed(
        _ serial: UInt64, of record: TrackingRecord, _ places: TrackingPlaces
    ) throws(TrackingFault) -> DirtyBitmap {
        let name = sealedName(serial)
        let path = path(name, places)
        let blocks = blockCount(
            record.source.sizeBytes, UInt64(record.granularityBytes.trailingZeroBitCount))
        let limit = LayerCodec.headerBytes + blocks / 4 + (1 << 20)
        let bytes = try naming(path) { () throws(SystemFault) in
            try places.files.read(name, limit: limit)
        }
        guard let bytes else { return try rawSealed(serial, blocks, places) }
        let (bitmap, identity) = try decode(bytes, path)
        guard identity.granularityBytes == record.granularityBytes, identity.serial == serial,
            bitmap.blockCount <= blocks
        else { throw .damagedLayer(path: path, detail: "it is of another disk") }
        return bitmap.widened(to: blocks)
    }

    static func decode(
        _ bytes: [UInt8], _ path: String
    ) throws(TrackingFault) -> (DirtyBitmap, LayerIdentity) {
        do throws(LayerFault) {
            return try LayerCodec.decode(bytes)
        } catch {
            throw .damagedLayer(path: path, detail: error.description)
        }
    }

    private static func rawSealed(
        _ serial: UInt64, _ blocks: Int, _ places: TrackingPlaces
    ) throws(TrackingFault) -> DirtyBitmap {
        let name = RecordingLayer.fileName(serial)
        do throws(SystemFault) {
            let file = try places.files.open(name, writable: false)
            return try LayerFile.read(file, serial: serial, blockCount: blocks)
        } catch {
            throw .damagedLayer(path: path(name, places), detail: "it cannot be read")
        }
    }

    /// Replaces sealed layers' files by compressed ones; takes time, so not under a begin.
    package func compressSealed() {
        let names = Set((try? files.names()) ?? [])
        for layer in record.chain.layers.dropLast() {
            let raw = RecordingLayer.fileName(layer.serial)
            guard names.contains(raw) else { continue }
            do throws(TrackingFault) {
                if names.contains(Self.sealedName(layer.serial)) {
                    // The compressed one may have got a deleted checkpoint's bits. Only where it
                    // can be read does the other go.
                    _ = try sealed(layer.serial)
                } else {
                    try store(
                        try Self.rawSealed(layer.serial, blockCount, places), as: layer.serial)
                }
                try? files.remove(raw)
            } catch {
                // The file stays and serves as well.
                continue
            }
        }
    }

    private func store(_ bitmap: DirtyBitmap, as serial: UInt64) throws(TrackingFault) {
        let identity = LayerIdentity(
            diskBytes: record.source.sizeBytes, granularityBytes: record.granularityBytes,
            serial: serial)
        let name = Self.sealedName(serial)
        try Self.naming(Self.path(name, places)) { () throws(SystemFault) in
            try files.replace(name, with: LayerCodec.encode(bitmap, identity: identity))
        }
    }

    // MARK: Deleting

    /// What the home ring must add to the recording layer before a checkpoint can go; nil: nothing.
    package func bitsToAdd(deleting checkpoint: String) throws(TrackingFault) -> DirtyBitmap? {
        var chain = record.chain
        guard let plan = chain.delete(checkpoint: checkpoint) else {
            throw .unknownCheckpoint(checkpoint)
        }
        guard case .mergeIntoRecording(_, let sealed) = plan else { return nil }
        return try self.sealed(sealed)
    }

    /// Takes a checkpoint out of the chain; what `bitsToAdd` asked for has been added.
    ///
    /// Bits move first, then the record changes, then files go: after a crash in between every
    /// answer is right or names more blocks than needed.
    package mutating func delete(checkpoint: String) throws(TrackingFault) {
        var changed = record
        guard let plan = changed.chain.delete(checkpoint: checkpoint) else {
            throw .unknownCheckpoint(checkpoint)
        }
        var gone: UInt64?
        switch plan {
        case .drop(let serial): gone = serial
        case .merge(let serial, let parent):
            var merged = try sealed(parent)
            merged.formUnion(try sealed(serial))
            try store(merged, as: parent)
            try? files.remove(RecordingLayer.fileName(parent))
            gone = serial
        case .mergeIntoRecording(_, let sealed):
            try saveSurely(recording)
            gone = sealed
        case .keepRecording: break
        }
        try Self.write(changed, places)
        record = changed
        guard let gone else { return }
        try? files.remove(RecordingLayer.fileName(gone))
        try? files.remove(Self.sealedName(gone))
    }

    /// Writes the record as it is in this value, when a later one has to be taken back.
    package func rewrite() throws(TrackingFault) { try Self.write(record, places) }

    // MARK: Ending

    /// The disk is no longer written: from now on the bits are exact and the source as it is.
    ///
    /// All bits are written to a new file first: what failed before does not matter then.
    package mutating func close(source: SourceIdentity) throws(TrackingFault) {
        let layer = recording
        try Self.naming(Self.path(RecordingLayer.fileName(layer.serial), places)) {
            () throws(SystemFault) in try layer.saveWhole()
        }
        var changed = record
        changed.source = source
        changed.isClean = true
        try Self.write(changed, places)
        record = changed
        layer.dropLive()
        guard let memory = places.memory else { return }
        // By now it may be another's, that serves the disk untracked.
        _ = try? places.gate.pass { () throws(SystemFault) in
            try memory.remove(TrackingPlaces.sessionName)
        }
        try? memory.removeIfEmpty()
    }
}
