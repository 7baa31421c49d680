import PointInTime
import ScratchFiles
import Testing
import Tracking

/// Single steps of the gate whose actions are known one by one.
@Suite("Copy-before-write, steps")
struct CopyBeforeWriteTests {
    /// One job on a disk with a cluster for each change, every copy taken by an earlier write.
    private func starvedGate(_ ledger: Ledger) -> CopyBeforeWrite {
        var gate = CopyBeforeWrite(changeLimit: CopyBeforeWrite.copiesMax + 1)
        _ = gate.attach(ledger.view, slotLimit: 100, copyTimeoutNanoseconds: 100_000_000)
        for change in 0..<CopyBeforeWrite.copiesMax {
            #expect(admit(change, change..<(change + 1), now: 0, &gate) == .waits)
        }
        return gate
    }

    private func admit(
        _ change: Int, _ clusters: Range<Int>, now: UInt64, _ gate: inout CopyBeforeWrite
    ) -> Admission {
        gate.admit(ChangeID(change), clusters: clusters, now: now)
    }

    private func ledger() throws -> Ledger {
        try Ledger(geometry: ClusterGeometry(sizeBytes: 256 << ClusterGeometry.shift))
    }

    /// What the gate asks for, without its notes that a copy is over.
    private func actions(_ gate: inout CopyBeforeWrite) -> [CopyAction] {
        allActions(&gate).filter { action in
            if case .copyDone = action { false } else { true }
        }
    }

    private func allActions(_ gate: inout CopyBeforeWrite) -> [CopyAction] {
        var all: [CopyAction] = []
        while let action = gate.nextAction() { all.append(action) }
        return all
    }

