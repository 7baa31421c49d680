/// What the tracking of a disk holds that nobody serves: what another server needs so that its
/// checkpoints go on there.
package struct TrackingPack: Sendable, Hashable {
    /// A layer of the chain, as a sealed one; the last is the one that records.
    package struct Layer: Sendable, Hashable {
        package var checkpoint: String?
        /// Encoded by `LayerCodec`.
        package var bytes: [UInt8]

        package init(checkpoint: String?, bytes: [UInt8]) {
            self.checkpoint = checkpoint
            self.bytes = bytes
        }
    }

    package var source: SourceIdentity
    package var granularityBytes: UInt32
    /// What was noted on the source; empty: nothing.
    package var mark: String
    /// Oldest first.
    package var layers: [Layer]

    package init(
        source: SourceIdentity, granularityBytes: UInt32, mark: String, layers: [Layer]
    ) {
        self.source = source
        self.granularityBytes = granularityBytes
        self.mark = mark
        self.layers = layers
    }
}

/// The record of a disk that another server has: what is noted on its source names the move.
package enum MoveMark {
    /// What the server that lets go of a disk notes on its source.
    package static func away(_ move: String) -> String { "moved " + move }
    /// What the server that takes it over notes; `nonce` tells it from any other that does so.
    package static func here(_ move: String, nonce: String) -> String {
        "imported \(move) \(nonce)"
    }
    /// Whether a note is one of these.
    package static func isOne(_ mark: String) -> Bool {
        mark.hasPrefix("moved ") || mark.hasPrefix("imported ")
    }
}
