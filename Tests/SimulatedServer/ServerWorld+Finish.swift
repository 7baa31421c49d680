import IORing
import Simulation
import SystemLayer
import Tables

/// The end: storage works, and everything ends.
extension ServerWorld {
    func finish() {
        note("faults stop")
        faults.stop()
        isFinishing = true
        for kernel in kernels { kernel.wake { _ in true } }
        settle("requests") {
            self.peers.allSatisfy { self.isStuck($0) || self.isServed($0) }
                && self.machines.allSatisfy { $0.disk.hangsForEver || $0.requestCount == 0 }
        }
        settle("calls", turns: Self.turnsOfCalls) {
            self.begin == nil && self.growth == nil && self.deletion == nil
        }
        checkTracking()
        for job in jobs { endJob(job) }
        settle("jobs") { self.endings.isEmpty }
        // One more backup, over what the tool has by now.
        beginJob()
        settle("the last begin", turns: Self.turnsOfCalls) { self.begin == nil }
        for job in jobs { endJob(job) }
        settle("the last job") { self.endings.isEmpty }
        isLeaving = true
        settle("connections") { self.disconnect() }
        guard isGoing else { return }
        checkNothingIsLeft()
        for disk in disks where isGoing { losePower(disk) }
    }

    private func isServed(_ peer: Peer) -> Bool { peer.requests.isEmpty && peer.unsent.isEmpty }

    /// What its disk never answers may hold it up for ever, and nobody else.
    private func isStuck(_ peer: Peer) -> Bool {
        peer.disk.hangsForEver || peer.part?.isHung == true || peer.part?.hangsForEver == true
    }

    /// All peers leave; whether none is left that the server knows.
    func disconnect() -> Bool {
        for peer in peers { leave(peer) }
        for machine in machines { disconnect(machine) }
        // One that moves between rings is in neither, but it counts.
        let isEmpty = boxes.allSatisfy { $0.loop.connections.count == 0 }
        return isEmpty && shared.counts.current == 0 || somethingHangs
    }

    /// What is never answered keeps its requests, buffers and connections.
    var somethingHangs: Bool {
        disks.contains(where: \.hangsForEver)
            || jobs.contains { $0.parts.contains(where: \.hangsForEver) }
    }

    /// A begin that is taken back waits for what hangs as long as an end does: 30 s.
    private static let turnsOfCalls = 1200

    func settle(_ what: String, turns: Int = 600, until isDone: () -> Bool) {
        for turn in 0..<turns where isGoing {
            if isDone() { return }
            moveEverything()
            if turn % 3 == 2 { passTime(Self.tick) }
        }
        if isGoing, !isDone() { fail("liveness: \(what) do not end; \(waiting)") }
    }

    private var waiting: String {
        var parts = kernels.flatMap(\.inFlight).compactMap { operation -> String? in
            if case .event = operation.kind { return nil }
            return "\(operation.kind)"
        }
        for peer in peers where !isServed(peer) {
            parts.append(
                "\(peer.name) of disk \(peer.disk.number): \(peer.pending.map(\.command))")
        }
        for machine in machines where machine.requestCount > 0 {
            parts.append(
                "the machine of disk \(machine.disk.number), \(machine.requestCount) requests"
                    + (machine.isReady ? "" : ", not ready: \(machine.steps)"))
        }
        return parts.joined(separator: ", ")
    }

    /// Everybody does a little.
    func moveEverything() {
        for peer in peers {
            talk(peer)
            listen(peer)
        }
        for machine in machines {
            if isFinishing, !isLeaving, !machine.isConnected { connect(machine.disk) }
            talk(machine)
            listen(machine)
        }
        for ring in boxes.indices where isGoing {
            kernels[ring].submit()
            for operation in kernels[ring].inFlight {
                // It may have gone with another that was cancelled.
                guard let index = kernels[ring].inFlight.firstIndex(where: { $0 === operation })
                else { continue }
                kernels[ring].move(index)
            }
            turn(ring)
        }
        for job in jobs { for part in job.parts where !part.writes.isEmpty { writeScratch(part) } }
        let due = work
        work = []
        for each in due where !carryOut(each.work) { work.append(each) }
        stepCalls()
    }

    /// P6: whatever was taken has been given back.
    private func checkNothingIsLeft() {
        guard !somethingHangs else { return }
        let mayHang = jobs.contains { $0.parts.contains(where: \.isHung) }
        for (ring, box) in boxes.enumerated() {
            if box.loop.requests.count != 0 || box.loop.pieces.count != 0 {
                fail(
                    "P6: ring \(ring) has \(box.loop.requests.count) requests and"
                        + " \(box.loop.pieces.count) operations that nobody waits for")
            }
            if !mayHang, box.loop.arena.usedPages != 0 {
                fail("P6: ring \(ring) has \(box.loop.arena.usedPages) pages in use by nobody")
            }
            if !mayHang, !box.loop.orphans.isEmpty { fail("P6: ring \(ring) has orphans") }
        }
        checkHandles()
        if !pages.isEmpty { fail("P6: \(pages.count) runs of pages are in use by nobody") }
        if shared.counts.current != 0 {
            fail("P6: \(shared.counts.current) connections are counted")
        }
        if let socket = sockets.first(where: { $0.isAccepted && !$0.isClosed }) {
            fail("P6: socket \(socket.handle.number) is open for nobody")
        }
    }
}
