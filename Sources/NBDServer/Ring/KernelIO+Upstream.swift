import Disk
import IORing
import ScratchFiles
import SystemLayer
import Upstream

/// What another ring's upstream has answered.
struct UpstreamAnswer: Sendable {
    let tag: UInt64
    let result: Int32
    let bytes: UpstreamBytes?
    let extents: [UpstreamExtent]
}

/// Where bytes that come in memory of their own go.
struct UpstreamTarget {
    /// In the arena.
    let offset: Int
    let count: Int
    /// Bytes in front that were read for the upstream's alignment only.
    let skipped: Int
    /// The upstream that they come from, and where all that is read of it starts.
    let number: Int32
    let start: UInt64
    /// Of scratch: by which the bytes are checked.
    let key: ScratchKey?
}

/// A read of an upstream's bytes for another ring, or of whole slots of scratch.
struct UpstreamRead: Sendable {
    let tag: UInt64
    let position: UInt64
    let bytes: UpstreamBytes
    /// Bytes that are there.
    var done = 0
}

/// A write of old content to scratch that is an upstream.
struct UpstreamWrite: Sendable {
    let ticket: ScratchTicket
    let bytes: LentBytes
    let position: UInt64
    /// Bytes that are there.
    var done = 0
}

/// Sources that are upstreams: the ring of the disk has their connections and polls them; other
/// rings ask that one.
extension KernelIO {
    /// The kind of tags of polls, which `Operation` does not use: below it the kind of the poll,
    /// then its serial.
    private static let pollKind: UInt64 = 0xF0
    /// The same of kicks that have failed.
    private static let kickKind: UInt64 = 0xF1

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
        guard isHome(file.number), !upstreams.isScratch(file.number) else {
            return askOther(file, kind, position, count, tag, offset)
        }
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
        if kind == .read {
            // Places in scratch have no more alignment than what a client reads, and only whole
            // slots have sums.
            let unit = UInt64(source.key?.slotBytes ?? source.facts.alignment)
            let start = position / unit * unit
            let end = (position + UInt64(count) + unit - 1) / unit * unit
            targets[tag] = UpstreamTarget(
                offset: offset, count: count, skipped: Int(position - start),
                number: source.number, start: start, key: source.key)
            let bytes = UpstreamBytes(count: Int(end - start))
            let read = UpstreamRead(tag: tag, position: start, bytes: bytes)
            return source.ask(Self.request(read, source, mailbox))
        }
        source.ask(
            UpstreamRequest(kind, position: position, count: count) {
                [mailbox] result, extents in
                mailbox.post(
                    .upstreamAnswered(
                        UpstreamAnswer(tag: tag, result: result, bytes: nil, extents: extents)))
            })
    }

    private static func request(
        _ read: UpstreamRead, _ source: UpstreamSource, _ mailbox: Mailbox<RingMessage>
    ) -> UpstreamRequest {
        UpstreamRequest(
            .read, position: read.position + UInt64(read.done),
            count: read.bytes.count - read.done, into: read.bytes, at: read.done,
            hasSums: source.key != nil && read.done == 0
        ) { result, extents in
            var next = read
            next.done += Int(max(result, 0))
            if result > 0, source.key != nil, next.done < next.bytes.count {
                // Its requests have a largest size, which may be less than a slot.
                return source.ask(request(next, source, mailbox))
            }
            mailbox.post(
                .upstreamAnswered(
                    UpstreamAnswer(
                        tag: read.tag, result: result > 0 ? Int32(next.done) : result,
                        bytes: read.bytes, extents: extents)))
        }
    }

    // MARK: Scratch

    /// Writes old content; what comes of it is a message, as of a scratch writer.
    ///
    /// The bytes are the copy's until that, or until the upstream is closed.
    mutating func write(_ write: UpstreamWrite, to scratch: UpstreamSource) {
        upstream(.ask(scratch.number, Self.request(write, scratch, mailbox)))
    }

    private static func request(
        _ write: UpstreamWrite, _ scratch: UpstreamSource, _ mailbox: Mailbox<RingMessage>
    ) -> UpstreamRequest {
        let left = write.bytes.count - write.done
        return UpstreamRequest(
            writing: write.bytes.address + UInt(write.done), count: left,
            position: write.position + UInt64(write.done), hasSums: write.done == 0
        ) { result, _ in
            var write = write
            write.done += Int(max(result, 0))
            if result <= 0 {
                let errno = result < 0 ? -result : Errno.io
                mailbox.post(.scratchWritten(write.ticket, .failed(errno)))
            } else if write.done >= write.bytes.count {
                mailbox.post(.scratchWritten(write.ticket, .written))
            } else {
                // Its requests have a largest size.
                scratch.ask(Self.request(write, scratch, mailbox))
            }
        }
    }

    /// Nobody needs what was written there any more: whatever is under way ends now, however slow
    /// the other side is, and touches no byte of ours afterwards.
    mutating func closeUpstreamScratch(of export: BackupExport) {
        guard let scratch = export.scratch.remote as? UpstreamSource else { return }
        scratch.giveUp()
        upstream(.close(scratch.number))
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

    /// Sends what was asked, and prepares what is to be waited for.
    @inline(never)
    mutating func settleUpstreams() {
        if upstreams.isUnsettled { upstreams.settle(now: MonotonicClock.now()) }
        upstreams.look()
        for position in 0..<upstreams.kickCount {
            let (kick, serial) = upstreams.kick(position)
            ring.prepareCall(kick, tag: Self.kickKind << 56 | UInt64(serial))
        }
        preparePolls()
    }

    private mutating func preparePolls() {
        guard !upstreams.errands.polls.isEmpty || !upstreams.errands.cancels.isEmpty else { return }
        upstreamPolls += upstreams.errands.polls.count
        for poll in upstreams.errands.polls {
            let tag = Self.tag(poll.kind, poll.serial)
            switch poll.kind {
            case .input: ring.preparePoll(poll.descriptor, writable: false, tag: tag)
            case .output: ring.preparePoll(poll.descriptor, writable: true, tag: tag)
            case .call: ring.prepareEventRead(poll.descriptor, tag: tag)
            case .end: ring.prepareHangUpPoll(poll.descriptor, tag: tag)
            }
        }
        upstreams.errands.polls.removeAll(keepingCapacity: true)
        for serial in upstreams.errands.cancels {
            ring.prepareCancel(Self.tag(.call, serial), tag: Operation.ignored.tag)
        }
        upstreams.errands.cancels.removeAll(keepingCapacity: true)
    }

    private static func tag(_ kind: UpstreamErrands.Poll.Kind, _ serial: UInt32) -> UInt64 {
        pollKind << 56 | kind.rawValue << 32 | UInt64(serial)
    }

    /// Takes polls out of the completions, and puts in what has come of them.
    @inline(never)
    mutating func drainUpstreams(
        into completions: inout [Completion], _ arena: inout BufferArena
    ) {
        var kept = 0
        for position in completions.indices {
            let completion = completions[position]
            let serial = UInt32(truncatingIfNeeded: completion.tag)
            switch completion.tag >> 56 {
            case Self.pollKind:
                upstreamPolls -= 1
                guard let kind = UpstreamErrands.Poll.Kind(rawValue: completion.tag >> 32 & 0xff)
                else { continue }
                upstreams.polled(serial, kind, now: MonotonicClock.now())
            case Self.kickKind: upstreams.kickFailed(serial, now: MonotonicClock.now())
            default:
                completions[kept] = completion
                kept += 1
            }
        }
        completions.removeLast(completions.count - kept)
        if upstreams.isUnsettled { upstreams.settle(now: MonotonicClock.now()) }
        upstreams.look()
        let room = completions.capacity - completions.count
        let count = min(room, upstreams.errands.completions.count)
        completions.append(contentsOf: upstreams.errands.completions[..<count])
        upstreams.errands.completions.removeFirst(count)
        while completions.count < completions.capacity, !answers.isEmpty {
            if let completion = take(answers.removeFirst(), &arena) {
                completions.append(completion)
            }
        }
    }

    /// Nil: it is asked for once more.
    private mutating func take(
        _ answer: UpstreamAnswer, _ arena: inout BufferArena
    ) -> Completion? {
        var result = answer.result
        if let bytes = answer.bytes, let target = targets.removeValue(forKey: answer.tag),
            result > 0
        {
            if let key = target.key, !bytes.matches(key) {
                return Completion(tag: answer.tag, result: -Errno.badMessage)
            }
            let count = min(Int(result) - target.skipped, target.count)
            bytes.withBytes(target.skipped..<target.skipped + count) {
                arena.copy($0, to: target.offset)
            }
            if bytes.areGone {
                guard let source = shared.upstreams.find(target.number)?.source else {
                    return Completion(tag: answer.tag, result: -Errno.io)
                }
                // That memory is used no more: the bytes come another way, as soon as the upstream's
                // patience with its program lets them.
                targets[answer.tag] = target
                let again = UpstreamRead(
                    tag: answer.tag, position: target.start,
                    bytes: UpstreamBytes(count: bytes.count))
                source.ask(Self.request(again, source, mailbox))
                return nil
            }
            result = Int32(count)
        }
        if !answer.extents.isEmpty { extents[answer.tag] = answer.extents }
        return Completion(tag: answer.tag, result: result)
    }
}
