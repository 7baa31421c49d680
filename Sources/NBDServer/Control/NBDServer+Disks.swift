import BoundedCalls
import Disk
import NBDProtocol
import ScratchFiles
package import ServerInterface
import Synchronization
import SystemLayer
import TrackingFiles
import Upstream

/// Disks come and go.
extension NBDServer {
    /// Opens and locks the source and publishes its live export.
    package func attachDisk(
        _ configuration: DiskConfiguration
    ) async throws(ServerFault) -> DiskID {
        let attached = await attach(configuration)
        if case .failure = attached { stopAwaiting(configuration.exportName) }
        let disk = try attached.get()
        guard let path = configuration.vhostSocket else { return disk }
        do throws(ServerFault) {
            try await listenVhost(disk, path: path)
        } catch {
            _ = await detach(disk, .ordinary)
            throw error
        }
        return disk
    }

    /// Withdraws the live export, disconnects its clients after their requests in flight, closes
    /// the source.
    package func detachDisk(_ disk: DiskID) async throws(ServerFault) {
        let doubt = doubt(disk)
        let remote = state.withLock { $0.disks[disk]?.source.remote }
        _ = try await detach(disk, .ordinary).get()
        // Whoever attaches it again has it as it is.
        doubt?.say(isUnheard: false)
        remote?.forgetLoss()
    }

    /// A snapshot of an attached disk's figures.
    package func diskStatus(_ disk: DiskID) async throws(ServerFault) -> DiskStatus {
        guard let export = state.withLock({ $0.disks[disk] }) else { throw .unknownDisk }
        let tracking = trackingStatus(disk)
        var status = DiskStatus(
            sizeBytes: export.source.sizeBytes,
            clientCount: export.clientCount.load(ordering: .relaxed),
            dirtyBytes: tracking?.dirtyBytes ?? 0, tracking: tracking)
        status.figures = export.figures.value
        status.overwrittenBytes = export.overwritten.bytes(
            now: MonotonicClock.now(), diskBytes: export.source.sizeBytes)
        status.earlierLoss =
            export.source.isReadOnly
            ? nil : export.source.earlierLoss.map(SystemFault.text(for:))
        return status
    }

    // MARK: Attaching

    private func attach(_ configuration: DiskConfiguration) async -> Result<DiskID, ServerFault> {
        let place: Reservation
        switch reserve(configuration) {
        case .failure(let fault): return .failure(fault)
        case .success(let taken): place = taken
        }
        defer { giveBack(place, configuration.exportName) }
        // Where many disks wait for their turn, as at a start, those go first for which machines
        // wait, and then those of jobs.
        let isUrgent: @Sendable () -> Bool = { [live] in
            live.isAskedFor(configuration.exportName)
        }
        let hasJob = isExpected(configuration.exportName)
        return await openings.run(isUrgent: isUrgent, comesEarly: hasJob) {
            await open(configuration, place, isUrgent, hasJob: hasJob)
        }
    }

    private func open(
        _ configuration: DiskConfiguration, _ place: Reservation,
        _ isUrgent: @escaping @Sendable () -> Bool, hasJob: Bool
    ) async -> Result<DiskID, ServerFault> {
        let limit = configuration.waitsForStorage ? nil : shared.configuration.storageMilliseconds
        let opened = await storage.run(
            at: .of(configuration.path), what: "'\(configuration.path)'",
            .begin(milliseconds: limit), isUrgent: isUrgent, comesEarly: hasJob
        ) {
            self.shared.flight.during(.openingDisk, configuration.exportName) {
                self.openSource(configuration, home: place.home)
            }
        }
        switch opened {
        case .failure(let fault): return .failure(fault)
        case .success(let source):
            let left = await openExpected(
                configuration.exportName, source, isUrgent: isUrgent)
            return await storage.run(
                at: .tracking, what: StoragePlace.tracking.text, .end(milliseconds: nil),
                isUrgent: isUrgent, comesEarly: hasJob
            ) {
                guard self.keep(place, configuration.exportName) else {
                    return .failure(.exportNameTaken(name: configuration.exportName))
                }
                return self.shared.flight.during(.openingDisk, configuration.exportName) {
                    self.publish(configuration, source, place.home, left)
                }
            }
        }
    }

