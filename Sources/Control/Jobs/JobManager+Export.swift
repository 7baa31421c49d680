import BoundedCalls
import Foundation
import Glibc
import ServerInterface

/// Disks go to another server, with their checkpoints.
extension JobManager {
    /// Lets go of disks for good and writes what another server needs to go on with their
    /// checkpoints.
    ///
    /// The order is what makes it safe: the disks are closed, then it is durable that they are
    /// another server's, then their bits are no longer believed here, and only then there is a file
    /// that can be imported. Broken off after the second step the disks are nobody's, and the same
    /// call again writes the file.
    ///
    /// - Throws: 55 while the domain has a job, and without `force` while a client is connected;
    ///   all is as it was, unless the text says that the disks are let go of.
    package func exportState(
        of name: String, disks wanted: [String], to path: String, force: Bool = false
    ) async throws(ControlError) -> MoveView {
        try checkTakesChanges()
        guard let state else { throw .operationUnsupported("there is no state directory") }
        try reserve(name, uuid: try domain(name).definition.uuid)
        defer { reserved[name] = nil }
        await lockCheckpoints(of: name)
        defer { unlockCheckpoints(of: name) }
        guard !isStopping else { throw .serverStopping }
        let (disks, before) = try departing(wanted, of: name)
        if let before {
            if let written = try await written(path, before, disks) {
                return MoveView(written, domain: name, file: path)
            }
            return try await finishExport(disks, before, of: name, to: path)
        }
        try await checkPlace(path)
        try checkNoJob(of: name)
        if !force { try await checkUnused(disks, of: name) }
        try checkNoJob(of: name)
        let id = UUID().uuidString.lowercased()
        let closed = try await withdraw(disks, of: name, force: force)
        do throws(ControlError) {
            if let problem = closed.problem { throw .cannotMove(disks[0].target, problem) }
            try await rehearse(disks, id, of: name, to: path)
            try letGo(disks, id, of: name, state)
        } catch {
            await forgetUnfinished(path, id)
            await reopen(closed, of: name)
            throw error
        }
        let domain = try domain(name)
        for disk in disks {
            domains[name]?.attachments[disk.target] = .failed(
                reason: domain.reasonAway(disk) ?? "another server has it")
        }
        forgetExports(closed, of: domain.definition)
        removeStandIns(of: domain.definition)
        return try await finishExport(disks, id, of: name, to: path)
    }

    /// The disks that are to go; `before` is the move by which they have gone already.
    private func departing(
        _ wanted: [String], of name: String
    ) throws(ControlError) -> (disks: [DomainDisk], before: String?) {
        let domain = try domain(name)
        if let problem = domain.movesProblem { throw .cannotMove(name, problem) }
        var disks: [DomainDisk] = []
        for text in wanted {
            guard let disk = domain.disk(text) else { throw .unknownDisk(text) }
            guard disk.isTrackable else { throw .diskEmptyOrReadOnly(disk.target) }
            if !disks.contains(where: { $0.target == disk.target }) { disks.append(disk) }
        }
        if wanted.isEmpty {
            disks = domain.definition.disks.filter(\.isTrackable)
            let present = disks.filter { !domain.isAway($0) }
            if !present.isEmpty { disks = present }
        }
        guard !disks.isEmpty else { throw .cannotMove(name, "there is none to export") }
        let away = disks.filter(domain.isAway)
        if !away.isEmpty {
            let moves = Set(away.compactMap { domain.moves[$0.target]?.move })
            guard away.count == disks.count, moves.count == 1, let move = moves.first else {
                throw .cannotMove(
                    away[0].target, "it was exported before: export those of one move together")
            }
            return (disks, move)
        }
        for disk in disks {
            guard case .attached = domain.attachments[disk.target] else {
                var reason = "it is not served"
                if case .failed(let text) = domain.attachments[disk.target] { reason = text }
                throw .diskUnavailable(domain: name, target: disk.target, reason: reason)
            }
            let moves = domain.moves[disk.target]?.generation ?? 0
            guard moves < DiskStateFile.generationMax - 1 else {
                throw .cannotMove(disk.target, "it has moved \(moves) times, the most there are")
            }
        }
        return (disks, nil)
    }

    /// A job needs its disks, and decides what its checkpoint is worth.
    func checkNoJob(of name: String) throws(ControlError) {
        guard let job = jobs.values.first(where: { $0.domain == name }) else { return }
        throw ControlError(
            .operationInvalid, code: "domain-busy", status: 409,
            detail: "domain '\(name)' has backup job '\(job.id)': end that first")
    }

