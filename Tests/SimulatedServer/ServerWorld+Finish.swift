import IORing
import Simulation
import System
import Tables

@testable import NBDServer

/// The end: storage works, and everything ends.
extension ServerWorld {
    func finish() {
        note("faults stop")
        faults.stop()
        faultRate = 0
        wake()
        isFinishing = true
        settle("requests", until: { peers.allSatisfy { $0.requests.isEmpty && $0.unsent.isEmpty } })
        settle("the begin", until: { begin == nil })
        for job in jobs { endJob(job) }
        settle("jobs", until: { endings.isEmpty })
        for peer in peers { leave(peer) }
        settle("connections", until: { boxes.allSatisfy { $0.loop.connections.count == 0 } })
        guard isGoing else { return }
        checkNothingIsLeft()
        for disk in disks where isGoing {
            disk.source.losePower(&draw)
            if !disk.hasFailed, let sector = disk.source.brokenPromise {
                fail("P5: disk \(disk.number): sector \(sector) has lost what a guest made durable")
            }
        }
    }

    private func settle(_ what: String, until isDone: () -> Bool) {
        for turn in 0..<600 where isGoing {
            if isDone() { return }
            moveEverything()
            if turn % 3 == 2 {
                now += 100_000_000
                ticksDue = Set(boxes.indices)
            }
        }
        if isGoing, !isDone() {
            let left = kernels.flatMap(\.inFlight).filter {
                if case .event = $0.kind { false } else { true }
            }
            fail("liveness: \(what) do not end; \(left.map(\.kind)), \(peers.count) peers")
        }
    }

    private func moveEverything() {
        for peer in peers {
            talk(peer)
            listen(peer)
        }
        for ring in boxes.indices {
            kernels[ring].submit()
            var index = 0
            while index < kernels[ring].inFlight.count {
                let count = kernels[ring].inFlight.count
                kernels[ring].move(index)
                if kernels[ring].inFlight.count == count { index += 1 }
            }
            boxes[ring].loop.turn()
        }
        for job in jobs { for part in job.parts where !part.writes.isEmpty { writeScratch(part) } }
        while !work.isEmpty { work.removeFirst().work.carryOut(self) }
        stepCalls()
    }

    /// P6: whatever was taken has been given back.
    private func checkNothingIsLeft() {
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
        }
        if shared.counts.current != 0 {
            fail("P6: \(shared.counts.current) connections are counted")
        }
    }
}