    /// A disk's name and its place on a ring while it is being attached.
    struct Reservation: Sendable {
        let home: Int
        let number: UInt64
        /// It waits for its storage as long as that takes, so a later call may have the name.
        var yields: Bool
    }

    private func giveBack(_ place: Reservation, _ name: String) {
        state.withLock { state in
            if state.attaching[name]?.number == place.number { state.attaching[name] = nil }
        }
    }

    /// From here on nobody else gets the name; false when somebody has it already.
    private func keep(_ place: Reservation, _ name: String) -> Bool {
        state.withLock { state in
            guard !state.hasLeft, !state.isStopping,
                state.attaching[name]?.number == place.number
            else {
                return false
            }
            state.attaching[name]?.yields = false
            return true
        }
    }

    /// Takes the name and a place on a ring for a disk that is being attached.
    private func reserve(_ configuration: DiskConfiguration) -> Result<Reservation, ServerFault> {
        let name = configuration.exportName
        let home = shared.pickRing(for: .guests)
        return state.withLock { state in
            guard !state.isStopping else { return .failure(.shuttingDown) }
            guard state.attaching[name]?.yields ?? true, live.target(named: name) == nil else {
                return .failure(.exportNameTaken(name: name))
            }
            let count =
                state.disks.values.count { $0.homeRing == home }
                + state.attaching.values.count { $0.home == home }
            guard count < Limits.disksPerRing else {
                return .failure(
                    .limitReached(what: "disks of a ring", limit: Limits.disksPerRing))
            }
            state.lastReservation += 1
            let place = Reservation(
                home: home, number: state.lastReservation, yields: configuration.waitsForStorage)
            state.attaching[name] = place
            return .success(place)
        }
    }

    /// At a start a killed server may still hold the disk: the kernel ends its requests and closes
    /// its files a moment after it, and machines wait for that.
    private func openSource(
        _ configuration: DiskConfiguration, home: Int
    ) -> Result<RawSource, ServerFault> {
        if configuration.kind == .network || configuration.image != nil {
            return openUpstream(configuration, home: home)
        }
        do throws(SourceFault) {
            let source = try openFreeSource(configuration)
            if let job = waitingJob(withScratch: source.node) {
                return .failure(
                    .sourceLocked(
                        path: configuration.path, detail: Self.keepsContent(of: job)))
            }
            refuseJobs(on: source, servedAs: configuration.exportName)
            return .success(source)
        } catch {
            if case .inUse(_, let node?) = error, let export = export(of: node) {
                return .failure(.sourceServed(path: configuration.path, export: export))
            }
            if case .inUse(_, let node?) = error, let job = job(withScratch: node) {
                return .failure(
                    .sourceLocked(
                        path: configuration.path, detail: "it is scratch of backup job \(job)"))
            }
            return .failure(Self.fault(configuration.path, error))
        }
    }

    private func openFreeSource(
        _ configuration: DiskConfiguration
    ) throws(SourceFault) -> RawSource {
        // A disk that was detached a moment ago may still be held by whoever looked at it just
        // then.
        let patience =
            live.isAwaited(configuration.exportName)
            ? Limits.resumeInUseNanoseconds : Limits.closedSourceNanoseconds
        return try InUse.outwait(nanoseconds: patience, while: Self.isInUse) {
            () throws(SourceFault) in
            try RawSource(
                path: configuration.path,
                expected: configuration.kind == .file ? .regular : .blockDevice,
                readOnly: configuration.readOnly, direct: configuration.cacheMode == .none,
                reserved: shared.reserved)
        }
    }

    static func isInUse(_ fault: SourceFault) -> Bool {
        switch fault {
        case .inUse: true
        case .system(let fault): fault.errno == Errno.busy
        default: false
        }
    }

    static func isInUse(_ fault: ScratchFault) -> Bool {
        if case .unusable(let fault) = fault { return isInUse(fault) }
        return false
    }

    /// The name by which a source is served already.
    private func export(of node: FileNode) -> String? {
        state.withLock { state in
            state.disks.values.first { $0.source.node == node }?.description.name
        }
    }