    /// Whether the file can be written, before anything is let go of.
    private func rehearse(
        _ disks: [DomainDisk], _ id: String, of name: String, to path: String
    ) async throws(ControlError) {
        let count = try await encoded(disks, id, of: name, to: path, givingUp: false).bytes.count
        // Nothing that could be imported.
        try await write(
            [UInt8](repeating: 0, count: count + (64 << 10)), to: path, id, isWhole: false)
    }

    /// From here on another server may have them; in one step for all.
    private func letGo(
        _ disks: [DomainDisk], _ id: String, of name: String, _ state: StateDirectory
    ) throws(ControlError) {
        let domain = try domain(name)
        var moves = domain.moves
        for disk in disks {
            moves[disk.target] = StoredMove(
                disk: disk.target, generation: (moves[disk.target]?.generation ?? 0) + 1, move: id,
                phase: .away)
        }
        do throws(ControlError) {
            try state.save(Array(moves.values), of: domain.definition.uuid)
        } catch {
            // It may be in its place, and not be durable.
            do throws(ControlError) {
                try state.save(Array(domain.moves.values), of: domain.definition.uuid)
            } catch let second {
                throw error.adding(
                    "; the next start may find the disks gone: \(second.message)")
            }
            throw error
        }
        domains[name]?.moves = moves
        movedDomains.insert(name)
    }

    private func finishExport(
        _ disks: [DomainDisk], _ id: String, of name: String, to path: String
    ) async throws(ControlError) -> MoveView {
        do throws(ControlError) {
            return try await writeState(disks, id, of: name, to: path)
        } catch {
            throw error.adding(
                "; the disks are let go of already: give the same command again, to the same or"
                    + " another file")
        }
    }

    private func writeState(
        _ disks: [DomainDisk], _ id: String, of name: String, to path: String
    ) async throws(ControlError) -> MoveView {
        let (content, bytes) = try await encoded(disks, id, of: name, to: path, givingUp: true)
        try await write(bytes, to: path, id, isWhole: true)
        for disk in disks {
            events.append(
                ControlEvent(
                    .diskExported, domain: name, disk: disk.target,
                    message: "to '\(path)', move \(id)"))
        }
        return MoveView(content, domain: name, file: path)
    }

    /// What the file says, and its bytes.
    private func encoded(
        _ disks: [DomainDisk], _ id: String, of name: String, to path: String, givingUp: Bool
    ) async throws(ControlError) -> (content: DiskState, bytes: [UInt8]) {
        let domain = try domain(name)
        var parts: [DiskState.Disk] = []
        var layers: [[UInt8]] = []
        for disk in disks {
            let generation = domain.moves[disk.target]?.generation ?? 0
            let moved = try await pack(disk, id, of: name, givingUp: givingUp)
            parts.append(
                DiskState.Disk(
                    disk: disk.target, generation: givingUp ? generation : generation + 1,
                    source: moved.source,
                    granularityBytes: moved.granularityBytes,
                    layers: moved.layers.map {
                        DiskState.Layer(checkpoint: $0.checkpoint, bytes: $0.bytes.count)
                    }))
            layers += moved.layers.map(\.bytes)
        }
        let targets = Set(disks.map(\.target))
        let content = DiskState(
            id: id, exported: Date(), domain: name, uuid: domain.definition.uuid, disks: parts,
            checkpoints: domain.checkpoints.moving(with: targets))
        let bits = layers
        let bytes = try await onFile(path) { () throws(ControlError) in
            do throws(DiskStateFile.Damage) {
                return try DiskStateFile.encode(content, bits)
            } catch {
                throw .stateFileNotWritten(path, error.detail)
            }
        }
        return (content, bytes)
    }

    private func pack(
        _ disk: DomainDisk, _ id: String, of name: String, givingUp: Bool
    ) async throws(ControlError) -> MovedTracking {
        let domain = try domain(name)
        guard let configuration = try configuration(of: disk, in: domain) else {
            throw .diskEmptyOrReadOnly(disk.target)
        }
        let keeping = Set(domain.checkpoints.moving(with: [disk.target]).map(\.name))
        do throws(ServerFault) {
            return givingUp
                ? try await engine.giveUpTracking(configuration, move: id, keeping: keeping)
                : try await engine.packTracking(configuration, move: id, keeping: keeping)
        } catch {
            if case .notTracked(_, let detail) = error { throw .cannotMove(disk.target, detail) }
            throw controlError(from: error)
        }
    }

    // MARK: The file

    /// The name that a file has while it is written, which is of this move alone.
    private static func unfinished(_ path: String, _ id: String) -> String { "\(path).\(id).new" }

