import BoundedCalls
import Foundation
import ServerInterface

/// A disk that comes from another server is looked at before it is taken over.
extension JobManager {
    /// Opens a disk that is not served, and looks whether it is the one that was let go of.
    func look(
        at coming: inout Coming, _ content: DiskState, _ nonce: String, of name: String,
        _ request: ImportRequest
    ) async throws(ControlError) {
        let target = coming.disk.target
        let domain = try domain(name)
        let id: DiskID
        if case .attached(let served) = domain.attachments[target] {
            id = served
        } else {
            coming.isAside = domain.reasonAway(coming.disk) != nil
            id = try await openHidden(coming, domain)
            coming.hidden = id
        }
        let status: DiskStatus
        let moving: MovingStatus
        do throws(ServerFault) {
            status = try await engine.diskStatus(id)
            moving = try await engine.movingStatus(id, move: content.id, nonce: nonce)
        } catch {
            throw controlError(from: error)
        }
        guard status.sizeBytes == coming.state.source.sizeBytes else {
            throw .cannotMove(
                target,
                "it has \(status.sizeBytes) bytes here, and had \(coming.state.source.sizeBytes)"
                    + " when it was let go of: it is another disk, or was resized since")
        }
        if status.clientCount > 0, !request.force {
            throw .disksInUse(name, [(target, status.clientCount)])
        }
        let names = coming.state.layers.compactMap(\.checkpoint)
        let known = domain.moves[target]
        if known?.phase == .coming, known?.move == content.id { coming.doubt = known?.doubt }
        if known?.phase == .coming, known?.move == content.id, !names.isEmpty,
            moving.checkpoints.starts(with: names)
        {
            coming.isInstalled = true
            return
        }
        if !moving.checkpoints.isEmpty {
            throw .cannotMove(
                target,
                "it has checkpoints of its own here ("
                    + moving.checkpoints.joined(separator: ", ") + "): delete them first")
        }
        if moving.note == .taken {
            throw .cannotMove(
                target, "another server has taken it over since, by what is noted on its file")
        }
        coming.doubt =
            coming.doubt
            ?? Self.doubt(
                coming.state.source, moving, wasServed: known?.phase == .over, request.isUnchanged)
    }

    /// Whether the bits that come are whole, and fit the disk as it was found and closed.
    func check(_ coming: Coming, of name: String) async throws(ControlError) {
        guard let configuration = try configuration(of: coming, in: try domain(name)) else {
            throw .diskEmptyOrReadOnly(coming.disk.target)
        }
        do throws(ServerFault) {
            try await engine.checkTracking(coming.tracking, configuration)
        } catch {
            if case .notTracked(_, let detail) = error {
                throw .cannotMove(coming.disk.target, detail)
            }
            throw controlError(from: error)
        }
    }

    /// Why it is not known that the disk is as it was left; nil when it is, as far as it can be.
    private static func doubt(
        _ left: MovedSource, _ found: MovingStatus, wasServed: Bool, _ isVouchedFor: Bool
    ) -> String? {
        let source = found.source
        // What this server has written itself, and has no bits of, is nothing to vouch for.
        let wasUntracked = found.note == .other && source.mark != left.mark
        guard found.isFromTheBeginning, !wasUntracked, !wasServed else {
            return "this server had the disk before, and did not record all of that time"
        }
        if isVouchedFor { return nil }
        guard left.changedNanoseconds != 0, source.changedNanoseconds != 0 else {
            return "the storage of '\(source.path)' does not show whether it was changed"
        }
        guard left.inode == source.inode, left.changedNanoseconds == source.changedNanoseconds
        else {
            return "'\(source.path)' is another file than the one that was let go of, or was"
                + " changed since, or this host sees it otherwise"
        }
        return left.mark.isEmpty || found.note == .fits
            ? nil : "what was noted on '\(source.path)' when it was let go of is gone"
    }

    // MARK: Opening and closing

    /// A tracking directory that no disk of a domain has; a start removes it.
    static func aside(_ target: String) -> String { target + ".coming" }

    private func configuration(
        of coming: Coming, in domain: ManagedDomain
    ) throws(ControlError) -> DiskConfiguration? {
        var found = try configuration(of: coming.disk, in: domain)
        if coming.isAside, let state {
            found?.tracking?.directory = state.trackingDirectory(
                of: domain.definition.uuid, target: Self.aside(coming.disk.target))
        }
        return found
    }

    /// Nobody asks for such a name.
    private func openHidden(
        _ coming: Coming, _ domain: ManagedDomain
    ) async throws(ControlError) -> DiskID {
        let disk = coming.disk
        if let error = await refusalElsewhere(disk, of: domain.definition, waits: false) {
            throw error
        }
        let export = domain.definition.liveExportName(target: disk.target)
        // Of two attempts at one disk the one that comes late would find the other's bits changed.
        guard !attachingExports.contains(export), !isOpening(disk.target, of: domain.definition)
        else { throw .domainChanging(domain.definition.name) }
        if coming.isAside {
            try endTracking(of: domain.definition.uuid, target: Self.aside(disk.target))
        }
        guard var configuration = try configuration(of: coming, in: domain) else {
            throw .diskEmptyOrReadOnly(disk.target)
        }
        configuration.exportName = UUID().uuidString
        configuration.vhostSocket = nil
        attachingExports.insert(export)
        do {
            return try await engine.attachDisk(configuration)
        } catch {
            attachingExports.remove(export)
            throw refusal(error, of: disk, in: domain.definition.name)
        }
    }

    /// Closes what was opened for a look, when nothing comes of it.
    func giveUp(_ coming: [Coming], of name: String) async {
        guard let definition = domains[name]?.definition else { return }
        for disk in coming {
            guard let id = disk.hidden else { continue }
            _ = await close(id, force: true)
            if disk.isAside {
                try? endTracking(of: definition.uuid, target: Self.aside(disk.disk.target))
            }
            attachingExports.remove(definition.liveExportName(target: disk.disk.target))
        }
    }

    /// Closes all of them in order; those that were served are returned.
    func closeAll(
        _ coming: inout [Coming], of name: String, _ force: Bool
    ) async throws(ControlError) -> ClosedDisks {
        let served = coming.filter { $0.hidden == nil }.map(\.disk)
        var closed = try await withdraw(served, of: name, force: force)
        for disk in coming {
            guard let id = disk.hidden else { continue }
            switch await close(id, force: true) {
            case .closed: break
            case .closedUnflushed(let text): closed.problem = closed.problem ?? text
            case .refused(let error): closed.problem = closed.problem ?? error.message
            }
        }
        return closed
    }

    /// Serves them all, as well as it goes.
    func openAgain(_ coming: [Coming], _ closed: ClosedDisks, of name: String) async {
        await reopen(closed, of: name)
        for disk in coming where disk.hidden != nil {
            guard let domain = domains[name] else { return }
            defer {
                attachingExports.remove(
                    domain.definition.liveExportName(target: disk.disk.target))
            }
            do throws(ControlError) {
                let opened = try await open(disk.disk, of: domain)
                domains[name]?.attachments[disk.disk.target] = opened
            } catch {
                note(failure: error.message, of: disk.disk, in: name)
            }
        }
    }
}
