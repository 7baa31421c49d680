import BoundedCalls
import Foundation
import ServerInterface

/// Disks come from another server, with their checkpoints.
extension JobManager {
    /// A disk that is being taken over.
    struct Coming {
        let disk: DomainDisk
        let state: DiskState.Disk
        let tracking: MovedTracking
        /// How the disk is opened under a name that nobody asks for; nil: it is served.
        var hidden: DiskID?
        /// It is opened with a tracking directory of its own: what was recorded before it went away
        /// stays, in case nothing comes of this.
        var isAside = false
        /// Why every block counts as changed.
        var doubt: String?
        /// An import that was cut off had come so far.
        var isInstalled = false
    }

    /// What is asked for.
    package struct ImportRequest: Sendable, Hashable {
        /// Absolute path.
        package var file: String
        /// Clients are disconnected.
        package var force: Bool
        /// The caller knows that the disks are as the other server left them.
        package var isUnchanged: Bool

        package init(file: String, force: Bool = false, isUnchanged: Bool = false) {
            self.file = file
            self.force = force
            self.isUnchanged = isUnchanged
        }
    }

    /// Goes on with the checkpoints of disks that another server has exported.
    ///
    /// Every disk is opened, looked at, closed, given the bits, and opened again: what is written
    /// to it here before counts as changed. Nothing is kept before the last refusal; an import that
    /// is cut off after that is given again.
    package func importState(
        of name: String, _ request: ImportRequest
    ) async throws(ControlError) -> MoveView {
        try checkTakesChanges()
        guard let state else { throw .operationUnsupported("there is no state directory") }
        try reserve(name, uuid: try domain(name).definition.uuid)
        defer { reserved[name] = nil }
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        guard !isStopping else { throw .serverStopping }
        let (content, tracking) = try await read(request.file)
        try check(content, of: name, request.file)
        try checkNoJob(of: name)
        await retryFailedDisks(of: name)
        var coming = try checkDisks(content, tracking, of: name)
        let tree = try merged(content, into: try domain(name))
        let nonce =
            coming.compactMap { try? domain(name).moves[$0.disk.target]?.nonce }.first
            ?? UUID().uuidString.lowercased()
        var closed = ClosedDisks()
        do throws(ControlError) {
            for index in coming.indices {
                try await look(at: &coming[index], content, nonce, of: name, request)
            }
            try checkNoJob(of: name)
            closed = try await closeAll(&coming, of: name, request.force)
            if let problem = closed.problem { throw .cannotMove(name, problem) }
            for disk in coming where !disk.isInstalled { try await check(disk, of: name) }
        } catch {
            await giveUp(coming, of: name)
            await reopen(closed, of: name)
            throw error
        }
        do throws(ControlError) {
            try await takeOver(coming, content, tree, nonce, of: name, state)
        } catch {
            await openAgain(coming, closed, of: name)
            throw error.adding("; give the same command again")
        }
        await openAgain(coming, closed, of: name)
        return tell(coming, content, of: name, request.file)
    }

    // MARK: Refusals

    func read(
        _ path: String
    ) async throws(ControlError) -> (state: DiskState, tracking: [MovedTracking]) {
        guard path.hasPrefix("/") else {
            throw .invalidArgument(what: "file '\(path)'", detail: "give an absolute path")
        }
        return try await onFile(path) { () throws(ControlError) in
            guard SystemCalls.identity(of: path)?.kind == .regular else {
                throw .stateFileUnusable(path, "it is not a regular file, or does not exist")
            }
            let bytes: [UInt8]
            do throws(SystemCalls.Failure) {
                bytes = try SystemCalls.read(path, upTo: DiskStateFile.bytesMax + 1)
            } catch {
                throw .stateFileUnusable(path, error.text)
            }
            guard bytes.count <= DiskStateFile.bytesMax else {
                throw .stateFileUnusable(path, "it is larger than any that is written")
            }
            do throws(DiskStateFile.Damage) {
                return try DiskStateFile.decode(bytes)
            } catch {
                throw .stateFileUnusable(path, error.detail)
            }
        }
    }

    private func check(
        _ content: DiskState, of name: String, _ path: String
    ) throws(ControlError) {
        let domain = try domain(name)
        if let problem = domain.movesProblem { throw .cannotMove(name, problem) }
        guard UUIDText.normalized(content.uuid) == domain.definition.uuid else {
            throw .stateFileUnusable(
                path,
                "it is of domain '\(content.domain)' with uuid \(content.uuid), and '\(name)' has"
                    + " \(domain.definition.uuid): define it with the same uuid")
        }
    }

    private func checkDisks(
        _ content: DiskState, _ tracking: [MovedTracking], of name: String
    ) throws(ControlError) -> [Coming] {
        let domain = try domain(name)
        var coming: [Coming] = []
        for (state, tracking) in zip(content.disks, tracking) {
            guard let disk = domain.definition.disks.first(where: { $0.target == state.disk })
            else { throw .unknownDisk(state.disk) }
            guard disk.isTrackable else { throw .diskEmptyOrReadOnly(disk.target) }
            if let known = domain.moves[disk.target] {
                try checkIsNext(state, content.id, known)
            }
            coming.append(Coming(disk: disk, state: state, tracking: tracking))
        }
        return coming
    }

