package import ServerInterface

/// What is asked of an upstream by one operation.
package struct UpstreamCommand: Sendable, Hashable {
    package enum Kind: Sendable, Hashable {
        case read, write, discard, flush, prefetch, status
        /// Afterwards the range reads as zeros; without `keepsSpace` it may give its room back.
        case zero(keepsSpace: Bool)
    }

    /// Who is told how it ended.
    package enum Asker: Sendable, Hashable {
        /// The ring's own loop, by the operation's tag.
        case loop(tag: UInt64)
        /// Somebody else, by a number.
        case other(UInt64)
        /// A flush of ours.
        case nobody
    }

    package var kind: Kind
    package var position: UInt64
    package var count: Int
    /// A write that is to be durable when it is answered.
    package var isDurable = false
    package var asker: Asker
    /// Where the bytes are, as a number; 0: there are none.
    package var address: UInt = 0
    /// The bytes lie in memory that goes with the command.
    package var ownsBytes = false

    package init(
        _ kind: Kind, position: UInt64 = 0, count: Int = 0, asker: Asker
    ) {
        self.kind = kind
        self.position = position
        self.count = count
        self.asker = asker
    }

    /// Whether it changes the disk.
    var isChange: Bool {
        switch kind {
        case .write, .discard, .zero: true
        case .read, .flush, .prefetch, .status: false
        }
    }

    var end: UInt64 { position + UInt64(count) }
}

/// What an upstream can do.
package struct UpstreamAbilities: Sendable, Hashable {
    package var flushes = false
    package var durableWrites = false

    package init() {}
}