    /// The job that keeps old content in a file or device.
    private func job(withScratch node: FileNode) -> String? {
        state.withLock { state in
            state.jobs.first { $0.value.exports.contains { $0.scratch.node == node } }?.key
        }
    }

    /// On a thread: takes up the disk's tracking, gives it to its ring, makes it known.
    private func publish(
        _ configuration: DiskConfiguration, _ source: RawSource, _ home: Int,
        _ left: [PreparedExport]
    ) -> Result<DiskID, ServerFault> {
        let disk = state.withLock { state in
            state.lastDisk += 1
            return DiskID(number: state.lastDisk)
        }
        let export = LiveExport(
            configuration, disk: disk, source: source, homeRing: home, places: shared.places)
        shared.flight.name(export.id.number, "disk \(configuration.exportName)")
        let tracking: (DiskTracking, TrackingSeed?)?
        do throws(ServerFault) {
            tracking = try openTracking(configuration, source, disk)
        } catch {
            return .failure(error)
        }
        guard AddDiskCall(export, tracking?.1, shared).run() else {
            return .failure(.ringStuck(milliseconds: UInt64(Limits.ringMilliseconds)))
        }
        (source.remote as? UpstreamSource)?.setHandler { [shared, path = source.path] text in
            shared.emit(.diskProblem(disk: disk, detail: "its upstream '\(path)': \(text)"))
        }
        // Before any machine can write.
        attach(left, to: export)
        serve(export, tracking?.0)
        source.heedEarlierLoss()
        return .success(disk)
    }

    /// Makes a disk known that is on its ring.
    func serve(_ export: LiveExport, _ tracking: DiskTracking?) {
        state.withLock { state in
            state.disks[export.disk] = export
            state.tracking[export.disk] = tracking
        }
        keepRoom(state.withLock { $0.jobs.values.flatMap(\.exports) })
        _ = live.add(.live(export))
        stopAwaiting(export.description.name)
    }

    /// Whoever asks for one of these disks from now on waits until it is there, or cannot be
    /// attached, or is not among them any more.
    package func expectDisks(_ exports: Set<String>) {
        live.awaitNames(exports)
        tellGuests()
    }

    private func stopAwaiting(_ name: String) {
        if live.stopAwaiting(name) { tellGuests() }
    }

    private func tellGuests() {
        for ring in shared.layout.rings(for: .guests) { shared.mailboxes[ring].post(.exportsCame) }
    }

    // MARK: Detaching

    /// How long the parts of a detach may take, in milliseconds.
    struct DetachTerms {
        var graceful: Int32
        var forced: Int32
        var sync: Int32

        static let ordinary = DetachTerms(
            graceful: Limits.drainMilliseconds, forced: Limits.drainMilliseconds,
            sync: Limits.syncMilliseconds)
        /// They end before `Limits.stopDisksMilliseconds`.
        static let stopping = DetachTerms(
            graceful: Limits.stopDrainMilliseconds, forced: 3_000, sync: 18_000)
    }

    /// What is known of a disk that leaves; not the disk itself, whose last reference goes on a
    /// thread.
    struct Leaving {
        let export: ExportID
        let name: String
        let path: String
        let home: Int
    }

    func detach(
        _ disk: DiskID, _ terms: DetachTerms, onlyUnused: Bool = false
    ) async -> Result<Bool, ServerFault> {
        guard await queues.take([disk], milliseconds: Limits.queueMilliseconds) else {
            return .failure(.disksTaken(milliseconds: UInt64(Limits.queueMilliseconds)))
        }
        defer { queues.giveBack([disk]) }
        let leaving: Leaving
        switch startLeaving(disk) {
        case .failure(let fault): return .failure(fault)
        case .success(let found): leaving = found
        }
        defer { state.withLock { _ = $0.detaching.remove(disk) } }
        if onlyUnused, let fault = await checkUnused(disk, leaving) { return .failure(fault) }
        let call = DetachCall(
            disk, leaving.export, home: leaving.home, gracefulMilliseconds: terms.graceful,
            forcedMilliseconds: terms.forced, shared)
        if let fault = Self.fault(await call.runLater(), leaving.name) {
            if let export = state.withLock({ $0.disks[disk] }) { republish(export) }
            return .failure(fault)
        }
        // Nobody connects any more; the socket's file goes before the name is free.
        if let listener = state.withLock({ $0.vhostListeners.removeValue(forKey: disk) }) {
            await close(listener)
        }
        let parting = state.withLock { Parting($0.disks.removeValue(forKey: disk)) }
        return await close(parting, disk, leaving, terms.sync)
    }

