/// One instant for several disks, as a state machine without I/O: answers and time in, actions out.
///
/// All disks are held. When each has said that it is quiet, the parts of the instant are carried
/// out: jobs are attached, layers are exchanged. When all of them are, the disks resume. The
/// instant lies between the last disk's word that it is quiet and the first that resumes, so it is
/// the same for all.
///
/// Whatever fails or does not answer in time, every disk resumes, and what may have been carried
/// out is taken back. Answers that come late are ignored: a disk handles its messages in order, so
/// that it resumes and is taken back come after what they undo.
package struct InstantFixing: Sendable, Hashable {
    package enum Action: Sendable, Hashable {
        /// Hold the disk; answer when it is quiet.
        case hold(disk: Int)
        /// Carry out a part on its disk, which is held and quiet; answer whether it could be done.
        case carryOut(part: Int)
        case resume(disk: Int)
        /// Take back every part, as far as it was carried out.
        case takeBack
    }

    package enum Outcome: Sendable, Hashable {
        case fixed
        /// Changes in flight did not end in time; nothing was carried out.
        case notQuiet
        /// A disk did not answer in time.
        case stuck
        /// A part could not be done.
        case refused
    }

    private enum Phase: Hashable { case holding, carryingOut, over(Outcome) }

    private let diskCount: Int
    private let partCount: Int
    private var phase = Phase.holding
    /// Disks or parts, by the phase, that have not answered.
    private var missing: Set<Int>
    private var isRefused = false
    private var actions: [Action] = []
    private var nextActionIndex = 0

    package init(diskCount: Int, partCount: Int) {
        self.diskCount = diskCount
        self.partCount = partCount
        missing = Set(0..<diskCount)
        actions = (0..<diskCount).map { .hold(disk: $0) }
        goOn()
    }

    /// What became of it, once every action has been taken; nil while answers are missing.
    package var outcome: Outcome? {
        guard case .over(let outcome) = phase, nextActionIndex == actions.count else { return nil }
        return outcome
    }

    /// Whether the disks are still being held: the limit for changes in flight applies, not the one
    /// for a disk to answer.
    package var isHolding: Bool { phase == .holding }

    /// Takes the next action, or nil when there is nothing to do until something is answered.
    package mutating func nextAction() -> Action? {
        guard nextActionIndex < actions.count else { return nil }
        nextActionIndex += 1
        return actions[nextActionIndex - 1]
    }

    /// A held disk is quiet.
    package mutating func isQuiet(disk: Int) {
        guard phase == .holding else { return }
        missing.remove(disk)
        goOn()
    }

    /// A part was carried out, or could not be.
    package mutating func carriedOut(part: Int, succeeded: Bool) {
        guard phase == .carryingOut else { return }
        missing.remove(part)
        if !succeeded { isRefused = true }
        goOn()
    }

    /// The limit of the present phase is over.
    package mutating func timeIsOver() {
        switch phase {
        case .holding: end(.notQuiet)
        case .carryingOut: end(.stuck)
        case .over: break
        }
    }

    private mutating func goOn() {
        guard missing.isEmpty else { return }
        switch phase {
        case .holding:
            phase = .carryingOut
            missing = Set(0..<partCount)
            actions += (0..<partCount).map { .carryOut(part: $0) }
            goOn()
        case .carryingOut: end(isRefused ? .refused : .fixed)
        case .over: break
        }
    }

    private mutating func end(_ outcome: Outcome) {
        phase = .over(outcome)
        actions += (0..<diskCount).map { .resume(disk: $0) }
        if outcome == .stuck || outcome == .refused { actions.append(.takeBack) }
    }
}
