package import IORing
import ServerInterface
import SystemLayer

/// What a ring has to do for its upstreams.
package struct UpstreamErrands {
    /// Operations of the ring's own loop that are over.
    package var completions: [Completion] = []
    /// What to wait for once.
    package var polls: [Poll] = []
    /// Waits for a program's call that are to end: nobody reads it any more.
    package var cancels: [UInt32] = []
    /// Whose program is to be kicked; they live until that was submitted.
    var kicks: [SharedQueue] = []
    /// Whose descriptors may be named by what was prepared; they live as long.
    var closed: [SharedQueue] = []
    /// Answers to block status requests, by their tags.
    package var extents: [UInt64: [UpstreamExtent]] = [:]

    package struct Poll: Sendable {
        package enum Kind: UInt64, Sendable {
            /// A socket has something to read, or takes more.
            case input, output
            /// An eventfd was signalled: it is read.
            case call
            /// The other side of a socket is gone.
            case end
        }

        package let descriptor: Int32
        package let kind: Kind
        package let serial: UInt32
    }

    package init() {}
}

/// An upstream on its home ring: its connections, and what was asked of it.
final class UpstreamHome {
    let source: UpstreamSource
    var commands: UpstreamCommands
    var links: [UpstreamLink] = []
    /// Connections that are given up with others and live: what they were asked may still be
    /// carried out, so nothing is asked by new ones before.
    var parting: [UpstreamLink] = []
    /// Reads and writes go through memory that is shared with the program behind the connections,
    /// where there is such.
    var shared: SharedQueue?
    var partingShared: SharedQueue?
    /// Connections in a row that broke soon, while memory was shared.
    var sharedBreaks = 0
    let answers = AnswerQueue()
    private var taken: [AnswerQueue.Answer] = []
    /// By the number under which a command of others runs.
    var requests: [UInt64: UpstreamRequest] = [:]
    private var lastRequest: UInt64 = 0
    /// The ranges of a guest's memory that a command reads into.
    private var guests: [Int32: LentLane] = [:]
    var memory = UpstreamMemory()
    /// Of scratch: what was written.
    private var sums = ScratchSums()
    /// Of scratch: when what runs under a number was asked.
    var askedAt: [UInt64: UInt64] = [:]
    private var nextLink = 0

    // While it is not there, in nanoseconds
    var downSince: UInt64
    var nextAttempt: UInt64 = 0
    var pause: UInt64 = UpstreamHome.pauseMin
    var connectedAt: UInt64
    var isConnecting = false
    var hasGivenUp = false
    var isReported = false
    var isEndReported = false
    /// Something was answered since the last break: an upstream that dies of what it is asked is
    /// not waited for again and again.
    var hasProgress = true
    var lastFault = "the connection broke"
    private var hasLost = false
    private var saidAtStake = AtStake.nothing

    static let pauseMin: UInt64 = 50_000_000
    static let pauseMax: UInt64 = 2_000_000_000
    /// A break that is over sooner is not told.
    static let quietNanoseconds: UInt64 = 1_000_000_000
    /// After so many it may be the shared memory that breaks them.
    static let sharedBreaksMax = 4

    init(_ source: UpstreamSource, now: UInt64) {
        self.source = source
        var abilities = UpstreamAbilities()
        abilities.flushes =
            source.facts.flushes && !source.isReadOnly && source.terms.purpose == .disk
        abilities.durableWrites = source.facts.durableWrites
        commands = UpstreamCommands(abilities)
        downSince = now
        connectedAt = now
    }

    /// Takes the first connections, or asks for some.
    func begin(_ serial: inout UInt32, now: UInt64, _ errands: inout UpstreamErrands) {
        if let fresh = source.takeFresh() {
            use(fresh, &serial, now: now)
            pump(now: now, &errands)
        } else if isMadeAgain {
            tryToConnect(now: now)
        } else {
            // It was closed: who still asks is told so.
            hasGivenUp = true
        }
    }

