import Core
import PointInTime
import ScratchFiles
import Tracking

/// Guests' requests, as a ring drives them.
extension SimulatedDisk {
    // MARK: Arrival

    /// A request comes; nothing happens when the disk has as many as it may.
    func issue(
        _ kind: GuestRequest.Kind, durable: Bool = false, _ bytes: Range<UInt64>? = nil
    ) {
        guard isServed, world.stoppingSince == nil,
            let number = requests.firstIndex(where: { $0 == nil })
        else { return }
        world.lastStamp += 1
        let request = GuestRequest(
            number, kind, bytes ?? range(), stamp: kind == .write ? world.lastStamp : 0,
            isDurable: durable,
            now: world.now)
        requests[number] = request
        world.note(
            "disk \(self.number): \(kind) \(request.bytes) stamp \(request.stamp) as \(number)")
        switch kind {
        case .write: startChange(request, request.bytes)
        case .zero, .discard: startZeroing(request)
        case .flush: startFlush(request)
        }
    }

    /// Sectors next to one another in a few neighbouring clusters.
    private func range() -> Range<UInt64> {
        let perRegion = DiskShape.hotClusters * DiskShape.clusterSectors
        let region = world.draw.chance(50) ? 0 : world.draw.below(source.shape.regions)
        let isWhole = world.draw.chance(40)
        let unit = isWhole ? DiskShape.clusterSectors : 1
        let first = world.draw.below(perRegion / unit) * unit
        let count = (1 + world.draw.below(isWhole ? 3 : 40)) * unit
        let start = source.shape.byte(at: region * perRegion + first)
        let end = start + UInt64(min(count, perRegion - first)) * DiskShape.sectorBytes
        let limit = min(end, sizeBytes)
        return start < limit ? start..<limit : limit - DiskShape.sectorBytes..<limit
    }

    // MARK: Changes

    private func widened(_ bytes: Range<UInt64>) -> Range<UInt64> {
        bytes.lowerBound / blockBytes
            * blockBytes..<min(
                (bytes.upperBound + blockBytes - 1) / blockBytes * blockBytes, sizeBytes)
    }

    /// A write, or a step of a zeroing request, asks for its way.
    func startChange(
        _ request: GuestRequest, _ bytes: Range<UInt64>, isWrite: Bool = true,
        changesNothing: Bool = false, isStep: Bool = false
    ) {
        let change = Change(
            ChangeID(request.number), bytes: bytes, blocks: isWrite ? widened(bytes) : bytes,
            changesNothing: changesNothing, isStep: isStep)
        request.change = change
        request.stepWrites = isWrite
        if world.canary == .notesHolesUnseen {
            changes.noteHole(
                ClusterGeometry.clusters(
                    touching: bytes.lowerBound, length: UInt64(bytes.count)))
        }
        switch changes.admit(change, now: world.now) {
        case .go: submitChange(request.number)
        case .waits:
            if world.canary == .releasesBeforeCopy { writeEarly(request) }
            perform()
        }
    }

    /// The change has passed all gates.
    func submitChange(_ number: Int) {
        guard let request = requests[number], let change = request.change else {
            return world.fail("disk \(self.number): change \(number) is let go, and there is none")
        }
        if request.isAtWork {
            return world.fail("disk \(self.number): change \(number) is let go twice")
        }
        request.isAtWork = true
        checkUnneeded(change)
        if request.stepWrites {
            if world.canary != .marksAfterChange { record(change.bytes) }
            if change.blocks != change.bytes {
                readEdges(request, change)
            } else {
                write(request, change, [])
            }
        } else {
            if !change.changesNothing { recordAllocation(change.bytes) }
            punch(request, change)
        }
    }

    /// A driver that does not wait: the write is made, and made again when its turn comes.
    func writeEarly(_ request: GuestRequest) {
        guard request.kind == .write, !changes.isHeld, changes.copies.hasActiveJobs else { return }
        source.write(request.stamp, at: source.shape.indices(request.bytes))
    }

