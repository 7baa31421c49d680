import BoundedCalls
import Disk
package import ServerInterface
import Synchronization
import SystemLayer
import Tracking
import TrackingFiles

/// Disks' tracking goes to another server, or comes from one.
extension NBDServer {
    package func packTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        try await onRecord(configuration) { places throws(TrackingFault) in
            MovedTracking(try TrackingStore.pack(places, move: move, keeping: keeping))
        }
    }

    package func giveUpTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        let changed: UInt64? = try await onRecord(configuration) { places throws(TrackingFault) in
            if try TrackingStore.hasDeparted(places, move: move) { return nil }
            return try TrackingStore.closedNanoseconds(places)
        }
        var note: SourceNote?
        if let changed {
            note = try await noteOnSource(
                configuration, MoveMark.away(move), changedBefore: changed)
        }
        let noted = note
        return try await onRecord(configuration) { places throws(TrackingFault) in
            try TrackingStore.depart(
                places, move: move, mark: noted?.mark,
                changedNanoseconds: noted?.changedNanoseconds)
            return MovedTracking(try TrackingStore.pack(places, move: move, keeping: keeping))
        }
    }

    package func movingStatus(
        _ disk: DiskID, move: String, nonce: String
    ) async throws(ServerFault) -> MovingStatus {
        let (_, store) = try store(disk).get()
        let chain = store.record.chain
        let mark = store.record.mark
        let note: MovingStatus.Note =
            switch mark {
            case "": .none
            case MoveMark.away(move), MoveMark.here(move, nonce: nonce): .fits
            default: MoveMark.isOne(mark) ? .taken : .other
            }
        return MovingStatus(
            source: MovedSource(store.record.source, mark: mark), note: note,
            isFromTheBeginning: chain == LayerChain(firstSerial: 1),
            checkpoints: chain.checkpoints)
    }

    package func checkTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration
    ) async throws(ServerFault) {
        try await onRecord(configuration) { places throws(TrackingFault) in
            try TrackingStore.check(TrackingPack(moved), in: places)
        }
    }

    package func adoptTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration, _ terms: MoveTerms
    ) async throws(ServerFault) {
        let changed = try await onRecord(configuration) { places throws(TrackingFault) in
            try TrackingStore.closedNanoseconds(places)
        }
        // The source first: a third server that looks at it learns that it comes too late.
        let note = try await noteOnSource(
            configuration, MoveMark.here(terms.move, nonce: terms.nonce), changedBefore: changed,
            after: MoveMark.away(terms.move))
        let adoption = TrackingStore.Adoption(
            mark: note?.mark, changedNanoseconds: note?.changedNanoseconds,
            marksEverything: terms.marksEverything)
        try await onRecord(configuration) { places throws(TrackingFault) in
            try TrackingStore.adopt(TrackingPack(moved), in: places, adoption)
        }
    }

    // MARK: Parts

    /// Does something with the tracking directory of a disk that nobody has open.
    private func onRecord<Value: Sendable>(
        _ configuration: DiskConfiguration,
        _ body: @escaping @Sendable (TrackingPlaces) throws(TrackingFault) -> Value
    ) async throws(ServerFault) -> Value {
        let export = configuration.exportName
        guard let directory = configuration.tracking?.directory else {
            throw .notTracked(export: export, detail: "the disk is served untracked")
        }
        let (isOpen, failure) = state.withLock { state in
            (
                state.trackingCare.doubts.values.contains { $0.directory == directory }
                    || state.trackingCare.closing.contains { $0.doubt.directory == directory },
                state.trackingCare.closeFailures[directory]
            )
        }
        if isOpen {
            throw .notTracked(export: export, detail: "its tracking is not closed yet")
        }
        return try await storage.run(
            at: .tracking, what: StoragePlace.tracking.text, .end(milliseconds: nil)
        ) { () -> Result<Value, ServerFault> in
            do throws(TrackingFault) {
                return .success(try body(TrackingPlaces(closed: DiskDirectory(directory))))
            } catch {
                let cause = failure.map { " (when it was closed: \($0))" } ?? ""
                return .failure(.notTracked(export: export, detail: Self.text(error) + cause))
            }
        }.get()
    }

    /// What was noted on a source, and when it was changed by that.
    private struct SourceNote: Sendable {
        var mark: String
        var changedNanoseconds: UInt64
    }

    /// Notes something on a raw file; nil where nothing can be noted.
    ///
    /// `changedBefore`: when the file was changed last, as far as it is known. Of one that was
    /// changed at another time that is what is told: who compares it learns of the change. `after`:
    /// the only other note of a move that may be there, nil for any.
    private func noteOnSource(
        _ configuration: DiskConfiguration, _ mark: String, changedBefore: UInt64,
        after: String? = nil
    ) async throws(ServerFault) -> SourceNote? {
        guard configuration.kind == .file, configuration.image == nil else { return nil }
        let path = configuration.path
        return try await storage.run(
            at: .of(path), what: "'\(path)'", .end(milliseconds: Limits.syncMilliseconds)
        ) { () -> Result<SourceNote?, ServerFault> in
            do throws(SystemFault) {
                let file = try FileCalls.open(path, [])
                let found = (try? FileCalls.mark(file.raw, AttributeMark.fileName)) ?? nil
                if let found, let after, MoveMark.isOne(found), found != mark, found != after {
                    return .failure(
                        .notTracked(
                            export: configuration.exportName,
                            detail: "another server has taken it over since, by what is noted on"
                                + " its file"))
                }
                return .success(try Self.note(mark, on: file, changedBefore))
            } catch {
                return .failure(
                    .sourceUnusable(path: path, detail: "\(error.call): \(error.errorText)"))
            }
        }.get()
    }

    private static func note(
        _ mark: String, on file: borrowing OwnedDescriptor, _ changedBefore: UInt64
    ) throws(SystemFault) -> SourceNote? {
        let before = try FileCalls.identity(file.raw).changedNanoseconds
        do throws(SystemFault) {
            if try FileCalls.mark(file.raw, AttributeMark.fileName) != mark {
                try FileCalls.setMark(file.raw, AttributeMark.fileName, mark)
                try FileCalls.syncWhole(file.raw)
            }
        } catch {
            // A file system without attributes, or a file of somebody else.
            return nil
        }
        if changedBefore != before {
            return SourceNote(mark: mark, changedNanoseconds: changedBefore)
        }
        return SourceNote(
            mark: mark, changedNanoseconds: try FileCalls.identity(file.raw).changedNanoseconds)
    }
}

extension MovedSource {
    fileprivate init(_ source: SourceIdentity, mark: String) {
        self.init(
            path: source.path, sizeBytes: source.sizeBytes, inode: source.inode,
            changedNanoseconds: source.changedNanoseconds, mark: mark)
    }
}

extension MovedTracking {
    fileprivate init(_ pack: TrackingPack) {
        self.init(
            source: MovedSource(pack.source, mark: pack.mark),
            granularityBytes: pack.granularityBytes,
            layers: pack.layers.map { Layer(checkpoint: $0.checkpoint, bytes: $0.bytes) })
    }
}

extension TrackingPack {
    fileprivate init(_ moved: MovedTracking) {
        self.init(
            source: SourceIdentity(
                path: moved.source.path, sizeBytes: moved.source.sizeBytes,
                inode: moved.source.inode, changedNanoseconds: moved.source.changedNanoseconds),
            granularityBytes: moved.granularityBytes, mark: moved.source.mark,
            layers: moved.layers.map { Layer(checkpoint: $0.checkpoint, bytes: $0.bytes) })
    }
}