    /// Whether a connection that breaks is made again.
    var isMadeAgain: Bool { source.terms.purpose == .disk }

    /// Ends everything: whoever waits is told that it has failed, and none of their bytes is touched
    /// any more.
    func end(_ errands: inout UpstreamErrands) {
        closeParting(&errands)
        for link in links { link.close() }
        links.removeAll()
        if let shared { close(shared, &errands) }
        shared = nil
        answers.removeAll()
        commands.connectionLost()
        commands.giveUp(readErrno: Errno.canceled, changeErrno: Errno.canceled)
        for outcome in commands.takeOutcomes() {
            switch outcome {
            case .done(let index, let errno, _):
                switch commands[index].asker {
                case .loop: errands.tell(commands[index], -errno)
                case .other(let number): takeRequest(number)?.answer(-errno, [])
                case .nobody: break
                }
            case .forgotten(let index): forget(index)
            case .lost: source.keepLoss()
            }
        }
        memory.removeAll()
    }

    // MARK: Asking

    /// Takes a command; `pump` sends it.
    func ask(_ command: UpstreamCommand, _ errands: inout UpstreamErrands) {
        if let result = result(without: command) {
            switch command.asker {
            case .loop: errands.tell(command, result)
            case .other(let number): takeRequest(number)?.answer(result, [])
            case .nobody: break
            }
            return
        }
        var command = command
        if command.kind == .read || command.kind == .write {
            let most = source.facts.transferBytesMax / source.facts.alignment
            command.count = min(command.count, max(most, 1) * source.facts.alignment)
        }
        _ = commands.add(command)
    }

    /// What a command ends with that the upstream does not know, or that has nothing to do for it.
    private func result(without command: UpstreamCommand) -> Int32? {
        let facts = source.facts
        switch command.kind {
        case .discard: return facts.discards ? nil : -Errno.notSupported
        case .zero: return facts.zeroes ? nil : -Errno.notSupported
        case .status: return facts.tellsAllocation ? nil : -Errno.notSupported
        case .prefetch: return facts.prefetches ? nil : 0
        // Without flushes an upstream has no more to give than its answers.
        case .flush: return commands.abilities.flushes ? nil : 0
        case .read, .write: return nil
        }
    }

    /// The same with bytes in a guest's memory, which may change or go at any time: they pass
    /// through memory of our own.
    func ask(_ command: UpstreamCommand, _ lane: LentLane, _ errands: inout UpstreamErrands) {
        var command = command
        let most = source.facts.transferBytesMax / source.facts.alignment * source.facts.alignment
        command.count = min(
            command.count, max(most, source.facts.alignment), UpstreamMemory.bytesMax)
        command.address = memory.take(command.count)
        command.ownsBytes = true
        if command.kind == .write {
            let got = lane.copy(to: command.address, count: command.count)
            guard got == command.count else {
                memory.give(command.address, command.count)
                return errands.tell(command, got < 0 ? Int32(got) : -Errno.badAddress)
            }
        }
        let index = commands.add(command)
        if command.kind == .read { guests[index] = lane }
    }

    /// Asks for others.
    func ask(_ request: UpstreamRequest, _ errands: inout UpstreamErrands) {
        lastRequest += 1
        requests[lastRequest] = request
        if let key = source.key {
            request.note(&sums, key)
            askedAt[lastRequest] = MonotonicClock.now()
        }
        var command = request.command
        command.asker = .other(lastRequest)
        ask(command, &errands)
    }

    private func takeRequest(_ number: UInt64) -> UpstreamRequest? {
        askedAt[number] = nil
        return requests.removeValue(forKey: number)
    }

    // MARK: Going on

    /// What was waited for has happened.
    func polled(_ kind: UpstreamErrands.Poll.Kind, _ serial: UInt32) {
        if let queue = [shared, partingShared].lazy.compactMap(\.self)
            .first(where: { $0.serial == serial })
        {
            queue.polled(kind)
        } else if let link = (links + parting).first(where: { $0.serial == serial }) {
            let isOutput = kind == .output
            if isOutput { link.waitsForOutput = false } else { link.waitsForInput = false }
            link.notify(output: isOutput)
        }
    }

