import Core
import PointInTime
import Testing
import Tracking

/// Several disks on rings of their own, guests that write to them in turn, and one call that fixes
/// an instant on all: a state of the walk.
///
/// The production's machines run: `InstantFixing`, and a `DiskChanges` for each disk. Messages to a
/// ring stay in their order; answers of several rings overtake one another.
private struct InstantWorld: Hashable {
    /// What the call does wrong.
    ///
    /// A harness that lets this pass proves nothing.
    enum Rule: Hashable {
        case right
        /// Carries out what a disk has to do and lets it resume as soon as that disk is quiet.
        case eachDiskByItself
        /// Does not wait until a disk is quiet.
        case asksNobody
        /// Forgets to let a disk resume when the time was over.
        case forgetsToResume
    }

    enum Event: Hashable {
        case submit(writer: Int)
        case complete(writer: Int)
        /// A ring looks at the next message for its disk.
        case deliver(disk: Int)
        case answer(index: Int)
        case timeIsOver
    }

    enum Answer: Hashable { case quiet(disk: Int), done(part: Int, succeeded: Bool) }

    /// A guest that writes 1, 2, 3 … to disks in turn, each write after the last is complete.
    struct Writer: Hashable {
        var script: [Int]
        var written = 0
        var isHeld = false
        var isAtWork = false
    }

    let rule: Rule
    /// A disk at which the part cannot be done.
    let refusingDisk: Int?
    var mayBeLate: Bool
    var fixing: InstantFixing
    var disks: [DiskChanges]
    var ring = Places(limit: 1)
    /// What each writer wrote last, by disk.
    var content: [[Int]]
    /// The same at the disk's part of the instant.
    var images: [[Int]?]
    var inbox: [[InstantFixing.Action]]
    var answers: [Answer] = []
    /// Parts that a wrong call has carried out before its time.
    var early: Set<Int> = []
    var writers: [Writer]

    init(diskCount: Int, scripts: [[Int]], rule: Rule, refusingDisk: Int?, mayBeLate: Bool) {
        self.rule = rule
        self.refusingDisk = refusingDisk
        self.mayBeLate = mayBeLate
        fixing = InstantFixing(diskCount: diskCount, partCount: diskCount)
        disks = (0..<diskCount).map { _ in
            DiskChanges(changeLimit: scripts.count, hasBlocks: false, zeroingLimit: 1)
        }
        content = (0..<diskCount).map { _ in [Int](repeating: 0, count: scripts.count) }
        images = [[Int]?](repeating: nil, count: diskCount)
        inbox = [[InstantFixing.Action]](repeating: [], count: diskCount)
        writers = scripts.map { Writer(script: $0) }
        send()
    }

    var events: [Event] {
        var events: [Event] = []
        for (index, writer) in writers.enumerated() {
            if writer.isAtWork {
                events.append(.complete(writer: index))
            } else if !writer.isHeld, !writer.script.isEmpty {
                events.append(.submit(writer: index))
            }
        }
        for disk in disks.indices where !inbox[disk].isEmpty { events.append(.deliver(disk: disk)) }
        events += answers.indices.map { .answer(index: $0) }
        if mayBeLate, fixing.outcome == nil { events.append(.timeIsOver) }
        return events
    }

    mutating func apply(_ event: Event) throws(Violation) {
        switch event {
        case .submit(let writer): submit(writer)
        case .complete(let writer): complete(writer)
        case .deliver(let disk): try deliver(inbox[disk].removeFirst(), disk)
        case .answer(let index): receive(answers.remove(at: index))
        case .timeIsOver:
            mayBeLate = false
            fixing.timeIsOver()
            send()
        }
        for disk in disks.indices { drain(disk) }
        try check()
    }

    private func change(_ writer: Int) -> Change {
        Change(ChangeID(writer), bytes: 0..<1, blocks: 0..<1)
    }

    private mutating func submit(_ writer: Int) {
        let disk = writers[writer].script[0]
        switch disks[disk].admit(change(writer), now: 0) {
        case .go: writers[writer].isAtWork = true
        case .waits: writers[writer].isHeld = true
        }
    }

    private mutating func complete(_ writer: Int) {
        let disk = writers[writer].script.removeFirst()
        writers[writer].isAtWork = false
        writers[writer].written += 1
        content[disk][writer] = writers[writer].written
        disks[disk].finished(change(writer))
    }

    private mutating func drain(_ disk: Int) {
        while let action = disks[disk].nextAction(&ring) {
            switch action {
            case .submit(let change):
                writers[change.number].isHeld = false
                writers[change.number].isAtWork = true
            case .quiet: answers.append(.quiet(disk: disk))
            default: break
            }
        }
    }

    /// On the disk's ring.
    private mutating func deliver(
        _ action: InstantFixing.Action, _ disk: Int
    ) throws(Violation) {
        switch action {
        case .hold: disks[disk].hold()
        case .carryOut(let part):
            guard disks[disk].isQuiet else {
                throw Violation(text: "disk \(disk) is not quiet at its instant")
            }
            let succeeds = refusingDisk != disk
            if succeeds { images[disk] = content[disk] }
            answers.append(.done(part: part, succeeded: succeeds))
        case .resume: disks[disk].resume(now: 0)
        case .takeBack: images[disk] = nil
        }
    }

