package import IORing

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
}

/// The tracking files of one disk, in a directory of their own.
///
/// `record` says which layers there are. `layer-N.bits` is a mapped bitmap: the layer that records,
/// or one sealed lately. `layer-N.z` is a sealed layer, compressed. `intent` is the write-intent
/// log. Used by the control thread; the home ring has the recording layer and the log's descriptor.
///
/// What survives: a killed process loses nothing, because the bits lie in a mapped file. After a
/// loss of power every region that the log names counts as dirty. A layer file that no record knows
/// (the process died between two steps) is added to what is recorded. Every doubt makes more blocks
/// dirty, never fewer.
package struct TrackingStore: Sendable {
    package let directory: String
    package internal(set) var record: TrackingRecord
    package internal(set) var recording: RecordingLayer
    /// Bytes that became dirty to be safe, when the store was opened.
    package let recoveredBytes: UInt64
    /// Why older checkpoints were given up when the store was opened.
    package let problem: String?

    /// log2 of the bytes that one bit stands for.
    package var granularityShift: UInt64 {
        UInt64(record.granularityBytes.trailingZeroBitCount)
    }

    /// Blocks of the disk.
    package var blockCount: Int {
        Self.blockCount(record.source.sizeBytes, granularityShift)
    }

    static func blockCount(_ sizeBytes: UInt64, _ shift: UInt64) -> Int {
        Int((sizeBytes + (UInt64(1) << shift) - 1) >> shift)
    }

    init(
        directory: String, record: TrackingRecord, recording: RecordingLayer,
        recoveredBytes: UInt64, problem: String?
    ) {
        self.directory = directory
        self.record = record
        self.recording = recording
        self.recoveredBytes = recoveredBytes
        self.problem = problem
    }

    // MARK: Files

    package static let recordName = "record"
    package static let intentName = "intent"

    package var intentPath: String { directory + "/" + Self.intentName }

    static func bitsPath(_ directory: String, _ serial: UInt64) -> String {
        "\(directory)/layer-\(serial).bits"
    }

    static func sealedPath(_ directory: String, _ serial: UInt64) -> String {
        "\(directory)/layer-\(serial).z"
    }

    /// The serial in a layer file's name, or nil for other names.
    static func serial(in name: String) -> UInt64? {
        guard name.hasPrefix("layer-"), let dot = name.lastIndex(of: ".") else { return nil }
        return UInt64(name[name.index(name.startIndex, offsetBy: 6)..<dot])
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

    static func write(_ record: TrackingRecord, in directory: String) throws(TrackingFault) {
        let path = directory + "/" + recordName
        try naming(path) { () throws(SystemFault) in
            try StateFiles.replace(path, with: record.encode())
        }
    }

    // MARK: Checkpoints

    /// Makes the file of the layer that will record after the next checkpoint.
    ///
    /// It is durable before any change is recorded in it; until `seal` no record names it.
    package func prepareNext() throws(TrackingFault) -> RecordingLayer {
        let serial = record.chain.nextSerial
        let path = Self.bitsPath(directory, serial)
        let blocks = blockCount
        let shift = granularityShift
        return try Self.naming(path) { () throws(SystemFault) in
            try FileCalls.remove(path)
            let layer = try RecordingLayer.create(
                path: path, serial: serial, blockCount: blocks, granularityShift: shift)
            try StateFiles.syncDirectory(of: path)
            return layer
        }
    }

    /// Gives up a layer that `prepareNext` made and that has recorded nothing of its own.
    package func abandon(_ next: RecordingLayer) {
        try? FileCalls.remove(Self.bitsPath(directory, next.serial))
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
        let oldPath = Self.bitsPath(directory, old.serial)
        try Self.naming(oldPath) { () throws(SystemFault) in try old.sync() }
        try Self.write(changed, in: directory)
        record = changed
        recording = next
        if !step.keepsSealed { try? FileCalls.remove(oldPath) }
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
    func sealed(_ serial: UInt64) throws(TrackingFault) -> DirtyBitmap {
        let path = Self.sealedPath(directory, serial)
        let limit = LayerCodec.headerBytes + blockCount / 4 + (1 << 20)
        let bytes = try Self.naming(path) { () throws(SystemFault) in
            try StateFiles.read(path, limit: limit)
        }
        guard let bytes else { return try rawSealed(serial) }
        let (bitmap, identity) = try Self.decode(bytes, path)
        guard identity.granularityBytes == record.granularityBytes, identity.serial == serial,
            bitmap.blockCount <= blockCount
        else { throw .damagedLayer(path: path, detail: "it is of another disk") }
        return bitmap.widened(to: blockCount)
    }

    private static func decode(
        _ bytes: [UInt8], _ path: String
    ) throws(TrackingFault) -> (DirtyBitmap, LayerIdentity) {
        do throws(LayerFault) {
            return try LayerCodec.decode(bytes)
        } catch {
            throw .damagedLayer(path: path, detail: error.description)
        }
    }

    private func rawSealed(_ serial: UInt64) throws(TrackingFault) -> DirtyBitmap {
        let path = Self.bitsPath(directory, serial)
        let blocks = blockCount
        let shift = granularityShift
        do throws(TrackingFault) {
            return try Self.naming(path) { () throws(SystemFault) in
                try RecordingLayer.open(
                    path: path, serial: serial, blockCount: blocks, granularityShift: shift
                ).snapshot()
            }
        } catch {
            throw .damagedLayer(path: path, detail: "it cannot be read")
        }
    }

    /// Replaces sealed layers' mapped files by compressed ones; takes time, so not under a begin.
    package func compressSealed() {
        for layer in record.chain.layers.dropLast() {
            let raw = Self.bitsPath(directory, layer.serial)
            guard FileCalls.exists(raw) else { continue }
            // Where both are there, the compressed one may have got a deleted checkpoint's bits.
            if FileCalls.exists(Self.sealedPath(directory, layer.serial)) {
                try? FileCalls.remove(raw)
                continue
            }
            do throws(TrackingFault) {
                try store(try rawSealed(layer.serial), as: layer.serial)
                try? FileCalls.remove(raw)
            } catch {
                // The mapped file stays and serves as well.
                continue
            }
        }
    }

    private func store(_ bitmap: DirtyBitmap, as serial: UInt64) throws(TrackingFault) {
        let path = Self.sealedPath(directory, serial)
        let identity = LayerIdentity(
            diskBytes: record.source.sizeBytes, granularityBytes: record.granularityBytes,
            serial: serial)
        try Self.naming(path) { () throws(SystemFault) in
            try StateFiles.replace(path, with: LayerCodec.encode(bitmap, identity: identity))
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
            try? FileCalls.remove(Self.bitsPath(directory, parent))
            gone = serial
        case .mergeIntoRecording(_, let sealed):
            let layer = recording
            try Self.naming(Self.bitsPath(directory, layer.serial)) { () throws(SystemFault) in
                try layer.sync()
            }
            gone = sealed
        case .keepRecording: break
        }
        try Self.write(changed, in: directory)
        record = changed
        guard let gone else { return }
        try? FileCalls.remove(Self.bitsPath(directory, gone))
        try? FileCalls.remove(Self.sealedPath(directory, gone))
    }

    /// Writes the record as it is in this value, when a later one has to be taken back.
    package func rewrite() throws(TrackingFault) { try Self.write(record, in: directory) }

    // MARK: Ending

    /// The disk is no longer written: from now on the bits are exact and the source as it is.
    package mutating func close(source: SourceIdentity) throws(TrackingFault) {
        let layer = recording
        try Self.naming(Self.bitsPath(directory, layer.serial)) { () throws(SystemFault) in
            try layer.sync()
        }
        var changed = record
        changed.source = source
        changed.isClean = true
        try Self.write(changed, in: directory)
        record = changed
    }

    /// Makes every checkpoint of a disk unusable, because changes can no longer be recorded safely.
    ///
    /// Durable when this returns, so it comes before the first change that is not recorded.
    package static func giveUp(directory: String) {
        try? FileCalls.remove(directory + "/" + recordName)
        try? StateFiles.syncDirectory(directory)
    }
}