    func kickFailed(_ serial: UInt32) {
        if shared?.serial == serial { shared?.isBroken = true }
    }

    /// By the numbers of what is waited for.
    var serials: [UInt32] {
        (links + parting).map(\.serial) + [shared, partingShared].compactMap { $0?.serial }
    }

    /// Takes answers, sends what can be sent, says what to wait for.
    func pump(now: UInt64, _ errands: inout UpstreamErrands) {
        settleParting(now: now, &errands)
        while true {
            collectShared()
            takeAnswers(&errands)
            if isAnyBroken { breakAll(now: now, &errands) }
            if hasGivenUp { giveUp(&errands) }
            tellOutcomes(&errands)
            guard sendNext() else { break }
        }
        tellOutcomes(&errands)
        if let shared, shared.publish() { errands.kicks.append(shared) }
        arm(&errands)
    }

    private var isAnyBroken: Bool {
        links.contains(where: \.isBroken) || shared?.isBroken == true
    }

    /// Takes what the program has answered.
    ///
    /// What it has not carried out goes to it once more over a connection, where it says why.
    private func collectShared() {
        guard let shared, let link = links.first else { return }
        for index in shared.collect(into: answers) {
            let command = commands[index]
            let errno = link.send(command, asFlush: false, index, to: answers, durable: false)
            if !link.isBroken, errno != 0 { commands.answered(index, errno: errno) }
        }
    }

    /// Sends until nothing is to be sent; false when there was nothing.
    private func sendNext() -> Bool {
        var hasSent = false
        while !links.isEmpty, let (index, isFlush) = commands.next() {
            hasSent = true
            let command = commands[index]
            if !isFlush, let shared, shared.ask(command, index, for: borrower(command)) { continue }
            let link = pickLink(command)
            let errno = link.send(
                command, asFlush: isFlush, index, to: answers,
                durable: command.isDurable && commands.abilities.durableWrites)
            // On a link that has broken it counts as sent, and is sent again.
            if link.isBroken { return true }
            if errno != 0 { commands.answered(index, errno: errno) }
        }
        return hasSent
    }

    private func borrower(_ command: UpstreamCommand) -> UpstreamBytes? {
        guard case .other(let number) = command.asker else { return nil }
        return requests[number]?.borrower
    }

    /// A machine's own small requests have the first connection to themselves where there are
    /// several: none of them waits behind what backup clients read, or behind large reads.
    private func pickLink(_ command: UpstreamCommand) -> UpstreamLink {
        guard links.count > 1, !command.isChange, command.kind != .flush else { return links[0] }
        var mayWait = command.kind == .read && command.count >= Self.largeReadBytes
        if case .other = command.asker { mayWait = true }
        guard mayWait else { return links[0] }
        nextLink = nextLink % (links.count - 1) + 1
        return links[nextLink]
    }

    /// A read of so many bytes and more fills a good part of a socket's buffer.
    private static let largeReadBytes = 64 << 10

    private func takeAnswers(_ errands: inout UpstreamErrands) {
        answers.takeAll(into: &taken)
        for answer in taken {
            if Self.isLinkLost(answer.errno) {
                // Its link is marked below; where it is not yet, it refuses work.
                for link in links where !link.isAlive || answer.errno == Self.shutsDown {
                    link.isBroken = true
                }
                if !links.contains(where: \.isBroken) {
                    for link in links { link.isBroken = true }
                }
                continue
            }
            let command = commands[answer.index]
            // What was written again would be answered after each break.
            if !commands.isReplay(answer.index) { noteProgress() }
            let isShort = command.kind == .read && answer.byteCount != command.count
            commands.answered(
                answer.index, errno: answer.errno == 0 && isShort ? Errno.io : answer.errno)
            tellOutcomes(&errands)
        }
        taken.removeAll(keepingCapacity: true)
    }

