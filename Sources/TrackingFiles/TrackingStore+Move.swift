import SystemLayer
package import Tracking

/// A disk's tracking goes to another server, or comes from one; nobody has the disk open meanwhile.
extension TrackingStore {
    /// What is different for a disk that is taken over.
    package struct Adoption: Sendable {
        /// What is noted on the source now; nil: what the record says.
        package var mark: String?
        /// When the file was changed last, in nanoseconds; nil: what the record says.
        package var changedNanoseconds: UInt64?
        /// It is not known whether the disk is as the other server left it: every block is dirty.
        package var marksEverything: Bool

        package init(mark: String?, changedNanoseconds: UInt64?, marksEverything: Bool) {
            self.mark = mark
            self.changedNanoseconds = changedNanoseconds
            self.marksEverything = marksEverything
        }
    }

    /// What another server needs of a disk that was closed in order.
    ///
    /// `move`: what was written down when the disk was given up for that move counts, if it was.
    /// `keeping`: the checkpoints that go along, nil for all; what was recorded since another one
    /// counts for the one before it. Bits that cannot be read are refused, and left out once the
    /// disk is given up: then there is no better answer.
    package static func pack(
        _ places: TrackingPlaces, move: String, keeping: Set<String>? = nil
    ) throws(TrackingFault) -> TrackingPack {
        let (record, isMoved) = try departing(places, move)
        var newestFirst: [TrackingPack.Layer] = []
        func add(_ checkpoint: String?, _ bits: DirtyBitmap) {
            let identity = LayerIdentity(
                diskBytes: record.source.sizeBytes, granularityBytes: record.granularityBytes,
                serial: record.chain.recordingSerial)
            newestFirst.append(
                TrackingPack.Layer(
                    checkpoint: checkpoint, bytes: LayerCodec.encode(bits, identity: identity)))
        }
        /// What goes with an older checkpoint.
        var left: DirtyBitmap? = try ownBits(record, places)
        for layer in record.chain.layers.reversed() {
            if layer.serial != record.chain.recordingSerial {
                do throws(TrackingFault) {
                    let bits = try sealed(layer.serial, of: record, places)
                    if left?.formUnion(bits) == nil { left = bits }
                } catch {
                    // Without its bits nothing older can be answered.
                    if isMoved { break }
                    throw error
                }
            }
            guard let name = layer.checkpoint, keeping?.contains(name) ?? true, let bits = left
            else { continue }
            add(name, bits)
            left = nil
        }
        if newestFirst.isEmpty, let left { add(nil, left) }
        return TrackingPack(
            source: record.source, granularityBytes: record.granularityBytes, mark: record.mark,
            layers: newestFirst.reversed())
    }

    /// Whether the disk was given up for this move already.
    package static func hasDeparted(
        _ places: TrackingPlaces, move: String
    ) throws(TrackingFault) -> Bool {
        try departing(places, move).isMoved
    }

    /// Nothing here is believed any more: the disk is to be another server's.
    ///
    /// `mark` and `changedNanoseconds` are what was noted on the source, and when it changed by
    /// that; nil leaves what the record says. Doing it again changes nothing.
    package static func depart(
        _ places: TrackingPlaces, move: String, mark: String?, changedNanoseconds: UInt64?
    ) throws(TrackingFault) {
        var (record, isMoved) = try departing(places, move)
        if !isMoved {
            record.session = MoveMark.away(move)
            if let mark { record.mark = mark }
            if let changedNanoseconds { record.source.changedNanoseconds = changedNanoseconds }
            let bytes = record.encode()
            try naming(path(TrackingPlaces.movedName, places)) { () throws(SystemFault) in
                try places.files.replace(TrackingPlaces.movedName, with: bytes)
            }
        }
        try naming(path(TrackingPlaces.recordName, places)) { () throws(SystemFault) in
            try places.files.remove(TrackingPlaces.recordName)
            try places.files.sync()
        }
    }

