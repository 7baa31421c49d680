import Disk
import IORing
import SystemLayer
import Upstream

/// What another ring's upstream has answered.
struct UpstreamAnswer: Sendable {
    let tag: UInt64
    let result: Int32
    let bytes: UpstreamBytes?
    let extents: [UpstreamExtent]
}

/// Sources that are upstreams: the ring of the disk has their connections and polls them; other
/// rings ask that one.
extension KernelIO {
    /// The kind of tags of polls, which `Operation` does not use.
    private static let pollKind: UInt64 = 0xF0
    private static let outputBit: UInt64 = 1 << 32

    var usesUpstreams: Bool {
        upstreamPolls > 0 || !upstreams.isEmpty || !answers.isEmpty || hasUpstreamCompletions
    }

    /// Whether the loop has something to take without waiting.
    var hasUpstreamCompletions: Bool {
        !upstreams.errands.completions.isEmpty || !answers.isEmpty
    }

    // MARK: Asking

    /// Asks an upstream; the completion comes as for a file.
    @inline(never)
    mutating func ask(
        _ file: FileHandle, _ kind: UpstreamCommand.Kind, _ position: UInt64, _ count: Int,
        tag: UInt64, address: UInt = 0, offset: Int = 0, durable: Bool = false
    ) {
        guard isHome(file.number) else { return askOther(file, kind, position, count, tag, offset) }
        var command = UpstreamCommand(
            kind, position: position, count: count, asker: .loop(tag: tag))
        command.address = address
        command.isDurable = durable
        upstreams.ask(file.number, command)
    }

    /// The same with bytes in a guest's memory.
    @inline(never)
    mutating func ask(
        _ file: FileHandle, _ kind: UpstreamCommand.Kind, _ position: UInt64, _ count: Int,
        tag: UInt64, _ lane: LentLane, durable: Bool = false
    ) {
        guard isHome(file.number) else { return fail(tag) }
        var command = UpstreamCommand(
            kind, position: position, count: count, asker: .loop(tag: tag))
        command.isDurable = durable
        upstreams.ask(file.number, command, lane)
    }

    private mutating func fail(_ tag: UInt64) { complete(tag, -Errno.io) }

    /// An operation that needs nobody is over.
    @inline(never)
    mutating func complete(_ tag: UInt64, _ result: Int32) {
        upstreams.errands.completions.append(Completion(tag: tag, result: result))
    }

    /// Whether the upstream is at home on this ring; opened, if it is.
    private mutating func isHome(_ number: Int32) -> Bool {
        if upstreams.has(number) { return true }
        guard let found = shared.upstreams.find(number), found.home == index else { return false }
        upstreams.open(found.source, now: MonotonicClock.now())
        return true
    }

    /// Bytes come in memory of their own: this ring may be gone when they do.
    private mutating func askOther(
        _ file: FileHandle, _ kind: UpstreamCommand.Kind, _ position: UInt64, _ count: Int,
        _ tag: UInt64, _ offset: Int
    ) {
        guard let source = shared.upstreams.find(file.number)?.source else { return fail(tag) }
        let bytes = kind == .read ? UpstreamBytes(count: count) : nil
        if bytes != nil { targets[tag] = offset }
        source.ask(
            UpstreamRequest(kind, position: position, count: count, into: bytes) {
                [mailbox] result, extents in
                mailbox.post(
                    .upstreamAnswered(
                        UpstreamAnswer(tag: tag, result: result, bytes: bytes, extents: extents)))
            })
    }

    mutating func prepareStatus(
        _ file: FileHandle, filePosition: UInt64, count: UInt64, tag: UInt64
    ) {
        ask(file, .status, filePosition, Int(count), tag: tag)
    }

    mutating func takeExtents(_ tag: UInt64) -> [UpstreamExtent] {
        extents.removeValue(forKey: tag) ?? upstreams.errands.extents.removeValue(forKey: tag) ?? []
    }

    // MARK: Going on

    mutating func upstream(_ message: UpstreamMessage) {
        upstreams.take(message, now: MonotonicClock.now()) { [shared, index] number in
            guard let found = shared.upstreams.find(number), found.home == index else { return nil }
            return found.source
        }
    }

    mutating func upstreamAnswered(_ answer: UpstreamAnswer) { answers.append(answer) }

    /// Sends what was asked, and waits for what is to come.
    @inline(never)
    mutating func settleUpstreams() {
        if upstreams.isUnsettled { upstreams.settle(now: MonotonicClock.now()) }
        guard !upstreams.errands.polls.isEmpty else { return }
        upstreamPolls += upstreams.errands.polls.count
        for poll in upstreams.errands.polls {
            let tag =
                Self.pollKind << 56 | UInt64(poll.serial) | (poll.isOutput ? Self.outputBit : 0)
            ring.preparePoll(poll.descriptor, writable: poll.isOutput, tag: tag)
        }
        upstreams.errands.polls.removeAll(keepingCapacity: true)
    }

    /// Takes polls out of the completions, and puts in what has come of them.
    @inline(never)
    mutating func drainUpstreams(
        into completions: inout [Completion], _ arena: inout BufferArena
    ) {
        var kept = 0
        for position in completions.indices {
            let completion = completions[position]
            if completion.tag >> 56 == Self.pollKind {
                upstreamPolls -= 1
                upstreams.polled(
                    UInt32(truncatingIfNeeded: completion.tag),
                    isOutput: completion.tag & Self.outputBit != 0, now: MonotonicClock.now())
            } else {
                completions[kept] = completion
                kept += 1
            }
        }
        completions.removeLast(completions.count - kept)
        if upstreams.isUnsettled { upstreams.settle(now: MonotonicClock.now()) }
        let room = completions.capacity - completions.count
        let count = min(room, upstreams.errands.completions.count)
        completions.append(contentsOf: upstreams.errands.completions[..<count])
        upstreams.errands.completions.removeFirst(count)
        while completions.count < completions.capacity, !answers.isEmpty {
            completions.append(take(answers.removeFirst(), &arena))
        }
    }

    private mutating func take(
        _ answer: UpstreamAnswer, _ arena: inout BufferArena
    ) -> Completion {
        if let bytes = answer.bytes, let offset = targets.removeValue(forKey: answer.tag),
            answer.result > 0
        {
            bytes.withBytes(Int(answer.result)) { arena.copy($0, to: offset) }
        }
        if !answer.extents.isEmpty { extents[answer.tag] = answer.extents }
        return Completion(tag: answer.tag, result: answer.result)
    }
}