    /// A file is used once, and not when the disk has moved since.
    private func checkIsNext(
        _ state: DiskState.Disk, _ id: String, _ known: StoredMove
    ) throws(ControlError) {
        if state.generation > known.generation { return }
        if state.generation == known.generation, id == known.move {
            switch known.phase {
            case .coming, .away, .over: return
            case .here:
                throw .cannotMove(
                    state.disk,
                    "this state was imported here at \(ISO8601.text(known.time)): a file is used"
                        + " once")
            }
        }
        throw .cannotMove(
            state.disk,
            "the state is of move \(state.generation) of the disk, and this server knows of move"
                + " \(known.generation) (\(known.move)): take the newest file, or a full backup")
    }

    /// The domain's checkpoints with those that come.
    private func merged(
        _ content: DiskState, into domain: ManagedDomain
    ) throws(ControlError) -> CheckpointTree {
        let targets = Set(content.disks.map(\.disk))
        let moved = Set(content.disks.filter { domain.moves[$0.disk] != nil }.map(\.disk))
        var all = Dictionary(
            domain.checkpoints.topological.compactMap { domain.checkpoints[$0] }.map {
                ($0.name, $0)
            }
        ) { first, _ in first }
        for var checkpoint in content.checkpoints {
            checkpoint.phase = .committed
            checkpoint.jobID = nil
            let name = checkpoint.name
            checkpoint.leaveOut { target in
                !content.disks.contains { disk in
                    disk.disk == target && disk.layers.contains { $0.checkpoint == name }
                }
            }
            if let known = all[checkpoint.name] {
                // Known from before the disk went away, or from an import that was cut off.
                guard known.creationTime == checkpoint.creationTime, !moved.isEmpty else {
                    throw .checkpointExists(checkpoint.name)
                }
                let others = known.disks.filter { !targets.contains($0.target) }
                checkpoint.disks.removeAll { disk in
                    others.contains { $0.target == disk.target }
                }
                checkpoint.disks += others
                checkpoint.parent = known.parent ?? checkpoint.parent
            }
            all[checkpoint.name] = checkpoint
        }
        // Their bits are gone: a layer of that name that comes later is another checkpoint's.
        let coming = Set(content.checkpoints.map(\.name))
        for name in Array(all.keys) where !coming.contains(name) {
            all[name]?.leaveOut { targets.contains($0) }
        }
        guard all.count <= CheckpointTree.countMax else {
            throw .limit("checkpoints", CheckpointTree.countMax)
        }
        var repaired: [String] = []
        return CheckpointTree(Array(all.values), repaired: &repaired)
    }

    // MARK: Taking over

    /// Keeps that the disks are being taken over, then what is known of their checkpoints, then
    /// each disk's bits, then that they are here.
    private func takeOver(
        _ coming: [Coming], _ content: DiskState, _ tree: CheckpointTree, _ nonce: String,
        of name: String, _ state: StateDirectory
    ) async throws(ControlError) {
        let domain = try domain(name)
        let uuid = domain.definition.uuid
        func moves(_ phase: StoredMove.Phase) -> [String: StoredMove] {
            var moves = domain.moves
            for disk in coming {
                moves[disk.disk.target] = StoredMove(
                    disk: disk.disk.target, generation: disk.state.generation, move: content.id,
                    phase: phase, nonce: nonce, doubt: phase == .coming ? disk.doubt : nil)
            }
            return moves
        }
        try state.save(Array(moves(.coming).values), of: uuid)
        domains[name]?.moves = moves(.coming)
        for disk in coming where disk.isAside {
            // What is left here is older than what comes.
            try endTracking(of: uuid, target: disk.disk.target)
            try state.renameTracking(
                of: uuid, from: Self.aside(disk.disk.target), to: disk.disk.target)
        }
        for each in tree.topological {
            guard let merged = tree[each], merged != domain.checkpoints[each] else { continue }
            try state.save(merged, of: uuid)
        }
        domains[name]?.keptLayers.subtract(content.checkpoints.map(\.name))
        domains[name]?.checkpoints = tree
        for disk in coming where !disk.isInstalled {
            guard let configuration = try configuration(of: disk.disk, in: domain) else {
                throw .diskEmptyOrReadOnly(disk.disk.target)
            }
            do throws(ServerFault) {
                try await engine.adoptTracking(
                    disk.tracking, configuration,
                    MoveTerms(
                        move: content.id, nonce: nonce, marksEverything: disk.doubt != nil))
            } catch {
                if case .notTracked(_, let detail) = error {
                    throw .cannotMove(disk.disk.target, detail)
                }
                throw controlError(from: error)
            }
        }
        try state.save(Array(moves(.here).values), of: uuid)
        domains[name]?.moves = moves(.here)
    }

    private func tell(
        _ coming: [Coming], _ content: DiskState, of name: String, _ path: String
    ) -> MoveView {
        var disks: [MoveView.Disk] = []
        for disk in coming {
            let doubt = disk.doubt.map { ": every block counts as changed, as \($0)" } ?? ""
            events.append(
                ControlEvent(
                    .diskImported, domain: name, disk: disk.disk.target,
                    message: "from '\(path)', move \(content.id)\(doubt)"))
            disks.append(
                MoveView.Disk(
                    disk: disk.disk.target, generation: disk.state.generation,
                    checkpoints: disk.state.layers.compactMap(\.checkpoint),
                    allChanged: disk.doubt))
        }
        return MoveView(id: content.id, domain: name, file: path, disks: disks)
    }
}

extension CheckpointMetadata {
    /// It has no bits of these disks.
    fileprivate mutating func leaveOut(_ isLeftOut: (String) -> Bool) {
        for index in disks.indices where isLeftOut(disks[index].target) {
            disks[index].bitmap = nil
        }
    }
}