    /// Takes over what another server had recorded, on a disk that was opened here and closed in
    /// order since that one has let go of it: what was recorded here meanwhile is added.
    ///
    /// The record comes last, in one step: until then the disk is as it was.
    package static func adopt(
        _ pack: TrackingPack, in places: TrackingPlaces, _ adoption: Adoption
    ) throws(TrackingFault) {
        let plan = try plan(pack, places)
        let own = plan.own
        let granularity = pack.granularityBytes
        let shift = UInt64(granularity.trailingZeroBitCount)
        var recording = try bits(pack.layers[pack.layers.count - 1], pack, plan.blocks)
        recording.mark(of: try ownBits(own, places), shift, from: own.granularityBytes)
        if adoption.marksEverything { recording.mark(0..<plan.blocks) }
        var record = own
        record.granularityBytes = granularity
        record.chain = plan.chain
        if let mark = adoption.mark { record.mark = mark }
        if let changed = adoption.changedNanoseconds { record.source.changedNanoseconds = changed }
        for (layer, packed) in zip(plan.chain.layers, pack.layers).dropLast() {
            let bits = try bits(packed, pack, plan.blocks)
            let identity = LayerIdentity(
                diskBytes: record.source.sizeBytes, granularityBytes: granularity,
                serial: layer.serial)
            let name = sealedName(layer.serial)
            try naming(path(name, places)) { () throws(SystemFault) in
                try places.files.replace(name, with: LayerCodec.encode(bits, identity: identity))
            }
        }
        let serial = plan.chain.recordingSerial
        try naming(path(RecordingLayer.fileName(serial), places)) { () throws(SystemFault) in
            _ = try RecordingLayer.create(
                in: places.files, serial: serial, granularityShift: shift, bits: recording,
                live: nil)
        }
        try write(record, places)
        try? places.files.remove(RecordingLayer.fileName(own.chain.recordingSerial))
    }

    /// Whether a pack is whole and fits the disk, which was opened here and closed in order: nothing
    /// is changed.
    package static func check(
        _ pack: TrackingPack, in places: TrackingPlaces
    ) throws(TrackingFault) {
        let plan = try plan(pack, places)
        // One at a time: nothing bounds them together.
        for layer in pack.layers { _ = try bits(layer, pack, plan.blocks) }
        _ = try ownBits(plan.own, places)
    }

    /// When the source was changed last by what the record of a disk says that was closed in order.
    package static func closedNanoseconds(
        _ places: TrackingPlaces
    ) throws(TrackingFault) -> UInt64 {
        try closedRecord(places).source.changedNanoseconds
    }

    // MARK: What fits

    private struct Plan {
        let own: TrackingRecord
        let chain: LayerChain
        let blocks: Int
    }

    /// Blocks of a bitmap that may be finer than those of the disk's domain here: 32 MiB of bits.
    private static let finerBlocksMax = 1 << 28

    private static func plan(
        _ pack: TrackingPack, _ places: TrackingPlaces
    ) throws(TrackingFault) -> Plan {
        let own = try closedRecord(places)
        guard own.chain.checkpoints.isEmpty else {
            throw .notMoved("it has checkpoints of its own")
        }
        guard own.source.sizeBytes == pack.source.sizeBytes else {
            throw .notMoved(
                "it has \(own.source.sizeBytes) bytes, and had \(pack.source.sizeBytes)")
        }
        let granularity = pack.granularityBytes
        guard granularity.nonzeroBitCount == 1, granularity >= 4096,
            UInt64(granularity) <= granularityBytesMax
        else { throw .notMoved("its granularity of \(granularity) bytes is none that there is") }
        try checkBlocks(own.source.sizeBytes, granularity)
        let blocks = blockCount(
            own.source.sizeBytes, UInt64(granularity.trailingZeroBitCount))
        guard granularity >= own.granularityBytes || blocks <= finerBlocksMax else {
            throw .notMoved(
                "its bitmaps have \(blocks) blocks of \(granularity) bytes, which take more memory"
                    + " than this domain's: define the domain with a granularity of"
                    + " \(granularity) bytes")
        }
        let first = own.chain.nextSerial
        let layers = pack.layers.enumerated().map { index, layer in
            (serial: first + UInt64(index), checkpoint: layer.checkpoint)
        }
        guard let chain = LayerChain(layers: layers, nextSerial: first + UInt64(layers.count))
        else { throw .notMoved("its layers are no chain") }
        return Plan(own: own, chain: chain, blocks: blocks)
    }