    /// Whether somebody is connected to a disk whose export is withdrawn; then it is published
    /// again.
    private func checkUnused(_ disk: DiskID, _ leaving: Leaving) async -> ServerFault? {
        // A ring that had found the export has counted its client when it answers this.
        let isSettled = await DisconnectCall(
            [ExportID.next()], gracefully: true, milliseconds: Limits.ringMilliseconds, shared
        ).runLater()
        guard let export = state.withLock({ $0.disks[disk] }) else { return .unknownDisk }
        let clients = export.clientCount.load(ordering: .relaxed)
        if isSettled, clients == 0 { return nil }
        republish(export)
        return isSettled
            ? .diskInUse(name: leaving.name, clients: clients)
            : .ringStuck(milliseconds: UInt64(Limits.ringMilliseconds))
    }

    private func republish(_ export: LiveExport) {
        export.leaving.store(false, ordering: .releasing)
        _ = live.add(.live(export))
    }

    /// Withdraws the export; refused while a job begins on the disk.
    private func startLeaving(_ disk: DiskID) -> Result<Leaving, ServerFault> {
        state.withLock { state in
            guard let export = state.disks[disk] else { return .failure(.unknownDisk) }
            let name = export.description.name
            guard !state.beginning.values.contains(where: { $0.contains(disk) }) else {
                return .failure(.diskBusy(name: name))
            }
            let hasJob =
                state.jobs.values.contains { $0.exports.contains { $0.disk == disk } }
                || state.expected.values.contains { $0.has(disk) }
            guard !hasJob else { return .failure(.diskBusy(name: name)) }
            state.detaching.insert(disk)
            export.leaving.store(true, ordering: .releasing)
            live.remove(name: name)
            return .success(
                Leaving(
                    export: export.id, name: name, path: export.source.path,
                    home: export.homeRing))
        }
    }

    private static func fault(
        _ outcome: RemoveDiskCall.Outcome, _ name: String
    ) -> ServerFault? {
        switch outcome {
        case .removed: nil
        case .inUse: .diskBusy(name: name)
        case .stuck: .ringStuck(milliseconds: UInt64(Limits.ringMilliseconds))
        }
    }

    // MARK: Faults

    static func fault(_ path: String, _ fault: SourceFault) -> ServerFault {
        if case .inUse(let detail, _) = fault { return .sourceLocked(path: path, detail: detail) }
        return .sourceUnusable(path: path, detail: detail(of: fault))
    }

    static func detail(of fault: SourceFault) -> String {
        switch fault {
        case .system(let fault): "\(fault.call): \(fault.errorText)"
        case .inUse(let detail, _): detail
        case .alignmentTooLarge(let alignment):
            "its blocks of \(alignment) bytes are larger than 4096: use a cache mode other than none"
        case .empty: "the device has no bytes: it may be without a medium"
        case .kernelInterface:
            "it is a file of the kernel's own (/proc, /sys or the like) and holds no disk"
        case .ownState: "this server keeps its own state in it"
        case .tooLarge(let size):
            "its size of \(size) bytes is larger than \(RawSource.sizeBytesMax) bytes, the most that is"
                + " served"
        case .wrongType(let expected, let found):
            "it is \(name(found)), expected \(name(expected))"
        case .sizeNotAligned(let size, let alignment):
            "the device's size of \(size) bytes is not a multiple of \(alignment), which cache='none'"
                + " needs: use another cache mode"
        }
    }

    private static func name(_ type: FileType) -> String {
        switch type {
        case .regular: "a regular file"
        case .blockDevice: "a block device"
        case .directory: "a directory"
        case .other: "neither a file nor a block device"
        }
    }
}
