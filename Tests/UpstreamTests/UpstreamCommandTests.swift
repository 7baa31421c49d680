import Glibc
import ServerInterface
import Testing
import Upstream

/// An upstream that answers what it is told to.
private struct Peer: ~Copyable {
    var commands: UpstreamCommands
    /// What was sent and not answered, oldest first.
    var sent: [(index: Int32, isFlush: Bool)] = []
    /// What the asker of each tag was told.
    var told: [UInt64: Int32] = [:]
    var losses: [Int32] = []

    init(flushes: Bool = true, durableWrites: Bool = true) {
        var abilities = UpstreamAbilities()
        abilities.flushes = flushes
        abilities.durableWrites = durableWrites
        commands = UpstreamCommands(abilities)
        commands.connected()
    }

    mutating func ask(
        _ kind: UpstreamCommand.Kind, at position: UInt64 = 0, count: Int = 4096, tag: UInt64,
        durable: Bool = false
    ) {
        var command = UpstreamCommand(
            kind, position: position, count: count, asker: .loop(tag: tag))
        command.isDurable = durable
        _ = commands.add(command)
        send()
    }

    mutating func send() {
        while let next = commands.next() { sent.append(next) }
    }

    /// Answers the oldest.
    mutating func answer(_ errno: Int32 = 0) {
        commands.answered(sent.removeFirst().index, errno: errno)
        settle()
        send()
    }

    mutating func settle() {
        for outcome in commands.takeOutcomes() {
            switch outcome {
            case .done(let index, let errno, _):
                if case .loop(let tag) = commands[index].asker { told[tag] = errno }
            case .forgotten(let index): commands.release(index)
            case .lost(let errno): losses.append(errno)
            }
        }
    }

    mutating func breakAndReturn() {
        commands.connectionLost()
        sent = []
        commands.connected()
        send()
    }

    /// What is under way: position and kind.
    var underWay: [String] {
        var texts: [String] = []
        for next in sent {
            let command = commands[next.index]
            texts.append(next.isFlush ? "flush" : "\(command.kind) \(command.position)")
        }
        return texts
    }
}

