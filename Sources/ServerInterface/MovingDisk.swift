/// What a disk's tracking holds, for another server: checkpoints that go on there.
package struct MovedTracking: Sendable, Hashable {
    /// A checkpoint's bits; the last ones are what was written since the newest.
    package struct Layer: Sendable, Hashable {
        /// Nil for the only layer of a disk without checkpoints.
        package var checkpoint: String?
        /// Compressed, with a checksum of their own.
        package var bytes: [UInt8]

        package init(checkpoint: String?, bytes: [UInt8]) {
            self.checkpoint = checkpoint
            self.bytes = bytes
        }
    }

    package var source: MovedSource
    package var granularityBytes: UInt32
    /// Oldest first.
    package var layers: [Layer]

    package init(source: MovedSource, granularityBytes: UInt32, layers: [Layer]) {
        self.source = source
        self.granularityBytes = granularityBytes
        self.layers = layers
    }
}

/// What tells a source from another one, and from itself at another time, as far as it can be told.
package struct MovedSource: Sendable, Hashable, Codable {
    /// A path, or a name by which the storage knows it.
    package var path: String
    package var sizeBytes: UInt64
    /// Which files it lies in, and when they were changed; zero of a device, and of what lies on
    /// another server.
    package var inode: UInt64
    package var changedNanoseconds: UInt64
    /// What was noted on the file; empty: nothing.
    package var mark: String

    package init(
        path: String, sizeBytes: UInt64, inode: UInt64, changedNanoseconds: UInt64, mark: String
    ) {
        self.path = path
        self.sizeBytes = sizeBytes
        self.inode = inode
        self.changedNanoseconds = changedNanoseconds
        self.mark = mark
    }
}

/// How a disk that comes from another server is taken over.
package struct MoveTerms: Sendable, Hashable {
    /// The move's id.
    package var move: String
    /// Tells this server from any other that would do the same.
    package var nonce: String
    /// It is not known whether the disk is as the other server left it.
    package var marksEverything: Bool

    package init(move: String, nonce: String, marksEverything: Bool) {
        self.move = move
        self.nonce = nonce
        self.marksEverything = marksEverything
    }
}

/// What an attached disk says of itself before it is taken over.
package struct MovingStatus: Sendable, Hashable {
    /// What the note on the source says of the move.
    package enum Note: Sendable, Hashable {
        /// Nothing is noted.
        case none
        /// It is of this move.
        case fits
        /// Another server has taken the disk over since, or it has gone by another move.
        case taken
        /// It says something else.
        case other
    }

    /// As it was when it was opened.
    package var source: MovedSource
    package var note: Note
    /// What is recorded is everything that was written since the disk was opened here for the first
    /// time.
    package var isFromTheBeginning: Bool
    /// Oldest first.
    package var checkpoints: [String]

    package init(
        source: MovedSource, note: Note, isFromTheBeginning: Bool, checkpoints: [String]
    ) {
        self.source = source
        self.note = note
        self.isFromTheBeginning = isFromTheBeginning
        self.checkpoints = checkpoints
    }
}

/// A disk's checkpoints go from one server to another.
package protocol DiskMoving: Sendable {
    /// What the tracking of a disk holds that nobody serves; throws when it was not closed in
    /// order. The bits of a checkpoint not in `keeping` go with the one before it.
    func packTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking
    /// From now on nothing of it is believed here; returns what another server is to know. Called
    /// again for the same move it returns the same.
    func giveUpTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking
    /// What an attached disk was when it was opened, and whether that fits a move.
    func movingStatus(
        _ disk: DiskID, move: String, nonce: String
    ) async throws(ServerFault) -> MovingStatus
    /// Whether `adoptTracking` can take this over, as far as it can be known before: nothing is
    /// changed.
    func checkTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration
    ) async throws(ServerFault)
    /// Takes over what another server had recorded of a disk that nobody serves now.
    func adoptTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration, _ terms: MoveTerms
    ) async throws(ServerFault)
}

extension DiskMoving {
    /// An engine without tracking has nothing to hand over.
    package func packTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        throw .notTracked(export: configuration.exportName, detail: "nothing is recorded")
    }
    package func giveUpTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        throw .notTracked(export: configuration.exportName, detail: "nothing is recorded")
    }
    package func movingStatus(
        _ disk: DiskID, move: String, nonce: String
    ) async throws(ServerFault) -> MovingStatus {
        throw .unknownDisk
    }
    package func checkTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration
    ) async throws(ServerFault) {
        throw .notTracked(export: configuration.exportName, detail: "nothing is recorded")
    }
    package func adoptTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration, _ terms: MoveTerms
    ) async throws(ServerFault) {
        throw .notTracked(export: configuration.exportName, detail: "nothing is recorded")
    }
}