/// The commands of one upstream: what is to be sent, sent once more, or kept although it was
/// answered.
///
/// An upstream may lose what it has answered until it is flushed, and a connection that breaks may
/// mean that it was started anew. So a change is kept, bytes and all, until a flush that was sent
/// after its answer has succeeded. When the connection is there again, what is kept is written
/// first, in the order of its answers, and everything else waits until that is done. A change
/// without an answer is sent again after those: whatever was answered meanwhile was under way at
/// the same time, so either may be the last.
///
/// What is kept has a limit. Above half of it a flush of ours is sent, above all of it changes wait
/// for that one. Pure: bytes are looked after by the caller.
package struct UpstreamCommands: ~Copyable {
    /// Bytes of changes kept for one upstream; a small one counts as a page.
    package static let keptBytesMax = 32 << 20
    /// Kept changes written again at a time.
    static let replaysMax = 16
    private static let countedBytesMin = 4096
    /// A command that was under way in so many breaks is not sent again.
    static let breaksMax = 32
    private static let inputOutputError: Int32 = 5
    private static let noSpace: Int32 = 28

    /// A command's place in the table.
    package typealias Index = Int32

    enum State {
        case open, waiting, sent, kept, replayed
    }

    struct Entry {
        var command: UpstreamCommand
        var state: State
        /// A durable write that was answered, whose flush has been sent.
        var isFlushing = false
        /// How many answers there were when it was sent; of what is kept, when it was answered.
        var mark: UInt64 = 0
        /// The order of asking.
        var order: UInt64
        /// Connections that broke while it was under way.
        var breaks = 0
    }

    /// What follows from an answer, to be done by the caller in this order.
    package enum Outcome: Sendable, Hashable {
        /// Tell the asker; `keeping`: copy the bytes before, for the command stays.
        case done(Index, errno: Int32, keeping: Bool)
        /// The command is over: its bytes can go.
        case forgotten(Index)
        /// Changes that had succeeded are, or may be, lost.
        case lost(errno: Int32)
    }

    var entries: [Entry] = []
    private var free: [Index] = []
    private var waiting: [Index] = []
    /// Where the first of them is.
    private var first = 0
    /// Changes that wait for room.
    private var held: [Index] = []
    private var kept: [Index] = []
    /// Where those lie, once somebody asks who writes durably: others are spared the order.
    private var places = KeptPlaces()
    private var ordersPlaces = false
    private var hasDurableWrites = false
    package private(set) var keptBytes = 0
    /// How many of them are more than a hint.
    private var keptData = 0
    private var answers: UInt64 = 0
    /// How many answers there were when a connection broke last while something was kept.
    private var breakMark: UInt64 = 0
    private var lastOrder: UInt64 = 0
    private var hasOwnFlush = false
    /// What was written again is to be durable: until then nobody but this process knows it.
    private var flushesSoon = false
    /// The next one to be written again; nil: nothing is.
    private var replay: Int?
    private var replaysSent = 0
    package private(set) var isUp = false
    package var abilities: UpstreamAbilities
    package private(set) var outcomes: [Outcome] = []

    package init(_ abilities: UpstreamAbilities) { self.abilities = abilities }

    package subscript(_ index: Index) -> UpstreamCommand {
        get { entries[Int(index)].command }
        set { entries[Int(index)].command = newValue }
    }

    /// Whether it was answered before, and is written again.
    package func isReplay(_ index: Index) -> Bool { entries[Int(index)].state == .replayed }

    /// Whether something was sent that has no answer.
    package var awaitsAnswers: Bool {
        entries.contains { $0.state == .sent || $0.state == .replayed }
    }

    /// Whether changes are kept.
    package var keepsChanges: Bool { !kept.isEmpty }

    /// What is lost when this process ends now.
    package var atStake: AtStake {
        guard keptData > 0, let oldest = kept.first else { return .nothing }
        return entries[Int(oldest)].mark <= breakMark ? .whatNobodyHas : .whatProgramHas
    }

    /// Takes what followed from answers.
    package mutating func takeOutcomes() -> [Outcome] {
        let taken = outcomes
        outcomes.removeAll(keepingCapacity: true)
        return taken
    }

    // MARK: Asking

    /// Takes a command; it is sent when `next` says so.
    package mutating func add(_ command: UpstreamCommand) -> Index {
        lastOrder += 1
        let entry = Entry(command: command, state: .waiting, order: lastOrder)
        let index: Index
        if let open = free.popLast() {
            index = open
            entries[Int(open)] = entry
        } else {
            index = Index(entries.count)
            entries.append(entry)
        }
        waiting.append(index)
        return index
    }

    /// The next command to be sent now; it counts as sent.
    ///
    /// `true`: as a flush, whatever it is.
    package mutating func next() -> (index: Index, isFlush: Bool)? {
        guard isUp else { return nil }
        if let position = replay {
            if let index = nextReplay(position) { return (index, false) }
            if replay != nil { return nil }
        }
        flushKept()
        while first < waiting.count {
            let index = waiting[first]
            first += 1
            if first == waiting.count {
                waiting.removeAll(keepingCapacity: true)
                first = 0
            } else if first > 1_024 {
                waiting.removeFirst(first)
                first = 0
            }
            let entry = entries[Int(index)]
            if entry.command.isChange, !entry.isFlushing, isFull {
                held.append(index)
                continue
            }
            entries[Int(index)].state = .sent
            entries[Int(index)].mark = answers
            return (index, entry.isFlushing || entry.command.kind == .flush)
        }
        return nil
    }

    private var isFull: Bool { abilities.flushes && keptBytes >= Self.keptBytesMax }

    private mutating func flushKept() {
        guard !hasOwnFlush, abilities.flushes,
            keptBytes >= Self.keptBytesMax / 2 || flushesSoon
        else { return }
        hasOwnFlush = true
        flushesSoon = false
        _ = add(UpstreamCommand(.flush, asker: .nobody))
    }

    private mutating func nextReplay(_ position: Int) -> Index? {
        guard position < kept.count else {
            if replaysSent == 0 {
                replay = nil
                flushesSoon = true
                // Whoever serves it now has everything.
                breakMark = 0
            }
            return nil
        }
        let index = kept[position]
        guard replaysSent < Self.replaysMax, !overlapsReplay(index, before: position) else {
            return nil
        }
        replay = position + 1
        replaysSent += 1
        entries[Int(index)].state = .replayed
        return index
    }

    private func overlapsReplay(_ index: Index, before position: Int) -> Bool {
        let command = entries[Int(index)].command
        for other in kept[max(0, position - 2 * Self.replaysMax)..<position] {
            let entry = entries[Int(other)]
            if entry.state == .replayed, entry.command.position < command.end,
                command.position < entry.command.end
            {
                return true
            }
        }
        // One that is older and still under way holds all others up.
        return position > 2 * Self.replaysMax
            && kept[..<(position - 2 * Self.replaysMax)].contains {
                entries[Int($0)].state == .replayed
            }
    }

    // MARK: Answers

    /// The upstream has answered a command that was sent: 0, or an errno.
    package mutating func answered(_ index: Index, errno: Int32) {
        let entry = entries[Int(index)]
        switch entry.state {
        case .replayed: replayAnswered(index, errno)
        case .sent:
            if entry.isFlushing || entry.command.kind == .flush {
                flushAnswered(index, errno)
            } else if entry.command.isChange, errno == 0 {
                changed(index)
            } else {
                // The failure may be that of the flush in it, which is said once.
                if entry.command.isDurable, errno != Self.noSpace {
                    outcomes.append(.lost(errno: Self.inputOutputError))
                }
                finish(index, errno: errno)
            }
        case .open, .waiting, .kept: break
        }
    }

    private mutating func changed(_ index: Index) {
        answers += 1
        let command = entries[Int(index)].command
        guard abilities.flushes else { return finish(index, errno: 0) }
        if command.isDurable, abilities.durableWrites {
            hasDurableWrites = true
            // An older change of the same place must not come back over it after a break.
            guard overlapsKept(command) else { return finish(index, errno: 0) }
        } else if command.isDurable {
            entries[Int(index)].isFlushing = true
            entries[Int(index)].state = .waiting
            waiting.append(index)
            return
        }
        entries[Int(index)].state = .kept
        entries[Int(index)].mark = answers
        kept.append(index)
        if ordersPlaces {
            places.insert(index, position: command.position, end: command.end)
        }
        keptBytes += Self.counted(command)
        if command.kind != .discard { keptData += 1 }
        outcomes.append(.done(index, errno: 0, keeping: true))
    }

    private func overlapsKept(_ command: UpstreamCommand) -> Bool {
        guard !ordersPlaces else {
            return places.touches(position: command.position, end: command.end)
        }
        return kept.contains { index in
            let other = entries[Int(index)].command
            return other.position < command.end && command.position < other.end
        }
    }

    private mutating func flushAnswered(_ index: Index, _ answer: Int32) {
        // Whatever an upstream says of it, a flush that was carried out and failed may have lost
        // something.
        let errno = answer == 0 ? 0 : Self.inputOutputError
        let entry = entries[Int(index)]
        if entry.command.asker == .nobody {
            hasOwnFlush = false
        }
        // Whoever asked: what is forgotten below may be what was lost.
        if errno != 0 { outcomes.append(.lost(errno: errno)) }
        // After a failure, too: it may have been said once.
        forgetKept(upTo: entry.mark)
        finish(index, errno: errno)
    }

    private mutating func replayAnswered(_ index: Index, _ errno: Int32) {
        replaysSent -= 1
        entries[Int(index)].state = .kept
        guard errno != 0 else { return }
        outcomes.append(.lost(errno: errno))
    }

    private mutating func finish(_ index: Index, errno: Int32) {
        outcomes.append(.done(index, errno: errno, keeping: false))
        forget(index)
    }

    private mutating func forget(_ index: Index) {
        entries[Int(index)].state = .open
        outcomes.append(.forgotten(index))
    }

    /// The caller has done with a forgotten command: its place can be taken.
    package mutating func release(_ index: Index) { free.append(index) }

    private mutating func forgetKept(upTo mark: UInt64) {
        var count = 0
        while count < kept.count, entries[Int(kept[count])].mark <= mark { count += 1 }
        for index in kept[..<count] {
            let command = entries[Int(index)].command
            keptBytes -= Self.counted(command)
            if command.kind != .discard { keptData -= 1 }
            if ordersPlaces { places.remove(index) }
            forget(index)
        }
        kept.removeFirst(count)
        orderPlaces()
        if keptBytes < Self.keptBytesMax { letHeldGo() }
    }

    /// From the first flush after a durable write on: by then few are kept, so nobody waits for it.
    private mutating func orderPlaces() {
        guard hasDurableWrites, !ordersPlaces else { return }
        ordersPlaces = true
        for index in kept {
            let command = entries[Int(index)].command
            places.insert(index, position: command.position, end: command.end)
        }
    }

    private mutating func letHeldGo() {
        guard !held.isEmpty else { return }
        waiting = held + waiting[first...]
        first = 0
        held.removeAll(keepingCapacity: true)
    }

    private static func counted(_ command: UpstreamCommand) -> Int {
        command.kind == .write ? max(command.count, countedBytesMin) : countedBytesMin
    }

    // MARK: Connections

    /// Whether a break now ends commands that were under way in too many.
    package var isLastBreak: Bool {
        entries.contains { $0.state == .sent && $0.breaks + 1 >= Self.breaksMax }
    }

    /// No answer comes any more: what was sent is to be sent again.
    package mutating func connectionLost() {
        isUp = false
        if !kept.isEmpty { breakMark = answers }
        replay = nil
        replaysSent = 0
        var again: [Index] = []
        for index in entries.indices {
            switch entries[index].state {
            case .sent:
                entries[index].breaks += 1
                again.append(Index(index))
            case .replayed: entries[index].state = .kept
            case .open, .waiting, .kept: break
            }
        }
        letHeldGo()
        // A durable write whose flush is missing may be lost as a whole.
        for index in entries.indices where entries[index].isFlushing {
            entries[index].isFlushing = false
        }
        again.sort { entries[Int($0)].order < entries[Int($1)].order }
        for index in again { entries[Int(index)].state = .waiting }
        // One that breaks every connection must not keep others from being answered.
        let breaking = again.filter { isBreaking($0) }
        again.removeAll { isBreaking($0) }
        waiting = again + waiting[first...]
        first = 0
        for index in breaking {
            let command = entries[Int(index)].command
            if command.asker == .nobody { hasOwnFlush = false }
            if command.kind == .flush { outcomes.append(.lost(errno: Self.inputOutputError)) }
            finish(index, errno: Self.inputOutputError)
        }
    }

    private func isBreaking(_ index: Index) -> Bool {
        entries[Int(index)].breaks >= Self.breaksMax
    }

    /// The upstream is there (again), perhaps another process.
    package mutating func connected() {
        isUp = true
        replay = kept.isEmpty ? nil : 0
        replaysSent = 0
    }

    /// Nobody waits for the upstream any longer: everything that was asked has failed.
    ///
    /// A flush that fails so says nothing of what was written before, for that is told by `lost`.
    package mutating func giveUp(readErrno: Int32, changeErrno: Int32) {
        precondition(!isUp, "an upstream that is there is not given up")
        if !kept.isEmpty { outcomes.append(.lost(errno: readErrno)) }
        forgetKept(upTo: .max)
        letHeldGo()
        let all = waiting[first...]
        waiting = []
        first = 0
        hasOwnFlush = false
        for index in all {
            let command = entries[Int(index)].command
            let isChange = command.isChange || command.kind == .flush
            finish(index, errno: isChange ? changeErrno : readErrno)
        }
    }
}