    /// P1, where the order is known: nothing that a whole job needs is overwritten.
    private func checkUnneeded(_ change: Change) {
        guard world.canary == nil, !change.changesNothing else { return }
        let clusters = ClusterGeometry.clusters(
            touching: change.bytes.lowerBound, length: UInt64(change.bytes.count))
        for case let job? in jobs where job.isWhole {
            let view = job.ledger.view
            // The disk may have grown since the job began.
            let needed = clusters.clamped(to: 0..<view.geometry.clusterCount)
            if let cluster = needed.first(where: { !view.isPreserved($0) }), !view.isClosed {
                world.fail("disk \(number): cluster \(cluster) is overwritten, a job needs it")
            }
        }
    }

    /// A write that begins or ends within a block reads the block first.
    private func readEdges(_ request: GuestRequest, _ change: Change) {
        let indices = source.shape.indices(change.blocks)
        var old: [Stamp] = []
        world.submit(.source(number)) { [self] _, _ in
            old = Array(source.sectors[indices])
            return nil
        } end: { [self] errno in
            if let errno { return endChange(request, errno: errno, failed: true) }
            write(request, change, old)
        }
    }

    private func write(_ request: GuestRequest, _ change: Change, _ old: [Stamp]) {
        let own = source.shape.indices(change.bytes)
        let all = source.shape.indices(change.blocks)
        var stamps = old.isEmpty ? [Stamp](repeating: request.stamp, count: all.count) : old
        for index in own { stamps[index - all.lowerBound] = request.stamp }
        let isDurable = request.isDurable && request.kind == .write
        var last: Operation?
        last = world.submit(.source(number), parts: 2) { [self] part, isLost in
            let half = part == 0 ? 0..<all.count / 2 : all.count / 2..<all.count
            source.write(stamps[half], at: all.lowerBound + half.lowerBound, isLost: isLost)
            note(change.bytes, request, own.clamped(to: indices(half, all.lowerBound)))
            guard part == 1, isDurable, world.canary != .answersBeforeSync else { return nil }
            source.writeBack(Array(own))
            // Some of it may have been lost before the rest was written.
            let isLost = request.written.contains { source.versions[$0.index] < $0.version }
            if isLost { hasFailed = true }
            if isLost, world.canary != .forgetsFailedSync { hasFailedSync = true }
            return hasFailedSync ? 5 : nil
        } end: { [self] errno in
            if world.canary == .marksAfterChange { record(change.bytes) }
            endChange(request, errno: errno, failed: last?.errno != nil)
        }
    }

    private func indices(_ half: Range<Int>, _ first: Int) -> Range<Int> {
        first + half.lowerBound..<first + half.upperBound
    }

    /// Some of a change has reached the disk.
    private func note(_ bytes: Range<UInt64>, _ request: GuestRequest, _ indices: Range<Int>) {
        guard !indices.isEmpty else { return }
        for index in indices { request.written.append((index, source.versions[index])) }
        let start = source.shape.byte(at: indices.lowerBound)
        let blocks = blocks(start..<start + UInt64(indices.count) * DiskShape.sectorBytes)
        for index in checkpoints.indices {
            for block in blocks {
                checkpoints[index].changed.insert(block)
                checkpoints[index].touched.insert(block)
            }
        }
    }

    private func punch(_ request: GuestRequest, _ change: Change) {
        let indices = source.shape.indices(change.bytes)
        for index in checkpoints.indices {
            checkpoints[index].touched.formUnion(blocks(change.bytes))
        }
        var last: Operation?
        last = world.submit(.source(number), parts: 2) { [self] part, _ in
            let middle = (indices.lowerBound + indices.count / 2) / 8 * 8
            let half = part == 0 ? indices.lowerBound..<middle : middle..<indices.upperBound
            let changed = half.filter { source.sectors[$0] != 0 }
            source.punch(half)
            for index in half { request.written.append((index, source.versions[index])) }
            for index in changed {
                let start = source.shape.byte(at: index)
                for place in checkpoints.indices {
                    checkpoints[place].changed.formUnion(blocks(start..<start + 512))
                }
            }
            return nil
        } end: { [self] errno in
            endChange(request, errno: errno, failed: last?.errno != nil)
        }
    }

