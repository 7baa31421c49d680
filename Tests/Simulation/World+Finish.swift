import Core
import PointInTime

/// The end of a history: faults stop, and everything must end.
extension World {
    /// Turns that everything has to end in.
    private static let turns = 300

    func finish() {
        note("faults stop")
        faults.stop()
        for operation in operations where operation.fate == .hangs { operation.fate = .answered }
        // A stop that storage holds up ends as the operator ends it.
        if isClosing { kill() }
        stoppingSince = nil
        if isDown { start() }
        settle("guests and calls") { [self] in
            calls.allSatisfy(\.isInStorage)
                && disks.allSatisfy { !$0.hasRequests && $0.changes.isIdle }
        }
        guard isGoing else { return }
        settle("readers") { [self] in jobs.allSatisfy { $0.parts.allSatisfy(\.isReadersDone) } }
        for disk in disks { disk.checkAnswers() }
        for job in leftJobs { giveUp(job) }
        for job in jobs { end(job) }
        settle("jobs") { [self] in
            jobs.allSatisfy { job in calls.contains { $0.job === job && $0.isInStorage } }
        }
        if calls.isEmpty { checkNothingIsLeft() }
        guard isGoing else { return }
        endOnce()
    }

    /// Everything that can go on does, until `isDone`.
    func settle(_ what: String, until isDone: () -> Bool) {
        for turn in 0..<Self.turns where isGoing {
            if isDone() { return }
            moveEverything()
            // What hangs for ever may hold up others as long as their limits allow.
            if turn % 4 == 3 { passTime() }
        }
        if isGoing, !isDone() { fail("liveness: \(what) do not end: \(waiting)") }
    }

    func moveEverything() {
        for ring in rings + [control] {
            while let message = ring.messages.first, isGoing {
                ring.messages.removeFirst()
                message()
            }
        }
        var index = 0
        while index < operations.count, isGoing {
            let operation = operations[index]
            operation.patience -= 10
            if operation.fate == .answered, operation.patience <= 0 {
                complete(at: index)
            } else {
                index += 1
            }
        }
        index = 0
        while index < threads.count, isGoing {
            let count = threads.count
            runThread(at: index)
            if threads.count == count { index += 1 }
        }
        for job in jobs {
            for part in job.parts { for reader in part.readers { part.move(reader) } }
        }
        dropJobs()
    }

    private var waiting: String {
        var parts: [String] = []
        for disk in disks {
            let left = disk.requests.compactMap { $0?.number }
            if !left.isEmpty { parts.append("disk \(disk.number) requests \(left)") }
            if disk.changes.isHeld { parts.append("disk \(disk.number) is held") }
            if !disk.changes.isIdle { parts.append("disk \(disk.number) is not idle") }
        }
        if !calls.isEmpty { parts.append("\(calls.count) calls") }
        for job in jobs where !job.isDetached { parts.append("job \(job.number)") }
        parts += operations.map { "\($0.place) \($0.fate)" }
        return parts.joined(separator: ", ")
    }

    /// P6: whatever was taken has been given back.
    private func checkNothingIsLeft() {
        for ring in rings where ring.places.taken != 0 {
            fail("P6: \(ring.places.taken) places for zeroing are taken by nobody")
        }
        for disk in disks {
            if disk.changes.copies.copiesInFlight != 0 || disk.changes.inFlight != 0 {
                fail("P6: disk \(disk.number) counts copies or changes that are over")
            }
            if disk.changes.copies.hasActiveJobs {
                fail("P6: disk \(disk.number) has a job that has ended")
            }
            if !disk.scratchWrites.isEmpty { fail("P6: a write to scratch belongs to nobody") }
        }
        if operations.contains(where: { $0.fate == .answered && !$0.isForgotten }) {
            fail("P6: an I/O is left over")
        }
    }

    /// One last end of the process, and what the next one makes of it.
    private func endOnce() {
        switch ending ?? draw.below(3) {
        case 0: kill()
        case 1: perform(.cutPower)
        default:
            beginStop()
            for _ in 0..<60 where !isDown && isGoing {
                moveEverything()
                passTime()
            }
            if isGoing, !isDown { fail("liveness: the server does not stop") }
        }
        guard isGoing else { return }
        start()
        for disk in disks where isGoing {
            if !disk.isServed { fail("liveness: disk \(disk.number) is not served") }
            disk.checkAnswers()
        }
    }
}
