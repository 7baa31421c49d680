package import IORing
import SystemLayer

/// What a ring has to do for its upstreams.
package struct UpstreamErrands {
    /// Operations of the ring's own loop that are over.
    package var completions: [Completion] = []
    /// What to wait for once.
    package var polls: [Poll] = []
    /// Answers to block status requests, by their tags.
    package var extents: [UInt64: [UpstreamExtent]] = [:]

    package struct Poll: Sendable {
        package let descriptor: Int32
        package let isOutput: Bool
        package let serial: UInt32
    }

    package init() {}
}

/// An upstream on its home ring: its connections, and what was asked of it.
final class UpstreamHome {
    let source: UpstreamSource
    private var commands: UpstreamCommands
    private(set) var links: [UpstreamLink] = []
    /// Connections that are given up with others and live: what they were asked may still be
    /// carried out, so nothing is asked by new ones before.
    private var parting: [UpstreamLink] = []
    private var partingEnd: UInt64 = 0
    private let answers = AnswerQueue()
    private var taken: [AnswerQueue.Answer] = []
    /// By the number under which a command of others runs.
    private var requests: [UInt64: UpstreamRequest] = [:]
    private var lastRequest: UInt64 = 0
    /// The ranges of a guest's memory that a command reads into.
    private var guests: [Int32: LentLane] = [:]
    private var memory = UpstreamMemory()
    /// Of scratch: what was written.
    private var sums = ScratchSums()
    /// Of scratch: when what runs under a number was asked.
    private var askedAt: [UInt64: UInt64] = [:]
    private var nextLink = 0

    // While it is not there, in nanoseconds
    private var downSince: UInt64
    private var nextAttempt: UInt64 = 0
    private var pause: UInt64 = UpstreamHome.pauseMin
    private var connectedAt: UInt64
    private var isConnecting = false
    private var hasGivenUp = false
    private var isReported = false
    private var isEndReported = false
    /// Something was answered since the last break: an upstream that dies of what it is asked is
    /// not waited for again and again.
    private var hasProgress = true
    private var lastFault = "the connection broke"

    private static let pauseMin: UInt64 = 50_000_000
    private static let pauseMax: UInt64 = 2_000_000_000
    /// A break that is over sooner is not told.
    private static let quietNanoseconds: UInt64 = 1_000_000_000
    /// A connection that is given up is waited for so long.
    private static let partingNanoseconds: UInt64 = 3_000_000_000

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
    private var isMadeAgain: Bool { source.terms.purpose == .disk }