    /// The change is complete or has failed.
    private func endChange(_ request: GuestRequest, errno: Int32?, failed: Bool) {
        guard let change = request.change else { return }
        request.isAtWork = false
        request.change = nil
        if failed { request.mayFail = true }
        if let errno { request.errno = errno }
        if !request.isFinishedEarly { changes.finished(change) }
        request.isFinishedEarly = false
        perform()
        if request.kind == .write { answer(request) } else { continueZeroing(request) }
    }

    /// A driver that calls changes finished which are in flight.
    func pretendQuiet() {
        for case let request? in requests where request.kind == .write && request.isAtWork {
            guard let change = request.change, !request.isFinishedEarly else { continue }
            request.isFinishedEarly = true
            changes.finished(change)
        }
    }

    // MARK: Answers

    private func answer(_ request: GuestRequest) {
        requests[request.number] = nil
        world.note("disk \(number): answer to \(request.number), errno \(request.errno ?? 0)")
        guard request.errno == nil else {
            if !request.mayFail {
                world.fail("P2: disk \(number): a request fails although its disk is well")
            }
            return
        }
        for (index, version) in request.written {
            answered[index] = max(answered[index], version)
            if request.isDurable { source.floors[index] = max(source.floors[index], version) }
        }
        for (index, version) in request.answeredBefore.enumerated() {
            source.floors[index] = max(source.floors[index], version)
        }
    }

    // MARK: Flush

    private func startFlush(_ request: GuestRequest) {
        request.answeredBefore = answered
        sync(request) { [self] in answer(request) }
    }

    private func sync(_ request: GuestRequest, then: @escaping () -> Void) {
        let born = world.process
        world.submit(.source(number)) { [self] _, _ in
            if source.sync(by: .guests) { return hasFailedSync ? 5 : nil }
            // The kernel tells the dead process, and nobody else.
            if !world.isAlive(born) { makeUnprovable() }
            hasFailed = true
            // The kernel has told it once; the next sync succeeds and means nothing.
            if world.canary == .triesSyncAgain, source.sync(by: .guests) { return nil }
            if world.canary != .forgetsFailedSync { hasFailedSync = true }
            return 5
        } end: { [self] errno in
            if let errno {
                request.errno = errno
                request.mayFail = true
                // Guests know now that something is lost.
                answered = source.kept(answered)
                for case let other? in requests where other.kind == .flush {
                    other.answeredBefore = source.kept(other.answeredBefore)
                }
            }
            then()
        }
    }

    // MARK: Zeroing

    private func startZeroing(_ request: GuestRequest) {
        request.zeroing = Zeroing(
            request.bytes, isDiscard: request.kind == .discard, cut: .max)
        switch changes.admitZeroing(ZeroingID(request.number), &ring.places) {
        case .go: resumeZeroing(request.number)
        case .waits: perform()
        }
    }

    func resumeZeroing(_ number: Int) {
        guard let request = requests[number] else {
            return world.fail("disk \(self.number): zeroing \(number) is let go, and there is none")
        }
        request.zeroing.place = .working
        continueZeroing(request)
    }

    private func continueZeroing(_ request: GuestRequest) {
        while world.isGoing {
            if request.errno != nil { request.zeroing.abandon() }
            switch request.zeroing.next() {
            case .pages(let pages, let isFirst):
                if !isFirst, stepsAside(request) { return }
                startStep(request, pages)
                return
            case .edge(let bytes): return startChange(request, bytes, isStep: true)
            case .sync:
                changedAll(request)
                if request.isDurable {
                    checkOperations()
                    if world.canary == .givesPlaceUpBeforeSync { giveUpPlace(request) }
                    return sync(request) { [self] in continueZeroing(request) }
                }
            case .done: return endZeroing(request)
            }
        }
    }