    private static let shutsDown: Int32 = 108
    private static let notConnected: Int32 = 107

    /// An answer that says nothing of the command: the server goes, or is gone.
    private static func isLinkLost(_ errno: Int32) -> Bool {
        errno == shutsDown || errno == notConnected
    }

    /// Before anybody hears of an answer, and when a connection has broken: what would be lost.
    func noteAtStake() {
        // What is lost has been told to this server alone.
        let atStake = hasLost ? .whatNobodyHas : commands.atStake
        guard atStake != saidAtStake else { return }
        saidAtStake = atStake
        source.note(atStake)
    }

    private func tellOutcomes(_ errands: inout UpstreamErrands) {
        let outcomes = commands.takeOutcomes()
        if outcomes.contains(where: { if case .lost = $0 { true } else { false } }) {
            hasLost = true
        }
        noteAtStake()
        for outcome in outcomes {
            switch outcome {
            case .done(let index, let errno, let keeping): done(index, errno, keeping, &errands)
            case .forgotten(let index): forget(index)
            case .lost: source.keepLoss()
            }
        }
    }

    private func forget(_ index: Int32) {
        let command = commands[index]
        if command.ownsBytes { memory.give(command.address, command.count) }
        guests[index] = nil
        commands.release(index)
    }

    private func done(
        _ index: Int32, _ errno: Int32, _ keeping: Bool, _ errands: inout UpstreamErrands
    ) {
        let command = commands[index]
        if keeping, command.kind == .write, !command.ownsBytes {
            let own = memory.take(command.count)
            UpstreamMemory.copy(from: command.address, to: own, count: command.count)
            commands[index].address = own
            commands[index].ownsBytes = true
        }
        var result = -errno
        if errno == 0 {
            switch command.kind {
            case .read:
                result = Int32(command.count)
                if let guest = guests[index] {
                    result = Int32(guest.copy(from: command.address, count: command.count))
                }
            case .write: result = Int32(command.count)
            case .discard, .flush, .prefetch, .status, .zero: result = 0
            }
        }
        let extents = command.kind == .status ? answers.takeExtents(of: index) : []
        switch command.asker {
        case .loop(let tag):
            if command.kind == .status { errands.extents[tag] = extents }
            errands.completions.append(Completion(tag: tag, result: result))
        case .other(let number):
            takeRequest(number)?.answer(result, extents)
        case .nobody: break
        }
    }

    private func arm(_ errands: inout UpstreamErrands) {
        for link in links { arm(link, &errands) }
        for link in parting { arm(link, &errands) }
        if let shared { arm(shared, &errands) }
        if let partingShared { arm(partingShared, &errands) }
    }

    private func arm(_ link: UpstreamLink, _ errands: inout UpstreamErrands) {
        guard !link.isBroken else { return }
        if link.wantsInput, !link.waitsForInput {
            link.waitsForInput = true
            errands.polls.append(
                .init(descriptor: link.descriptor, kind: .input, serial: link.serial))
        }
        if link.wantsOutput, !link.waitsForOutput {
            link.waitsForOutput = true
            errands.polls.append(
                .init(descriptor: link.descriptor, kind: .output, serial: link.serial))
        }
    }

    private func arm(_ queue: SharedQueue, _ errands: inout UpstreamErrands) {
        if !queue.waitsForCall, !queue.isBroken {
            queue.waitsForCall = true
            errands.polls.append(
                .init(descriptor: queue.callDescriptor, kind: .call, serial: queue.serial))
        }
        if !queue.waitsForEnd, !queue.hasEnded {
            queue.waitsForEnd = true
            errands.polls.append(
                .init(descriptor: queue.endDescriptor, kind: .end, serial: queue.serial))
        }
    }
}

extension UpstreamErrands {
    mutating func tell(_ command: UpstreamCommand, _ result: Int32) {
        guard case .loop(let tag) = command.asker else { return }
        completions.append(Completion(tag: tag, result: result))
    }
}