    /// Ends everything: whoever waits is told that it has failed, and none of their bytes is touched
    /// any more.
    func end(_ errands: inout UpstreamErrands) {
        closeParting()
        for link in links { link.close() }
        links.removeAll()
        answers.removeAll()
        commands.connectionLost()
        commands.giveUp(readErrno: Errno.canceled, changeErrno: Errno.canceled)
        for outcome in commands.takeOutcomes() {
            guard case .done(let index, let errno, _) = outcome else { continue }
            switch commands[index].asker {
            case .loop: errands.tell(commands[index], -errno)
            case .other(let number): takeRequest(number)?.answer(-errno, [])
            case .nobody: break
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

    func link(_ serial: UInt32) -> UpstreamLink? {
        links.first { $0.serial == serial } ?? parting.first { $0.serial == serial }
    }

    /// Takes answers, sends what can be sent, says what to wait for.
    func pump(now: UInt64, _ errands: inout UpstreamErrands) {
        settleParting(now: now)
        while true {
            takeAnswers(&errands)
            if links.contains(where: \.isBroken) { breakAll(now: now, &errands) }
            if hasGivenUp { giveUp() }
            tellOutcomes(&errands)
            guard sendNext() else { break }
        }
        tellOutcomes(&errands)
        arm(&errands)
    }

    /// Sends until nothing is to be sent; false when there was nothing.
    private func sendNext() -> Bool {
        var hasSent = false
        while !links.isEmpty, let (index, isFlush) = commands.next() {
            hasSent = true
            let command = commands[index]
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

    private func tellOutcomes(_ errands: inout UpstreamErrands) {
        for outcome in commands.takeOutcomes() {
            switch outcome {
            case .done(let index, let errno, let keeping): done(index, errno, keeping, &errands)
            case .forgotten(let index):
                let command = commands[index]
                if command.ownsBytes { memory.give(command.address, command.count) }
                guests[index] = nil
                commands.release(index)
            case .lost: source.keepLoss()
            }
        }
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
        for link in links + parting where !link.isBroken {
            if link.wantsInput, !link.waitsForInput {
                link.waitsForInput = true
                errands.polls.append(
                    .init(descriptor: link.descriptor, isOutput: false, serial: link.serial))
            }
            if link.wantsOutput, !link.waitsForOutput {
                link.waitsForOutput = true
                errands.polls.append(
                    .init(descriptor: link.descriptor, isOutput: true, serial: link.serial))
            }
        }
    }

    // MARK: Coming and going

    /// One connection has broken: perhaps the upstream is another process by now, and none of them
    /// is believed.
    private func breakAll(now: UInt64, _ errands: inout UpstreamErrands) {
        guard isMadeAgain else { return goForGood(now: now, .connectionBroke, &errands) }
        let isIdle = !commands.awaitsAnswers
        let lasted = now - min(now, connectedAt) >= Self.pauseMax
        closeLinks(now: now, &errands)
        commands.connectionLost()
        lastFault = "the connection broke"
        // One that lasted was there, whatever it was asked meanwhile.
        if hasProgress || isIdle || lasted { downSince = now }
        if hasProgress || lasted { pause = Self.pauseMin }
        hasProgress = false
        // One that breaks whatever is made is not asked faster than one that is not there.
        if parting.isEmpty, now >= nextAttempt { tryToConnect(now: now) }
    }

    /// Nothing is asked of it again, so nobody waits for what it may still carry out.
    private func goForGood(
        now: UInt64, _ reason: ScratchEnd, _ errands: inout UpstreamErrands
    ) {
        closeLinks(now: now, waiting: false, &errands)
        commands.connectionLost()
        hasGivenUp = true
        source.noteEnd(reason)
    }

    /// Who does not answer may be asked by nobody who has a limit of his own: a client that waits
    /// would wait for good, and a machine that writes nothing would not find out.
    private func checkAnswers(now: UInt64, _ errands: inout UpstreamErrands) {
        let patience = source.terms.patienceMilliseconds
        guard !links.isEmpty, let oldest = askedAt.values.min(),
            now - min(now, oldest) >= patience * 1_000_000
        else { return }
        goForGood(now: now, .isSilent(milliseconds: patience), &errands)
        pump(now: now, &errands)
    }

    /// What they answer from here on, to commands that are sent again, counts no more.
    private func closeLinks(
        now: UInt64, waiting: Bool = true, _ errands: inout UpstreamErrands
    ) {
        let waitsForOthers = waiting && !commands.isLastBreak
        var closed: Set<UInt32> = []
        for link in links {
            if waitsForOthers, link.isAlive, link.isAsked {
                parting.append(link)
            } else {
                closed.insert(link.serial)
                link.close()
            }
        }
        partingEnd = now + Self.partingNanoseconds
        errands.polls.removeAll { closed.contains($0.serial) }
        links.removeAll()
        answers.removeAll()
    }

    /// Lets go of the connections that have answered what they were asked.
    private func settleParting(now: UInt64) {
        guard !parting.isEmpty else { return }
        answers.removeAll()
        parting.removeAll { link in
            guard now >= partingEnd || !link.isAlive || !link.isAsked else { return false }
            link.close()
            return true
        }
        if parting.isEmpty, now >= nextAttempt { tryToConnect(now: now) }
    }

    private func closeParting() {
        for link in parting { link.close() }
        parting.removeAll()
        answers.removeAll()
    }

    /// It answers: what was said of its absence is over.
    private func noteProgress() {
        hasProgress = true
        if isReported { source.report("it is there again: its requests go on") }
        isReported = false
        isEndReported = false
    }

    private func tryToConnect(now: UInt64) {
        guard !isConnecting else { return }
        nextAttempt = now + pause
        pause = min(pause * 2, Self.pauseMax)
        isConnecting = source.startConnecting()
    }

    func connected(
        _ result: Result<FreshLinks, UpstreamFault>, _ serial: inout UInt32, now: UInt64,
        _ errands: inout UpstreamErrands
    ) {
        isConnecting = false
        switch result {
        case .failure(let fault): lastFault = fault.detail
        case .success(let fresh):
            guard links.isEmpty, parting.isEmpty else { return }
            hasGivenUp = false
            use(fresh, &serial, now: now)
            pump(now: now, &errands)
        }
    }

    private func use(_ fresh: FreshLinks, _ serial: inout UInt32, now: UInt64) {
        connectedAt = now
        links = fresh.links
        for link in links {
            serial &+= 1
            link.serial = serial
        }
        commands.connected()
    }

    /// The ring's clock has ticked.
    func tick(now: UInt64, _ errands: inout UpstreamErrands) {
        guard isMadeAgain else { return checkAnswers(now: now, &errands) }
        guard links.isEmpty else {
            // One that nobody asks for anything is there again when its connections last.
            if isReported, now - min(now, connectedAt) >= Self.pauseMax { noteProgress() }
            return
        }
        settleParting(now: now)
        let away = now - min(now, downSince)
        let patience = source.terms.patienceMilliseconds * 1_000_000
        if !isReported, away >= Self.quietNanoseconds {
            isReported = true
            source.report(
                "it does not answer (\(lastFault)): requests wait for up to"
                    + " \(source.terms.patienceMilliseconds / 1_000) s")
        }
        if !hasGivenUp, away >= patience {
            hasGivenUp = true
            if !isEndReported {
                source.report(
                    "it has not answered for \(source.terms.patienceMilliseconds / 1_000) s"
                        + " (\(lastFault)): requests fail until it does")
            }
            isEndReported = true
            pump(now: now, &errands)
        }
        if parting.isEmpty, now >= nextAttempt { tryToConnect(now: now) }
    }

    private func giveUp() {
        // Bytes of what has failed are no longer theirs.
        closeParting()
        if isMadeAgain {
            commands.giveUp(readErrno: Self.timedOut, changeErrno: Errno.canceled)
        } else {
            let errno = source.scratchEnd == nil ? Errno.canceled : Errno.io
            commands.giveUp(readErrno: errno, changeErrno: errno)
        }
    }

    private static let timedOut: Int32 = 110
}

extension UpstreamErrands {
    mutating func tell(_ command: UpstreamCommand, _ result: Int32) {
        guard case .loop(let tag) = command.asker else { return }
        completions.append(Completion(tag: tag, result: result))
    }
}