    private func stepsAside(_ request: GuestRequest) -> Bool {
        let id = ZeroingID(request.number)
        guard changes.continueZeroing(id, &ring.places) == .waits else { return false }
        request.zeroing.place = .waiting
        perform()
        return true
    }

    private func changedAll(_ request: GuestRequest) {
        guard request.zeroing.place == .working else { return }
        request.zeroing.place = .syncing
        changes.zeroingChangedAll()
        perform()
    }

    private func endZeroing(_ request: GuestRequest) {
        changedAll(request)
        if !request.hasNoPlace { changes.endZeroing(&ring.places) }
        answer(request)
        for disk in world.disks where disk.ring === ring { disk.perform() }
    }

    /// A driver that lets the next one begin although this one has an operation to come.
    private func giveUpPlace(_ request: GuestRequest) {
        request.hasNoPlace = true
        changes.endZeroing(&ring.places)
        for disk in world.disks where disk.ring === ring { disk.perform() }
    }

    /// P6: the ring's table has a place for the operation of each request that zeroes, and no more.
    private func checkOperations() {
        let disks = world.disks.filter { $0.ring === ring }
        let count = disks.flatMap(\.requests).count {
            guard let request = $0, request.kind == .zero || request.kind == .discard else {
                return false
            }
            return request.zeroing.place != .waiting
        }
        guard count > ring.places.limit else { return }
        world.fail("P6: \(count) operations that zero, and \(ring.places.limit) places for them")
    }

    /// One step: up to two clusters, a whole hole where there is one.
    private func startStep(_ request: GuestRequest, _ pages: Range<UInt64>) {
        let first = ClusterGeometry.cluster(of: pages.lowerBound)
        var end = min(ClusterGeometry.start(of: first + 2), pages.upperBound)
        var isHole = false
        let hasJobs = changes.copies.hasActiveJobs
        if hasJobs || recording != nil {
            let from = hasJobs ? ClusterGeometry.start(of: first) : pages.lowerBound
            let limit = min(
                ClusterGeometry.start(of: ClusterGeometry.cluster(of: end - 1) + 1), sizeBytes)
            let indices = source.shape.indices(from..<limit)
            let known = source.allocation(at: indices.lowerBound, end: indices.upperBound)
            if !known.isData {
                let known =
                    known.end == indices.upperBound ? limit : source.shape.byte(at: known.end)
                if hasJobs {
                    let endCluster =
                        known == sizeBytes
                        ? ClusterGeometry.cluster(of: known - 1) + 1
                        : ClusterGeometry.cluster(of: known)
                    if endCluster > first {
                        changes.noteHole(first..<endCluster)
                        end = min(ClusterGeometry.start(of: endCluster), end)
                        isHole = true
                    } else {
                        end = min(ClusterGeometry.start(of: first + 1), end)
                    }
                } else {
                    end = min(known, end)
                    isHole = true
                }
            }
        }
        request.zeroing.took(upTo: end)
        checkOperations()
        startChange(
            request, pages.lowerBound..<end, isWrite: false, changesNothing: isHole, isStep: true)
    }

    /// Records what a step is about to change: where there are holes already, nothing.
    private func recordAllocation(_ bytes: Range<UInt64>) {
        let indices = source.shape.indices(bytes)
        var position = indices.lowerBound
        while position < indices.upperBound {
            let known = source.allocation(at: position, end: indices.upperBound)
            if known.isData {
                let start = source.shape.byte(at: position)
                record(start..<start + UInt64(known.end - position) * DiskShape.sectorBytes)
            }
            position = known.end
        }
    }
}