    /// What the file says that an earlier call has written for the same move and disks, which may
    /// not have known that it had; nil when there is no file.
    private func written(
        _ path: String, _ id: String, _ disks: [DomainDisk]
    ) async throws(ControlError) -> DiskState? {
        let found: DiskState
        do throws(ControlError) {
            try await checkPlace(path)
            return nil
        } catch {
            guard let there = try? await read(path).state, there.id == id,
                Set(there.disks.map(\.disk)) == Set(disks.map(\.target))
            else { throw error }
            found = there
        }
        try await onFile(path) { () throws(ControlError) in
            do throws(SystemCalls.Failure) {
                try SystemCalls.syncDirectory((path as NSString).deletingLastPathComponent)
            } catch {
                throw .stateFileNotWritten(path, error.text)
            }
        }
        return found
    }

    private func checkPlace(_ path: String) async throws(ControlError) {
        guard path.hasPrefix("/") else {
            throw .invalidArgument(what: "file '\(path)'", detail: "give an absolute path")
        }
        try await onFile(path) { () throws(ControlError) in
            guard SystemCalls.identity(of: path) == nil else {
                throw .stateFileNotWritten(path, "it exists")
            }
        }
    }

    /// Writes the file under another name; `isWhole` gives it its own, which nobody may have.
    private func write(
        _ bytes: [UInt8], to path: String, _ id: String, isWhole: Bool
    ) async throws(ControlError) {
        try await onFile(path) { () throws(ControlError) in
            let unfinished = Self.unfinished(path, id)
            do throws(SystemCalls.Failure) {
                try SystemCalls.unlink(unfinished)
                let file = try SystemCalls.open(unfinished, flags: O_WRONLY | O_CREAT | O_EXCL)
                try SystemCalls.writeDurably(bytes, to: file)
                guard isWhole else { return }
                try SystemCalls.renameToNew(unfinished, path)
                try SystemCalls.syncDirectory((path as NSString).deletingLastPathComponent)
            } catch {
                _ = try? SystemCalls.unlink(unfinished)
                throw .stateFileNotWritten(path, error.text)
            }
        }
    }

    private func forgetUnfinished(_ path: String, _ id: String) async {
        try? await onFile(path) { () throws(ControlError) in
            _ = try? SystemCalls.unlink(Self.unfinished(path, id))
        }
    }

    /// Does something with a file that a caller named.
    func onFile<Value: Sendable>(
        _ path: String, _ body: @escaping @Sendable () throws(ControlError) -> Value
    ) async throws(ControlError) -> Value {
        let answer = await storage.run(
            at: .of(path), what: "'\(path)'", .end(milliseconds: settings.storageMilliseconds)
        ) { () -> Result<Result<Value, ControlError>, ServerFault> in
            do throws(ControlError) {
                return .success(.success(try body()))
            } catch {
                return .success(.failure(error))
            }
        }
        switch answer {
        case .success(let result): return try result.get()
        case .failure(let fault): throw controlError(from: fault)
        }
    }

    // MARK: What is known

    /// Takes up which of a domain's disks have moved; a line for each thing that is wrong.
    func loadMoves(into domain: inout ManagedDomain) -> [String] {
        guard let state else { return [] }
        do throws(StateDirectory.DamagedFile) {
            for move in try state.moves(of: domain.definition.uuid) {
                domain.moves[move.disk] = move
                movedDomains.insert(domain.definition.name)
            }
            return []
        } catch {
            domain.movesProblem = error.text
            movedDomains.insert(domain.definition.name)
            return note([error])
        }
    }

    /// Somebody has taken these disks out of the domain: whoever defines them anew wants them
    /// served.
    ///
    /// That they have moved stays known, so that no old file is taken for a new one.
    func endMoves(of domain: ManagedDomain, targets: Set<String>) {
        var moves = domain.moves
        for target in targets {
            guard let phase = moves[target]?.phase, phase == .away || phase == .coming else {
                continue
            }
            moves[target]?.phase = .over
        }
        guard moves != domain.moves else { return }
        do throws(ControlError) {
            try state?.save(Array(moves.values), of: domain.definition.uuid)
            domains[domain.definition.name]?.moves = moves
        } catch {
            noteStateProblem(error.message, domain: domain.definition.name)
        }
    }
}

extension CheckpointTree {
    /// What another server is to know of checkpoints of these disks, every parent before its
    /// children.
    fileprivate func moving(with targets: Set<String>) -> [CheckpointMetadata] {
        topological.compactMap { self[$0] }
            .filter { checkpoint in
                checkpoint.disks.contains { $0.bitmap != nil && targets.contains($0.target) }
            }
            .map { checkpoint in
                var checkpoint = checkpoint
                // The job has ended well, or the checkpoint would not be there.
                checkpoint.jobID = nil
                return checkpoint
            }
    }
}