    private static func bits(
        _ layer: TrackingPack.Layer, _ pack: TrackingPack, _ blocks: Int
    ) throws(TrackingFault) -> DirtyBitmap {
        let what = layer.checkpoint.map { "the layer of checkpoint '\($0)'" } ?? "its only layer"
        do throws(LayerFault) {
            let (bits, identity) = try LayerCodec.decode(layer.bytes, blockCount: blocks)
            if identity.granularityBytes == pack.granularityBytes { return bits }
        } catch {
            throw .notMoved("\(what) cannot be used: \(error.description)")
        }
        throw .notMoved("\(what) is of another granularity")
    }

    // MARK: Records

    private static func read(
        _ name: String, _ places: TrackingPlaces
    ) throws(TrackingFault) -> TrackingRecord? {
        let bytes = try naming(path(name, places)) { () throws(SystemFault) in
            try places.files.read(name, limit: TrackingRecord.bytesMax)
        }
        guard let bytes else { return nil }
        if let version = TrackingRecord.newerVersion(bytes) {
            throw .newer(path: path(name, places), version: version)
        }
        return TrackingRecord.decode(bytes)
    }

    /// The record of a disk that was closed in order.
    private static func closedRecord(
        _ places: TrackingPlaces
    ) throws(TrackingFault) -> TrackingRecord {
        guard let record = try read(TrackingPlaces.recordName, places) else {
            throw .notMoved("its changes were not recorded to the end")
        }
        guard record.isClean else { throw .notMoved("it was not closed in order") }
        return record
    }

    private static func departing(
        _ places: TrackingPlaces, _ move: String
    ) throws(TrackingFault) -> (record: TrackingRecord, isMoved: Bool) {
        if let record = try read(TrackingPlaces.movedName, places),
            record.session == MoveMark.away(move)
        {
            return (record, true)
        }
        return (try closedRecord(places), false)
    }

    private static func ownBits(
        _ record: TrackingRecord, _ places: TrackingPlaces
    ) throws(TrackingFault) -> DirtyBitmap {
        let shift = UInt64(record.granularityBytes.trailingZeroBitCount)
        let blocks = blockCount(record.source.sizeBytes, shift)
        let serial = record.chain.recordingSerial
        return try naming(path(RecordingLayer.fileName(serial), places)) {
            () throws(SystemFault) in
            try LayerFile.read(
                try places.files.open(RecordingLayer.fileName(serial), writable: false),
                serial: serial, blockCount: blocks, recordedCount: blocks)
        }
    }
}

extension DirtyBitmap {
    /// Marks whatever holds a byte that is dirty by bits of `granularityBytes`.
    fileprivate mutating func mark(
        of other: DirtyBitmap, _ shift: UInt64, from granularityBytes: UInt32
    ) {
        let otherShift = UInt64(granularityBytes.trailingZeroBitCount)
        var block = 0
        while block < other.blockCount, let start = other.firstBlock(from: block, dirty: true) {
            let end = other.firstBlock(from: start, dirty: false) ?? other.blockCount
            let first = Int((UInt64(start) << otherShift) >> shift)
            let last = Int(((UInt64(end) << otherShift) - 1) >> shift)
            mark(min(first, blockCount)..<min(last + 1, blockCount))
            block = end
        }
    }
}
