/// What a new checkpoint does to the layers.
package struct SealStep: Sendable, Hashable {
    /// The layer that recorded until now.
    package let sealed: UInt64
    /// Whether a checkpoint still needs the sealed layer; otherwise its bits are dropped.
    package let keepsSealed: Bool
    /// The layer that records from now on, empty.
    package let recording: UInt64
}

/// What the deletion of a checkpoint does to the layers' bits.
///
/// Every step is carried out durably in this order: the bits, then the changed chain, then the
/// removal of the layer that is gone. A crash in between leaves a chain whose answers are right, at
/// worst one that calls more blocks dirty for the checkpoint that was being deleted.
package enum DeletePlan: Sendable, Hashable {
    /// No checkpoint needs the layer: it goes, no bits move.
    case drop(UInt64)
    /// The sealed layer's bits are added to the sealed layer `into`; then it goes.
    case merge(UInt64, into: UInt64)
    /// The bits of `sealed`, the parent, are added to the recording layer; then `sealed` goes.
    ///
    /// The recording layer goes on recording in its parent's place: it now began with the parent's
    /// checkpoint.
    case mergeIntoRecording(UInt64, sealed: UInt64)
    /// The only checkpoint goes; the layer goes on recording without one, no bits move.
    case keepRecording(UInt64)
}

/// The layers of one disk and the checkpoints that they began with: which bitmaps answer what.
///
/// Layers are ordered oldest first and their serials ascend; the last one records, all others are
/// sealed. Each began with a checkpoint, except a single layer that records before the first.
/// Incremental from a checkpoint is the union of its layer and all later ones, so it is exactly
/// what was written since, and the deletion of another checkpoint never changes it.
package struct LayerChain: Sendable, Hashable {
    /// One layer of the chain.
    package struct Layer: Sendable, Hashable, Codable {
        /// Names the layer; never used twice in a chain.
        package let serial: UInt64
        /// The checkpoint that began with the layer; nil only while the disk has no checkpoint.
        package internal(set) var checkpoint: String?
    }

    /// Serials that are used lie below; a chain gets there after more checkpoints than anyone
    /// makes.
    package static let serialMax = UInt64.max / 4

    /// Oldest first; the last one records.
    package private(set) var layers: [Layer]
    /// Serial of the next layer.
    package private(set) var nextSerial: UInt64

    /// A chain with one recording layer and no checkpoint.
    ///
    /// `firstSerial` lies past every serial in use, where an older chain was given up.
    package init(firstSerial: UInt64 = 0) {
        layers = [Layer(serial: firstSerial, checkpoint: nil)]
        nextSerial = firstSerial + 1
    }

    /// A chain as it was written down; nil when it is none that could have been.
    package init?(layers written: [(serial: UInt64, checkpoint: String?)], nextSerial: UInt64) {
        layers = written.map { Layer(serial: $0.serial, checkpoint: $0.checkpoint) }
        self.nextSerial = nextSerial
        if Self.problem(layers, nextSerial: nextSerial) != nil { return nil }
    }

    /// The layer that records.
    package var recordingSerial: UInt64 { layers[layers.count - 1].serial }

    /// Checkpoints that an incremental backup can start from, oldest first.
    package var checkpoints: [String] { layers.compactMap(\.checkpoint) }

    /// The layers whose union is everything written since a checkpoint, oldest first, the recording
    /// one last; nil when there is no such checkpoint.
    package func serials(since checkpoint: String) -> [UInt64]? {
        guard let index = index(of: checkpoint) else { return nil }
        return layers[index...].map(\.serial)
    }

    /// Adds a checkpoint that is now, or returns nil, having changed nothing, when one of that name
    /// exists.
    package mutating func begin(checkpoint: String) -> SealStep? {
        guard index(of: checkpoint) == nil else { return nil }
        let sealed = layers[layers.count - 1]
        let recording = nextSerial
        nextSerial += 1
        // Without a checkpoint nothing can ask for what was written before the first.
        if sealed.checkpoint == nil { layers.removeLast() }
        layers.append(Layer(serial: recording, checkpoint: checkpoint))
        assert(Self.problem(layers, nextSerial: nextSerial) == nil)
        return SealStep(
            sealed: sealed.serial, keepsSealed: sealed.checkpoint != nil, recording: recording)
    }

    /// Removes a checkpoint and says what becomes of its bits, or returns nil, having changed
    /// nothing, when there is none of that name.
    package mutating func delete(checkpoint: String) -> DeletePlan? {
        guard let index = index(of: checkpoint) else { return nil }
        defer { assert(Self.problem(layers, nextSerial: nextSerial) == nil) }
        let serial = layers[index].serial
        let isRecording = index == layers.count - 1
        if index == 0 {
            if isRecording {
                layers[0].checkpoint = nil
                return .keepRecording(serial)
            }
            layers.removeFirst()
            return .drop(serial)
        }
        let parent = layers[index - 1]
        if isRecording {
            layers[index].checkpoint = parent.checkpoint
            layers.remove(at: index - 1)
            return .mergeIntoRecording(serial, sealed: parent.serial)
        }
        layers.remove(at: index)
        return .merge(serial, into: parent.serial)
    }

    private func index(of checkpoint: String) -> Int? {
        layers.firstIndex { $0.checkpoint == checkpoint }
    }

    /// What is wrong with layers that were read from outside, or nil.
    private static func problem(_ layers: [Layer], nextSerial: UInt64) -> String? {
        guard let last = layers.last else { return "the chain has no layer that records" }
        guard last.serial < nextSerial else {
            return "layer \(last.serial) is not below the next serial \(nextSerial)"
        }
        guard nextSerial <= serialMax + 1 else { return "the next serial is \(nextSerial)" }
        for (older, newer) in zip(layers, layers.dropFirst()) where older.serial >= newer.serial {
            return "layer \(newer.serial) follows layer \(older.serial)"
        }
        if layers.count > 1, let unnamed = layers.first(where: { $0.checkpoint == nil }) {
            return "layer \(unnamed.serial) belongs to no checkpoint"
        }
        var names: Set<String> = []
        for layer in layers {
            guard let name = layer.checkpoint else { continue }
            if !names.insert(name).inserted { return "checkpoint '\(name)' is listed twice" }
        }
        return nil
    }
}

extension LayerChain: Codable {
    private enum CodingKeys: String, CodingKey {
        case layers
        case nextSerial
    }

    /// A chain as it was written; throws `DecodingError` when it is none that could have been.
    package init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        layers = try container.decode([Layer].self, forKey: .layers)
        nextSerial = try container.decode(UInt64.self, forKey: .nextSerial)
        if let problem = Self.problem(layers, nextSerial: nextSerial) {
            throw DecodingError.dataCorruptedError(
                forKey: .layers, in: container, debugDescription: problem)
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(layers, forKey: .layers)
        try container.encode(nextSerial, forKey: .nextSerial)
    }
}
