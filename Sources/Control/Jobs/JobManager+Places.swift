import BoundedCalls
import Foundation
import ServerInterface

/// Nothing that a disk or a job has is written over by a job, under whatever name it is given.
///
/// What this server has open keeps others out by itself. This is for all that it knows: a disk that
/// another server has, that is being opened, is set aside or cannot be opened is somebody's, too.
extension JobManager {
    private typealias Reached = (identity: SystemCalls.FileIdentity, isBlock: Bool)

    /// A place that is not to be written over.
    private struct UsedPlace: Sendable {
        enum Holder: Sendable, Hashable {
            case disk(String, domain: String)
            case scratch(job: String)
            case target(job: String)
        }

        let place: BytesPlace
        let holder: Holder
        var isScratch: Bool { if case .scratch = holder { true } else { false } }
    }

    /// What a job is going to write.
    private struct WrittenPlace: Sendable {
        let place: BytesPlace
        /// What people know it by.
        let text: String
        /// The target of the disk that it is for.
        let disk: String
        /// It is there already, and is written to as it is.
        let isOld: Bool
        let isPushTarget: Bool
    }

    /// Another path is waited for so long, in milliseconds.
    private static let lookMilliseconds: Int32 = 2_000

    /// Refuses a job that would write over what is a disk of any domain, or another job's.
    func checkPlaces(of job: Job) async throws(ControlError) {
        // All at one time: of two jobs with the same place the later one is refused.
        let used = usedPlaces(besides: job.id)
        // Of scratch and scratch the engine knows: both are open.
        let usedByOthers = used.filter { !$0.isScratch }
        let usedByName = job.plan.push == nil ? [:] : Self.byName(used)
        let othersByName = Self.byName(usedByOthers)
        var looks: [String: Reached?] = [:]
        for written in Self.written(by: job.plan) {
            if written.isPushTarget { try await checkNotOwn(written) }
            let known = written.isPushTarget ? usedByName : othersByName
            if let same = Self.same(written.place, in: known) {
                throw Self.taken(written, by: same)
            }
            guard written.isOld else { continue }
            try await checkReached(
                written, written.isPushTarget ? used : usedByOthers, &looks)
        }
    }

    private func usedPlaces(besides id: String) -> [UsedPlace] {
        var used: [UsedPlace] = []
        for domain in domains.values {
            for disk in domain.definition.disks {
                used += Self.places(of: disk, in: domain.definition)
            }
        }
        for job in jobs.values {
            for disk in job.plan.disks where disk.participates {
                for place in disk.scratch?.places ?? [] {
                    used.append(UsedPlace(place: place, holder: .scratch(job: job.id)))
                }
                guard let target = disk.pushTarget, job.id != id else { continue }
                used.append(
                    UsedPlace(
                        place: .local(path: target.path, target.kind),
                        holder: .target(job: job.id)))
            }
        }
        return used
    }

    private static func places(
        of disk: DomainDisk, in definition: DomainDefinition
    ) -> [UsedPlace] {
        disk.places.map {
            UsedPlace(place: $0, holder: .disk(disk.target, domain: definition.name))
        }
    }

    private static func byName(_ used: [UsedPlace]) -> [String: [UsedPlace]] {
        Dictionary(grouping: used, by: \.place.name)
    }

    private static func same(
        _ place: BytesPlace, in used: [String: [UsedPlace]]
    ) -> UsedPlace? {
        used[place.name]?.first { place.mayBe($0.place) }
    }

    private static func written(by plan: BackupPlan) -> [WrittenPlace] {
        var written: [WrittenPlace] = []
        for disk in plan.disks where disk.participates {
            if let target = disk.pushTarget {
                written.append(
                    WrittenPlace(
                        place: .local(path: target.path, target.kind), text: target.path,
                        disk: disk.target, isOld: target.kind == .block || target.reuseExternal,
                        isPushTarget: true))
            }
            guard let scratch = disk.scratch else { continue }
            for place in scratch.places {
                written.append(
                    WrittenPlace(
                        place: place, text: scratch.path, disk: disk.target,
                        isOld: scratch.kind != .file || scratch.reuseExternal,
                        isPushTarget: false))
            }
        }
        return written
    }

    private static func taken(_ written: WrittenPlace, by used: UsedPlace) -> ControlError {
        let (path, target) = (written.text, written.disk)
        switch used.holder {
        case .disk(let disk, let domain):
            return written.isPushTarget
                ? .targetInUse(path, target, "disk '\(disk)' of domain '\(domain)'")
                : .scratchIsDisk(path, target, source: "\(domain)/\(disk)")
        case .scratch(let job): return .targetInUse(path, target, "scratch of job '\(job)'")
        case .target(let job): return .targetInUse(path, target, "a target of job '\(job)'")
        }
    }

    // MARK: Paths

    /// Several names may lead to one file, device or socket.
    private func checkReached(
        _ written: WrittenPlace, _ used: [UsedPlace], _ looks: inout [String: Reached?]
    ) async throws(ControlError) {
        guard let path = written.place.path,
            let found = try await reached(path, settings.storageMilliseconds, &looks)
        else { return }
        for other in used
        where written.place.isComparable(to: other.place, isBlock: found.isBlock) {
            guard let path = other.place.path,
                let there = try await reached(path, Self.lookMilliseconds, &looks),
                there.identity == found.identity
            else { continue }
            throw Self.taken(written, by: other)
        }
    }

