import Simulation
import Tracking
import WireClient

/// What the server says is compared with what is known.
extension ServerWorld {
    func take(_ reply: WireReply, _ peer: Peer) {
        guard let request = peer.requests.removeValue(forKey: reply.cookie) else { return }
        note("\(peer.name): reply \(reply.error) to \(request.command) \(request.bytes)")
        if request.isAbsurd {
            if reply.error == 0 { fail("P5: an impossible request succeeds") }
            return
        }
        if peer.hasRaved { return }
        guard reply.error == 0 else { return takeError(reply, request, peer) }
        switch request.command {
        case WireCommand.write: checkWritten(request, peer.disk)
        case WireCommand.writeZeroes: checkZeroed(request, peer.disk)
        case WireCommand.flush: keep(request.answeredBefore, peer.disk)
        case WireCommand.read: check(reply.data, request, peer)
        case WireCommand.blockStatus: check(reply.extents, request, peer)
        default: break
        }
    }

    private func takeError(_ reply: WireReply, _ request: PeerRequest, _ peer: Peer) {
        guard let part = peer.part, let job = peer.job else {
            if !peer.disk.hasFailed {
                fail("P2: command \(request.command) fails with \(reply.error): \(reply.text)")
            }
            return tellLoss(of: peer.disk)
        }
        let indices = part.disk.source.shape.indices(request.bytes)
        let isExcused =
            part.export.brokenReason != nil || !job.isRunning || part.hasFailed
            || part.scratch.hasLost || part.disk.hasFailed
            || !part.released.isDisjoint(with: wholeClusters(indices))
        if !isExcused { fail("P5: a whole job's read fails with \(reply.error): \(reply.text)") }
    }

    /// Told by a sync or not: guests know now that something may be lost.
    func tellLoss(of disk: ServedDisk) {
        disk.takeLoss()
        for peer in peers where peer.disk === disk {
            for cookie in peer.requests.keys.sorted() {
                guard let known = peer.requests[cookie]?.answeredBefore, !known.isEmpty else {
                    continue
                }
                peer.requests[cookie]?.answeredBefore = disk.source.kept(known)
            }
        }
        for queue in disk.machine?.queues ?? [] {
            for head in queue.requests.keys.sorted() {
                guard let known = queue.requests[head]?.asked.answeredBefore, !known.isEmpty
                else { continue }
                queue.requests[head]?.asked.answeredBefore = disk.source.kept(known)
            }
        }
    }

    private func wholeClusters(_ indices: Range<Int>) -> Range<Int> {
        let size = DiskShape.clusterSectors
        return indices.lowerBound / size * size..<(indices.upperBound + size - 1) / size * size
    }

    // MARK: Changes

