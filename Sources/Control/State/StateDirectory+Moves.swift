package import Foundation

/// What a server knows of a disk that has gone to another server, or has come from one.
package struct StoredMove: Sendable, Hashable, Codable {
    /// How far it has come.
    package enum Phase: String, Sendable, Hashable, Codable {
        /// Another server has the disk, or may take it: it is not served here.
        case away
        /// It is being taken over; begun again, that ends.
        case coming
        /// It was taken over.
        case here
        /// It was away, and somebody has defined it here anew.
        case over
    }

    /// The disk's target.
    package var disk: String
    /// Counts the moves of the disk, on whichever server.
    package var generation: UInt64
    /// The id of the last one.
    package var move: String
    package var phase: Phase
    /// Tells this server from any other that takes the disk over by the same move.
    package var nonce: String?
    package var time: Date
    /// While it is coming: why every block of it counts as changed.
    ///
    /// It is not found out twice, as an import that is cut off changes what it was seen by.
    package var doubt: String?

    package init(
        disk: String, generation: UInt64, move: String, phase: Phase, nonce: String? = nil,
        time: Date = Date(), doubt: String? = nil
    ) {
        self.disk = disk
        self.generation = generation
        self.move = move
        self.phase = phase
        self.nonce = nonce
        self.time = time
        self.doubt = doubt
    }

    /// Why the disk is not served; nil when that is no reason.
    package var reason: String? {
        guard phase == .away else { return nil }
        return "its state was exported (move \(move), \(ISO8601.text(time))), so another server has"
            + " it; disk-import-state brings it back, and detach-disk and attach-disk serve it"
            + " without its checkpoints"
    }
}

/// The disks of one domain that have moved, as the state directory keeps them.
package struct StoredMoves: Sendable, Hashable, Codable {
    var uuid: String
    var disks: [StoredMove]
}

extension StateDirectory {
    private func movesFile(_ uuid: String) -> String { file(path + "/moves", uuid) }

    /// Keeps what is known of the moves of a domain's disks, all in one step.
    package func save(_ moves: [StoredMove], of uuid: String) throws(ControlError) {
        try save(
            kind: "moves",
            StoredMoves(uuid: uuid, disks: moves.sorted { $0.disk < $1.disk }),
            to: movesFile(uuid))
    }

    /// The moves of a domain's disks.
    ///
    /// - Throws: the file, when there is one and it cannot be read: any disk of the domain may be
    ///   away.
    package func moves(of uuid: String) throws(DamagedFile) -> [StoredMove] {
        let path = movesFile(uuid)
        guard SystemCalls.identity(of: path) != nil else { return [] }
        do throws(StateRecord.Damage) {
            return try StateRecord.decode(
                kind: "moves", StoredMoves.self, from: try Self.read(path)
            ).disks
        } catch {
            let meaning = "It says which disks another server has, so none of its domain is served"
            throw DamagedFile(
                path: path,
                detail: error.isNewer
                    ? "\(error.detail). \(meaning)"
                    : "\(error.detail). \(meaning). Move it away to serve them all",
                isNewer: error.isNewer)
        }
    }
}