    // Each path is looked at for itself: one that hangs says nothing about the others. Of one that
    // does not answer nobody can say that it is not the same.
    private func reached(
        _ path: String, _ milliseconds: Int32?, _ looks: inout [String: Reached?]
    ) async throws(ControlError) -> Reached? {
        if let known = looks[path] { return known }
        let look = await storage.run(
            at: .of(path), what: "'\(path)'", .begin(milliseconds: milliseconds)
        ) { () -> Result<Reached?, ServerFault> in .success(SystemCalls.reached(path)) }
        switch look {
        case .success(let found):
            looks[path] = .some(found)
            return found
        case .failure(let fault): throw controlError(from: fault)
        }
    }

    // MARK: Disks that are away

    /// Why a disk is not opened for writing: another definition has it as a disk that is another
    /// server's; nil when none does.
    ///
    /// `waits`: as long as its storage takes.
    func refusalElsewhere(
        _ disk: DomainDisk, of definition: DomainDefinition, waits: Bool
    ) async -> ControlError? {
        guard !disk.readOnly else { return nil }
        var away: [UsedPlace] = []
        // Not all domains: at a start there are as many disks to open.
        for domain in movedDomains.compactMap({ domains[$0] }) {
            let isOwn = domain.definition.uuid == definition.uuid
            for other in domain.definition.disks
            where domain.reasonAway(other) != nil && !(isOwn && other.target == disk.target) {
                away += Self.places(of: other, in: domain.definition)
            }
        }
        guard !away.isEmpty else { return nil }
        let names = Self.byName(away)
        for place in disk.writablePlaces {
            if let same = Self.same(place, in: names) { return Self.elsewhere(disk, same) }
            do throws(ControlError) {
                let same = try await reached(
                    place, among: away, waits ? nil : settings.storageMilliseconds)
                if let same { return Self.elsewhere(disk, same) }
            } catch {
                return error
            }
        }
        return nil
    }

    private func reached(
        _ place: BytesPlace, among away: [UsedPlace], _ milliseconds: Int32?
    ) async throws(ControlError) -> UsedPlace? {
        var looks: [String: Reached?] = [:]
        guard let path = place.path, let found = try await reached(path, milliseconds, &looks)
        else { return nil }
        // What does not answer is another place than one that does.
        var silent: Set<StoragePlace> = []
        for other in away where place.isComparable(to: other.place, isBlock: found.isBlock) {
            guard let path = other.place.path, !silent.contains(.of(path)) else { continue }
            do throws(ControlError) {
                let there = try await reached(path, Self.lookMilliseconds, &looks)
                if there?.identity == found.identity { return other }
            } catch {
                silent.insert(.of(path))
            }
        }
        return nil
    }

    private static func elsewhere(_ disk: DomainDisk, _ used: UsedPlace) -> ControlError {
        guard case .disk(let other, let domain) = used.holder else {
            return .internalError("'\(disk.target)' is no disk")
        }
        return ControlError(
            .operationInvalid, code: "source-locked", status: 409,
            detail: "source '\(disk.path ?? "")' is disk '\(other)' of domain '\(domain)', which"
                + " another server has: import its state there (disk-import-state), or detach it"
                + " there (detach-disk)")
    }

    // The server opens scratch itself and finds that out then; targets are opened by others.
    private func checkNotOwn(_ written: WrittenPlace) async throws(ControlError) {
        guard let path = written.place.path else { return }
        let own = ownDirectories()
        let answer = await storage.run(
            at: .of(path), what: "'\(path)'", .begin(milliseconds: settings.storageMilliseconds)
        ) { () -> Result<Bool, ServerFault> in .success(Self.isBelow(own, path)) }
        switch answer {
        case .success(true): throw .targetInUse(path, written.disk, "the server's own directory")
        case .success(false): break
        case .failure(let fault): throw controlError(from: fault)
        }
    }

    private func ownDirectories() -> [String] {
        (state.map { StateDirectory.ownPaths(in: $0.path) } ?? []) + [
            settings.runDirectory, "/dev/shm/nbdpull-\(SystemCalls.effectiveUser)",
        ]
    }

    private static func isBelow(_ directories: [String], _ path: String) -> Bool {
        let url = URL(fileURLWithPath: path)
        let real = url.deletingLastPathComponent().resolvingSymlinksInPath().path
        let whole = url.resolvingSymlinksInPath().path
        return directories.contains { directory in
            let place = URL(fileURLWithPath: directory).resolvingSymlinksInPath().path
            return [real, whole].contains { $0 == place || $0.hasPrefix(place + "/") }
        }
    }
}

extension ControlError {
    /// Writing there would destroy something that the server uses.
    static func targetInUse(_ path: String, _ disk: String, _ holder: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "target-in-use", status: 409,
            detail: "store '\(path)' for backup of '\(disk)' is in use by this server: it is "
                + holder)
    }

    /// The scratch named is a disk, of whatever domain, and would be written over; `source` is that
    /// disk's live export.
    static func scratchIsDisk(_ path: String, _ disk: String, source: String) -> ControlError {
        ControlError(
            .invalidArgument, code: "scratch-is-source", status: 409,
            detail: "store '\(path)' for backup of '\(disk)' is a disk's: it is the source of disk"
                + " '\(source)', whoever has that open now")
    }
}