    /// In the call.
    private mutating func receive(_ answer: Answer) {
        switch answer {
        case .quiet(let disk):
            if rule == .eachDiskByItself {
                inbox[disk] += [.carryOut(part: disk), .resume(disk: disk)]
            }
            fixing.isQuiet(disk: disk)
        case .done(let part, let succeeded):
            if fixing.isHolding { early.insert(part) }
            fixing.carriedOut(part: part, succeeded: succeeded)
        }
        send()
    }

    private mutating func send() {
        while let action = fixing.nextAction() {
            switch action {
            case .hold(let disk):
                inbox[disk].append(action)
                if rule == .asksNobody { fixing.isQuiet(disk: disk) }
            case .carryOut(let part):
                if early.contains(part) {
                    fixing.carriedOut(part: part, succeeded: true)
                } else if rule != .eachDiskByItself {
                    inbox[part].append(action)
                }
            case .resume(let disk):
                let isForgotten = rule == .forgetsToResume && disk == 0 && !mayBeLate
                if rule != .eachDiskByItself, !isForgotten { inbox[disk].append(action) }
            case .takeBack: for disk in disks.indices { inbox[disk].append(action) }
            }
        }
    }

    /// The instant's images are one moment of all disks: a write that is there has all before it.
    private func check() throws(Violation) {
        guard fixing.outcome == .fixed else { return }
        for writer in writers.indices {
            let disksOfWrites = order(writer)
            let last = images.compactMap { $0?[writer] }.max() ?? 0
            for write in 0..<last {
                guard let image = images[disksOfWrites[write]], image[writer] >= write + 1 else {
                    throw Violation(
                        text:
                            "write \(last) of writer \(writer) is there without write \(write + 1)")
                }
            }
        }
    }

    /// The disks that the writer wrote to, first to last: every script goes from disk to disk.
    private func order(_ writer: Int) -> [Int] {
        (0..<writers[writer].written + writers[writer].script.count).map {
            ($0 + writer) % disks.count
        }
    }

    func checkEnd() throws(Violation) {
        guard fixing.outcome != nil, disks.allSatisfy({ $0.isIdle && !$0.isHeld }),
            writers.allSatisfy({ $0.script.isEmpty && !$0.isHeld })
        else { throw Violation(text: "nothing can happen any more, yet something waits") }
        let isWhole = images.allSatisfy { $0 != nil }
        let isNothing = images.allSatisfy { $0 == nil }
        guard fixing.outcome == .fixed ? isWhole : isNothing else {
            throw Violation(text: "the instant is half there")
        }
    }

    /// Visits every state, each once; returns how each walk ended.
    static func walk(_ start: InstantWorld) throws(Violation) -> Set<InstantFixing.Outcome> {
        var seen: Set<InstantWorld> = [start]
        var left = [start]
        var outcomes: Set<InstantFixing.Outcome> = []
        while let world = left.popLast() {
            let events = world.events
            if events.isEmpty {
                try world.checkEnd()
                if let outcome = world.fixing.outcome { outcomes.insert(outcome) }
            }
            for event in events {
                var next = world
                try next.apply(event)
                if seen.insert(next).inserted { left.append(next) }
            }
        }
        return outcomes
    }
}

@Suite("One instant on several disks, every interleaving")
struct InstantTests {
    /// Each writer goes from disk to disk.
    private func world(
        _ diskCount: Int = 2, writers: Int = 2, writes: Int = 2,
        rule: InstantWorld.Rule = .right, refusing: Int? = nil, mayBeLate: Bool = false
    ) -> InstantWorld {
        InstantWorld(
            diskCount: diskCount,
            scripts: (0..<writers).map { writer in
                (0..<writes).map { ($0 + writer) % diskCount }
            },
            rule: rule, refusingDisk: refusing, mayBeLate: mayBeLate)
    }

    @Test("P1: all disks share the instant, whatever guests write meanwhile")
    func shared() throws {
        #expect(try InstantWorld.walk(world()) == [.fixed])
        #expect(try InstantWorld.walk(world(3, writers: 1, writes: 3)) == [.fixed])
    }

    @Test("P2: the time is over at any moment: guests go on, and nothing is left of the instant")
    func late() throws {
        let outcomes = try InstantWorld.walk(world(mayBeLate: true))
        #expect(outcomes == [.fixed, .notQuiet, .stuck])
    }

    @Test(
        "P2: a disk has no place for a job: guests go on, and no disk has one", arguments: [0, 1])
    func refused(disk: Int) throws {
        let outcomes = try InstantWorld.walk(world(refusing: disk, mayBeLate: true))
        #expect(outcomes == [.refused, .notQuiet, .stuck])
    }

    @Test(
        "wrong ways to fix an instant are caught",
        arguments: [InstantWorld.Rule.eachDiskByItself, .asksNobody, .forgetsToResume])
    fileprivate func canaries(rule: InstantWorld.Rule) {
        #expect(throws: Violation.self) {
            try InstantWorld.walk(world(rule: rule, mayBeLate: rule == .forgetsToResume))
        }
    }

    @Test("an instant of no disks is fixed at once")
    func none() {
        var fixing = InstantFixing(diskCount: 0, partCount: 0)
        #expect(fixing.nextAction() == nil)
        #expect(fixing.outcome == .fixed)
    }
}