    @Test("a copy is over when its last write to scratch is, and before the guest goes on")
    func copyIsOver() throws {
        let ledger = try ledger()
        var gate = CopyBeforeWrite(changeLimit: 1)
        _ = gate.attach(ledger.view, slotLimit: 100, copyTimeoutNanoseconds: .max)
        #expect(admit(0, 0..<1, now: 0, &gate) == .waits)
        gate.readFinished(copy: 0, errno: nil, zeroClusters: 0, now: 0)
        let write = ScratchWrite(copy: 0, job: 0, position: 0, count: 1, slot: 0)
        #expect(
            allActions(&gate) == [.readSource(copy: 0, clusters: 0..<1), .writeScratch(write)])
        gate.scratchWriteFinished(write, errno: nil, now: 0)
        #expect(allActions(&gate) == [.copyDone(copy: 0), .pass(0)])
    }

    @Test("P2: a write behind a copy that hangs breaks a job that began after the copy did")
    func laterJob() throws {
        let first = try ledger()
        let second = try ledger()
        var gate = CopyBeforeWrite(changeLimit: 2)
        _ = gate.attach(first.view, slotLimit: 100, copyTimeoutNanoseconds: 100)
        #expect(admit(0, 0..<1, now: 0, &gate) == .waits)
        gate.expire(now: 101)
        _ = actions(&gate)
        let later = gate.attach(second.view, slotLimit: 100, copyTimeoutNanoseconds: 100)
        #expect(admit(1, 0..<1, now: 200, &gate) == .waits)
        gate.expire(now: 299)
        #expect(actions(&gate).isEmpty)
        gate.expire(now: 301)
        #expect(
            actions(&gate) == [
                .jobBroken(job: try #require(later), cause: .copyTimeout(milliseconds: 0)),
                .pass(1),
            ])
    }

    /// Ends one copy with zeros, so that its copy is free for the write that waits for one.
    private func finish(_ copy: Int, _ gate: inout CopyBeforeWrite, now: UInt64) {
        gate.readFinished(
            copy: CopyIndex(copy), errno: nil, zeroClusters: .max, now: now)
    }

    @Test("a write waits for a free copy and gets it")
    func starved() throws {
        let ledger = try ledger()
        var gate = starvedGate(ledger)
        #expect(actions(&gate).count == CopyBeforeWrite.copiesMax)
        let last = CopyBeforeWrite.copiesMax
        #expect(admit(last, 40..<41, now: 0, &gate) == .waits)
        #expect(actions(&gate).isEmpty)
        finish(7, &gate, now: 1)
        #expect(actions(&gate) == [.pass(7), .readSource(copy: 7, clusters: 40..<41)])
    }

    @Test("the limit counts from the write's admission, not from its copy's start")
    func countsFromAdmission() throws {
        let ledger = try ledger()
        var gate = starvedGate(ledger)
        let last = CopyBeforeWrite.copiesMax
        #expect(admit(last, 40..<41, now: 10_000_000, &gate) == .waits)
        for copy in 0..<last { finish(copy, &gate, now: 90_000_000) }
        _ = actions(&gate)
        gate.expire(now: 110_000_000)
        #expect(actions(&gate).isEmpty)
        gate.expire(now: 110_000_001)
        #expect(
            actions(&gate) == [
                .jobBroken(job: 0, cause: .copyTimeout(milliseconds: 100)), .pass(ChangeID(last)),
            ])
    }

    @Test("a write that never gets a copy does not wait beyond the limit")
    func neverGetsATask() throws {
        let slow = try ledger()
        let strict = try ledger()
        var gate = CopyBeforeWrite(changeLimit: CopyBeforeWrite.copiesMax + 1)
        _ = gate.attach(slow.view, slotLimit: 100, copyTimeoutNanoseconds: .max)
        for change in 0..<CopyBeforeWrite.copiesMax {
            #expect(admit(change, change..<(change + 1), now: 0, &gate) == .waits)
        }
        let second = gate.attach(
            strict.view, slotLimit: 100, copyTimeoutNanoseconds: 50_000_000)
        #expect(second == 1)
        let last = CopyBeforeWrite.copiesMax
        #expect(admit(last, 40..<41, now: 0, &gate) == .waits)
        _ = actions(&gate)
        gate.expire(now: 50_000_000)
        #expect(actions(&gate).isEmpty)
        gate.expire(now: 50_000_001)
        // The patient job still needs the cluster, so the write goes on waiting for it.
        #expect(actions(&gate) == [.jobBroken(job: 1, cause: .copyTimeout(milliseconds: 50))])
        #expect(strict.view.isClosed && !slow.view.isClosed)
    }

    @Test("no more jobs than there are slots")
    func jobSlots() throws {
        var gate = CopyBeforeWrite(changeLimit: 1)
        let ledger = try ledger()
        for job in JobIndex.all {
            let slot = gate.attach(ledger.view, slotLimit: 1, copyTimeoutNanoseconds: .max)
            #expect(slot == job)
        }
        let none = gate.attach(ledger.view, slotLimit: 1, copyTimeoutNanoseconds: .max)
        #expect(none == nil)
        gate.detach(job: 5, now: 0)
        #expect(actions(&gate) == [.jobDetached(job: 5)])
        let again = gate.attach(ledger.view, slotLimit: 1, copyTimeoutNanoseconds: .max)
        #expect(again == 5)
    }

    @Test("a long write takes copies of 1 MiB and passes once, after the last")
    func longWrite() throws {
        let ledger = try ledger()
        var gate = CopyBeforeWrite(changeLimit: 1)
        _ = gate.attach(ledger.view, slotLimit: 200, copyTimeoutNanoseconds: .max)
        #expect(admit(0, 3..<160, now: 0, &gate) == .waits)
        #expect(
            actions(&gate) == [
                .readSource(copy: 0, clusters: 3..<67), .readSource(copy: 1, clusters: 67..<131),
                .readSource(copy: 2, clusters: 131..<160),
            ])
        for copy in [2, 0, 1] {
            #expect(actions(&gate).isEmpty)
            finish(copy, &gate, now: 0)
        }
        #expect(actions(&gate) == [.pass(0)])
        #expect(gate.figures(job: 0) == (157, 157))
        #expect(admit(0, 3..<160, now: 0, &gate) == .go)
    }

    @Test("zero and other clusters of one copy: neighbours share a scratch write")
    func mixedCopy() throws {
        let ledger = try ledger()
        var gate = CopyBeforeWrite(changeLimit: 1)
        _ = gate.attach(ledger.view, slotLimit: 100, copyTimeoutNanoseconds: .max)
        #expect(admit(0, 0..<6, now: 0, &gate) == .waits)
        _ = actions(&gate)
        gate.readFinished(copy: 0, errno: nil, zeroClusters: 0b00_0100, now: 0)
        let first = ScratchWrite(copy: 0, job: 0, position: 0, count: 2, slot: 0)
        let second = ScratchWrite(copy: 0, job: 0, position: 3, count: 3, slot: 2)
        #expect(actions(&gate) == [.writeScratch(first), .writeScratch(second)])
        gate.scratchWriteFinished(second, errno: nil, now: 0)
        #expect(actions(&gate).isEmpty)
        #expect(ledger.view.place(of: 4) == .slot(3))
        gate.scratchWriteFinished(first, errno: nil, now: 0)
        #expect(actions(&gate) == [.pass(0)])
        #expect(ledger.view.place(of: 2) == .zero)
        #expect(gate.slotsUsed(job: 0) == 5)
    }
}