@Suite("What is asked of an upstream")
struct UpstreamCommandTests {
    @Test("P2: a request without an answer is sent again, in the order of asking")
    func resends() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1)
        peer.ask(.read, at: 8192, tag: 2)
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 0", "read 8192"])
        peer.answer()
        peer.answer()
        #expect(peer.told == [1: 0, 2: 0])
    }

    @Test("P5: a write that was answered and not flushed is written again before anything else")
    func replays() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1)
        peer.answer()
        peer.ask(.read, at: 0, tag: 2)
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 0"])
        peer.answer()
        // Until it is flushed this process alone knows that it may be missing.
        #expect(peer.underWay == ["read 0", "flush"])
        #expect(peer.told == [1: 0])
        peer.answer()
        peer.answer()
        let keeps = peer.commands.keepsChanges
        #expect(!keeps)
    }

    @Test("P5: writes of one place are written again one after the other, as they were answered")
    func replaysInOrder() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1)
        peer.ask(.write, at: 4096, tag: 2)
        peer.ask(.zero(keepsSpace: false), at: 0, count: 8192, tag: 3)
        for _ in 0..<3 { peer.answer() }
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 0", "write 4096"])
        peer.answer()
        #expect(peer.underWay == ["write 4096"])
        peer.answer()
        #expect(peer.underWay == ["zero(keepsSpace: false) 0"])
    }

    @Test("P5: a flush lets go only of what was answered before it was sent")
    func flushCovers() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1)
        peer.answer()
        peer.ask(.flush, count: 0, tag: 2)
        peer.ask(.write, at: 4096, tag: 3)
        // The write is answered before the flush that was sent before it.
        peer.sent.swapAt(0, 1)
        peer.answer()
        peer.answer()
        #expect(peer.told == [1: 0, 2: 0, 3: 0])
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 4096"])
    }

    @Test(
        "P5: a durable write is not kept, and without such writes it is flushed before it is answered"
    )
    func durable() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1, durable: true)
        peer.answer()
        #expect(!peer.commands.keepsChanges && peer.told == [1: 0])

        var plain = Peer(durableWrites: false)
        plain.ask(.write, at: 0, tag: 1, durable: true)
        plain.answer()
        #expect(plain.told.isEmpty && plain.underWay == ["flush"])
        plain.breakAndReturn()
        #expect(plain.underWay == ["write 0"], "the write itself may be lost with its flush")
        plain.answer()
        plain.answer()
        #expect(plain.told == [1: 0])
    }

    @Test("P5: an older write of the same place does not come back over a durable one")
    func durableOverKept() {
        var peer = Peer()
        peer.ask(.write, at: 0, count: 8192, tag: 1)
        peer.answer()
        peer.ask(.write, at: 4096, tag: 2, durable: true)
        peer.ask(.write, at: 16_384, tag: 3, durable: true)
        peer.answer()
        peer.answer()
        #expect(peer.told == [1: 0, 2: 0, 3: 0])
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 0"])
        peer.answer()
        #expect(peer.underWay == ["write 4096"])
        peer.answer()
        #expect(
            peer.underWay == ["flush"], "what was flushed with its write and lies alone is not kept"
        )
    }

    @Test("P2: a request that was under way in many breaks fails, and others go on")
    func breaking() {
        var peer = Peer()
        peer.ask(.read, at: 4096, tag: 1)
        for _ in 0..<31 { peer.breakAndReturn() }
        peer.ask(.write, at: 0, tag: 2)
        peer.breakAndReturn()
        peer.settle()
        #expect(peer.told == [1: 5] && peer.underWay == ["write 0"])
        #expect(peer.losses.isEmpty)
    }

    @Test("P5: a flush that fails is a loss, whoever asked for it")
    func flushFails() {
        var peer = Peer()
        peer.ask(.write, tag: 1)
        peer.answer()
        peer.ask(.flush, count: 0, tag: 2)
        peer.answer(12)
        #expect(peer.told[2] == 5 && peer.losses == [5])
        peer.ask(.write, tag: 3, durable: true)
        peer.answer(12)
        #expect(peer.told[3] == 12 && peer.losses == [5, 5])
    }

    @Test("P6: what is kept has a limit: a flush of our own makes room, and writes wait for it")
    func bounded() {
        var peer = Peer()
        let bytes = 1 << 20
        let count = UpstreamCommands.keptBytesMax / bytes
        for number in 0..<count {
            peer.ask(.write, at: UInt64(number * bytes), count: bytes, tag: UInt64(number))
            // All but flushes are answered.
            while let first = peer.sent.first, !first.isFlush { peer.answer() }
            if peer.sent.count > 1 { peer.sent.swapAt(0, 1) }
            while let first = peer.sent.first, !first.isFlush { peer.answer() }
        }
        #expect(peer.commands.keptBytes == UpstreamCommands.keptBytesMax)
        #expect(peer.underWay == ["flush"])
        peer.ask(.write, tag: 1_000)
        peer.ask(.read, tag: 1_001)
        #expect(peer.underWay == ["flush", "read 0"])
        peer.answer()
        #expect(peer.commands.keptBytes < UpstreamCommands.keptBytesMax)
        #expect(peer.underWay.contains("write 0"))
        #expect(peer.losses.isEmpty)
    }

    @Test("P5: a flush of our own that fails is a loss, and is told once")
    func ownFlushFails() {
        var peer = Peer()
        peer.ask(.write, count: UpstreamCommands.keptBytesMax / 2, tag: 1)
        peer.answer()
        #expect(peer.underWay == ["flush"])
        peer.answer(5)
        #expect(peer.losses == [5] && !peer.commands.keepsChanges)
    }

    @Test("P5: a kept write that can no more be written is a loss")
    func replayFails() {
        var peer = Peer()
        peer.ask(.write, tag: 1)
        peer.answer()
        peer.breakAndReturn()
        peer.answer(28)
        #expect(peer.losses == [28])
    }

    @Test("P2: when patience is over everything fails; what was kept is lost, and nothing else is")
    func givesUp() {
        var peer = Peer()
        peer.ask(.read, tag: 1)
        peer.ask(.write, tag: 2)
        peer.ask(.flush, count: 0, tag: 3)
        peer.commands.connectionLost()
        peer.commands.giveUp(readErrno: 110, changeErrno: 125)
        peer.settle()
        #expect(peer.told == [1: 110, 2: 125, 3: 125])
        #expect(peer.losses.isEmpty)

        var other = Peer()
        other.ask(.write, tag: 1)
        other.answer()
        other.commands.connectionLost()
        other.commands.giveUp(readErrno: 110, changeErrno: 125)
        other.settle()
        #expect(other.losses == [110] && !other.commands.keepsChanges)
    }

    @Test("P6: an upstream without flushes keeps nothing, for nothing would ever be let go")
    func withoutFlushes() {
        var peer = Peer(flushes: false)
        peer.ask(.write, tag: 1)
        peer.answer()
        #expect(!peer.commands.keepsChanges && peer.told == [1: 0])
    }

    @Test("P5: a break in the middle of writing again begins that anew")
    func breaksWhileReplaying() {
        var peer = Peer()
        for number in 0..<40 {
            peer.ask(.write, at: UInt64(number) << 12, tag: UInt64(number))
            peer.answer()
        }
        peer.ask(.read, tag: 100)
        peer.breakAndReturn()
        #expect(peer.sent.count == 16)
        peer.answer()
        peer.breakAndReturn()
        #expect(peer.underWay.first == "write 0")
        var count = 0
        while peer.underWay.first != "read 0", count < 100 {
            peer.answer()
            count += 1
        }
        #expect(count == 40)
    }

    @Test("P1: what would be lost with the server is known before and after each answer")
    func atStake() {
        var peer = Peer()
        #expect(peer.commands.atStake == .nothing)
        peer.ask(.write, at: 0, tag: 1)
        #expect(peer.commands.atStake == .nothing, "nobody was told that it is written")
        peer.answer()
        #expect(peer.commands.atStake == .whatProgramHas)
        // A flush covers what was answered before it was sent, and no more.
        peer.ask(.flush, tag: 2)
        peer.ask(.zero(keepsSpace: false), at: 8192, tag: 3)
        let flush = peer.sent.removeFirst()
        peer.answer()
        peer.sent.insert(flush, at: 0)
        peer.answer()
        #expect(peer.told[2] == 0 && peer.commands.atStake == .whatProgramHas)

        // The upstream may be another one: what the last one had is here alone.
        peer.breakAndReturn()
        #expect(peer.commands.atStake == .whatNobodyHas)
        peer.ask(.write, at: 0, tag: 4)
        #expect(peer.commands.atStake == .whatNobodyHas)
        peer.answer()
        #expect(peer.commands.atStake == .whatProgramHas, "all is written again")
        while !peer.sent.isEmpty { peer.answer() }
        #expect(peer.commands.atStake == .whatProgramHas, "the last write is kept")
        peer.breakAndReturn()
        #expect(peer.commands.atStake == .whatNobodyHas)
        while !peer.sent.isEmpty { peer.answer() }
        peer.ask(.flush, tag: 5)
        peer.answer()
        #expect(peer.commands.atStake == .nothing)
        // A break while nothing is kept puts nothing at stake later.
        peer.breakAndReturn()
        peer.ask(.write, at: 0, tag: 6)
        peer.answer()
        #expect(peer.commands.atStake == .whatProgramHas)
    }

    @Test("P3: a discard that is lost is none: it was a hint")
    func discardAtStake() {
        var peer = Peer()
        peer.ask(.discard, at: 0, tag: 1)
        peer.answer()
        #expect(peer.commands.keepsChanges && peer.commands.atStake == .nothing)
        peer.ask(.write, at: 0, tag: 2)
        peer.answer()
        #expect(peer.commands.atStake == .whatProgramHas)
        peer.ask(.flush, tag: 3)
        peer.answer()
        #expect(!peer.commands.keepsChanges && peer.commands.atStake == .nothing)
    }

    @Test("P5: a durable write finds kept ones in its place after a flush as before")
    func durableAfterFlush() {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 1, durable: true)
        peer.ask(.write, at: 8192, tag: 2)
        peer.ask(.flush, tag: 3)
        for _ in 0..<3 { peer.answer() }
        // Answered after that flush was sent, so it is kept still.
        peer.ask(.write, at: 8192, tag: 4, durable: true)
        peer.ask(.write, at: 12_288, tag: 5, durable: true)
        peer.answer()
        peer.answer()
        peer.breakAndReturn()
        #expect(peer.underWay == ["write 8192"])
        peer.answer()
        #expect(peer.underWay == ["write 8192"])
    }

    @Test("P2: what a durable write costs does not grow with what is kept")
    func manyKept() {
        let (few, many) = (cost(kept: 4), cost(kept: 4_000))
        #expect(many < 20 * few, "\(few) and \(many) ns")
    }

    /// Processor time of durable writes beside so many kept ones, in nanoseconds.
    private func cost(kept: Int) -> UInt64 {
        var peer = Peer()
        peer.ask(.write, at: 0, tag: 0, durable: true)
        peer.ask(.flush, tag: 1)
        peer.answer()
        peer.answer()
        for number in 0..<kept {
            peer.ask(.write, at: UInt64(number) << 14, count: 1024, tag: 2)
            peer.answer()
        }
        let start = processorTime()
        for number in 0..<2_000 {
            peer.ask(.write, at: UInt64(number) << 14 + 8192, count: 1024, tag: 3, durable: true)
            peer.answer()
        }
        return processorTime() - start
    }

    private func processorTime() -> UInt64 {
        var time = timespec()
        // SAFETY: the call fills it.
        unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