    /// Everything that was answered has been written.
    func checkWritten(_ request: PeerRequest, _ disk: ServedDisk) {
        let indices = disk.source.shape.indices(request.bytes)
        let reached = disk.reached[request.stamp] ?? []
        if let missing = indices.first(where: { !reached.contains($0) }) {
            return fail("P5: a write is answered, and sector \(missing) was never written")
        }
        // The first of each sector: a write beside it may have stored the same bytes again since,
        // and need not be durable.
        var found: [Int: UInt32] = [:]
        for entry in disk.log[request.logStart...]
        where entry.stamp == request.stamp && found[entry.index] == nil {
            found[entry.index] = entry.version
        }
        keep(found.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }, request, disk)
    }

    func checkZeroed(_ request: PeerRequest, _ disk: ServedDisk) {
        let indices = disk.source.shape.indices(request.bytes)
        let zeroed = zeros(request, disk)
        if let missing = indices.first(where: { zeroed[$0] == nil }), !disk.hasFailed {
            return fail("P5: zeroing is answered, and sector \(missing) was never zero")
        }
        keep(zeroed.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }, request, disk)
    }

    /// When each sector of the range was first zero since the request was sent.
    private func zeros(_ request: PeerRequest, _ disk: ServedDisk) -> [Int: UInt32] {
        let indices = disk.source.shape.indices(request.bytes)
        var found: [Int: UInt32] = [:]
        for (offset, index) in indices.enumerated() where request.before[offset] == 0 {
            found[index] = request.versionsBefore[offset]
        }
        for entry in disk.log[request.logStart...]
        where entry.stamp == 0 && indices.contains(entry.index) && found[entry.index] == nil {
            found[entry.index] = entry.version
        }
        return found
    }

    private func keep(_ versions: [(Int, UInt32)], _ request: PeerRequest, _ disk: ServedDisk) {
        for (index, version) in versions {
            disk.answered[index] = max(disk.answered[index], version)
            if request.isDurable {
                disk.source.floors[index] = max(disk.source.floors[index], version)
            }
        }
    }

    func keep(_ versions: [UInt32], _ disk: ServedDisk) {
        for (index, version) in versions.enumerated() {
            disk.source.floors[index] = max(disk.source.floors[index], version)
        }
    }

    // MARK: Reads

    private func check(_ data: [UInt8], _ request: PeerRequest, _ peer: Peer) {
        let stamps = Sectors.stamps(data)
        let indices = peer.disk.source.shape.indices(request.bytes)
        guard stamps.count == indices.count else {
            return fail("a read of \(indices.count) sectors brings \(stamps.count)")
        }
        if let part = peer.part {
            check(stamps, indices, part)
        } else {
            checkLive(stamps, indices, request, peer.disk)
        }
    }

    /// P1: what a backup export gives is the instant.
    private func check(_ stamps: [Stamp], _ indices: Range<Int>, _ part: JobPart) {
        guard part.lostBefore == part.disk.source.lostCount else { return }
        for (offset, index) in indices.enumerated() where stamps[offset] != part.instant[index] {
            return fail(
                "P1: job \(part.job): sector \(index) of disk \(part.disk.number) is read as"
                    + " \(stamps[offset]), the instant has \(part.instant[index])")
        }
    }

    /// P5: a guest reads what the sector held at some time since it asked, so what was answered
    /// before.
    func checkLive(
        _ stamps: [Stamp], _ indices: Range<Int>, _ request: PeerRequest, _ disk: ServedDisk
    ) {
        guard disk.source.lostCount == 0 else { return }
        var possible = request.before.map { Set([$0]) }
        for entry in disk.log[request.logStart...] where indices.contains(entry.index) {
            possible[entry.index - indices.lowerBound].insert(entry.stamp)
        }
        for (offset, stamp) in stamps.enumerated() where !possible[offset].contains(stamp) {
            return fail(
                "P5: a guest reads \(stamp) in sector \(indices.lowerBound + offset) of disk"
                    + " \(disk.number), which held \(possible[offset].sorted())")
        }
    }

    /// What is called zeros holds zeros: at the instant, or at some time since a guest asked.
    private func check(
        _ extents: [UInt32: [WireExtent]], _ request: PeerRequest, _ peer: Peer
    ) {
        let shape = peer.disk.source.shape
        let zeroed = peer.isGuest ? zeros(request, peer.disk) : [:]
        guard peer.disk.source.lostCount == (peer.part?.lostBefore ?? 0) else { return }
        let names = peer.transmission?.agreement.contexts ?? []
        for id in extents.keys.sorted() {
            let isBitmap = names.first { $0.id == id }?.name.hasPrefix("qemu:") ?? false
            var position = request.bytes.lowerBound
            for extent in extents[id] ?? [] {
                let end = min(position + extent.length, request.bytes.upperBound)
                guard position < end else { break }
                if isBitmap {
                    checkDirty(position..<end, extent.flags & 1 != 0, peer)
                } else if extent.flags & 2 != 0 {
                    for index in shape.indices(position..<end) {
                        let isZero =
                            peer.part.map { $0.instant[index] == 0 } ?? (zeroed[index] != nil)
                        if !isZero {
                            return fail("P1: \(peer.name) is told that sector \(index) is a hole")
                        }
                    }
                }
                position = end
            }
        }
    }

    /// P3: a job's bitmap is what it was at its begin, whatever has become of the server since.
    private func checkDirty(_ bytes: Range<UInt64>, _ isDirty: Bool, _ peer: Peer) {
        guard let dirty = peer.part?.dirty else { return }
        let shift = Self.granularityShift
        for block in Int(bytes.lowerBound >> shift)...Int((bytes.upperBound - 1) >> shift)
        where dirty.isDirty(block) != isDirty {
            return fail(
                "P3: \(peer.name) is told that block \(block) is \(isDirty ? "" : "not ")dirty")
        }
    }
}
