import CLinux
import Glibc
import IORing
import SharedMemory
import Synchronization
import SystemLayer
import VhostProtocol

/// Memory that is shared with a program of this server's own, and the queue in it by which the
/// program is asked to read and write: its bytes go past no socket.
///
/// Made on a thread that may wait; from then on used by one ring's thread at a time, and never
/// waits. The program is not trusted: what it writes into the memory is loaded once and checked,
/// its eventfds are never written to or read by plain calls, and the memory cannot shrink.
// SAFETY (unchecked Sendable): one thread uses it at a time, and a mailbox's lock hands it over.
@safe
final class SharedQueue: RunLender, @unchecked Sendable {
    /// What was asked, until it is over.
    private struct Asked {
        let index: Int32
        let isRead: Bool
        /// Where the bytes of a read go, as a number.
        let address: UInt
        let count: Int
        let page: Int
        /// Who takes the bytes of a read where they are.
        let borrower: UpstreamBytes?
    }

    /// Shared memory for bytes under way, in bytes; pages that are not used take none.
    private static let dataBytes = 16 << 20
    /// Most bytes of one request.
    static let requestBytesMax = 1 << 20
    /// Pages that stay when nothing is under way.
    private static let pagesKept = 256
    private static let sectorBytes = 512

    private let socket: Int32
    private let file: OwnedDescriptor
    private let mapping: GuestMapping
    private let memory = MappedMemory()
    private let event: EventDescriptor
    private let isReadOnly: Bool
    let sizeBytes: UInt64
    private let alignment: UInt64
    /// Kicks the program.
    let kick: CallRing
    private var queue: SlotQueue
    private var runs = PageRuns(pages: dataBytes / PageRuns.pageBytes)
    /// Runs that others have read, as page and pages: they give them back on their own threads.
    private let returned = Mutex<[(page: Int, pages: Int)]>([])
    private let hasReturned = Atomic<Bool>(false)
    private var asked: [Asked?] = Array(repeating: nil, count: Int(SlotQueueLayout.slots))

    /// Tells it from other connections of its ring.
    var serial: UInt32 = 0
    /// Waits that have not completed.
    var waitsForCall = false
    var waitsForEnd = false
    /// It is of no use any more.
    var isBroken = false
    /// The program is gone, or has finished what it was asked and closed the connection.
    ///
    /// One that finds the queue broken shuts the connection before it has finished; no chain of ours
    /// is such.
    private(set) var hasEnded = false
    private var isParting = false
    private var isClosed = false
    /// Why it broke, where the program did what none does.
    private(set) var fault: String?

    /// Connects to a program's socket and hands memory and a queue over; throws when that is not
    /// done by the deadline, in nanoseconds.
    ///
    /// `descriptorsEnd`: it takes none from there on.
    init(
        _ path: String, until deadline: UInt64, descriptorsEnd: Int
    ) throws(UpstreamFault) {
        do {
            let bytes = SlotQueueLayout.byteCount + UInt64(Self.dataBytes)
            file = try FixedMemory.make(byteCount: bytes, name: "nbdpull-shared")
            mapping = try GuestMapping(
                descriptor: file.raw, offset: 0, byteCount: bytes, isFixed: true)
            event = try EventDescriptor()
            let kickEvent = try EventDescriptor()
            // It keeps a reference of its own to the eventfd.
            let kick = try CallRing.make(kickEvent.raw)
            var isOpen = false
            defer { if !isOpen { kick.close() } }
            let socket = try MessageSocket.stream(to: path)
            let number = socket.raw
            // The program may have this end as well by then.
            defer { if !isOpen { SocketCalls.shutdown(number) } }
            // Before the program has any of them.
            guard max(file.raw, event.raw, kickEvent.raw, number) < descriptorsEnd else {
                throw UpstreamFault(
                    "this server can spare no descriptors for it: those from \(descriptorsEnd) on"
                        + " are kept for connections and jobs; raise LimitNOFILE (ulimit -n), or"
                        + " lower --max-connections")
            }
            var opening = FrontEndOpening(memoryBytes: bytes)
            let talk = OpeningTalk(socket: socket.raw, deadline: deadline)
            while let message = opening.message {
                let passed: Int32? =
                    switch message.passed {
                    case .nothing: nil
                    case .memory: file.raw
                    case .call: event.raw
                    case .connection: socket.raw
                    case .kick: kickEvent.raw
                    }
                try talk.exchange(message, passed, &opening)
            }
            isReadOnly = opening.isReadOnly
            sizeBytes = opening.sizeBytes
            alignment = opening.blockBytes
            queue = SlotQueue(at: mapping.place, address: FrontEndOpening.memoryAddress)
            self.kick = kick
            self.socket = socket.giveAway()
            isOpen = true
        } catch let fault as SystemFault {
            throw UpstreamFault("\(fault.call): \(SystemFault.text(for: fault.errno))")
        } catch let refusal as MappingRefusal {
            throw UpstreamFault(refusal.text)
        } catch let fault as FrontEndFault {
            throw UpstreamFault(fault.text)
        } catch {
            throw UpstreamFault("\(error)")
        }
    }

    deinit {
        close()
        kick.close()
        // With it goes what the program has sent, descriptors among it, which may take as long as it
        // likes.
        let socket = socket
        if !DetachedThread.run(name: "nbdpull-close", { _ = Glibc.close(socket) }) {
            _ = Glibc.close(socket)
        }
    }

    /// Has the program finish what it was asked, and take nothing more; `hasEnded` when it has.
    ///
    /// A program whose connection ends while it is to take something may end itself.
    func part() {
        guard !isParting else { return }
        isParting = true
        isBroken = true
        _ = DescriptorSocket.send(socket, FrontEndOpening.stopping, descriptor: nil)
        _ = Glibc.shutdown(socket, Int32(SHUT_WR))
        hasEnded = hasEnded || SocketCalls.hasHungUp(socket)
    }

    /// Ends the connection: no byte of what was asked is touched any more.
    func close() {
        guard !isClosed else { return }
        part()
        isClosed = true
        SocketCalls.shutdown(socket)
    }

    // MARK: Descriptors that are waited for

    /// Hangs up when the program has gone; what it says is not listened to.
    var endDescriptor: Int32 { socket }
    /// Read when the program has answered.
    var callDescriptor: Int32 { event.raw }

    /// What was waited for has happened.
    func polled(_ kind: UpstreamErrands.Poll.Kind) {
        switch kind {
        case .call: waitsForCall = false
        case .end, .input, .output:
            // A wait that failed says nothing; it is made again.
            waitsForEnd = false
            hasEnded = SocketCalls.hasHungUp(socket)
            isBroken = true
        }
    }

    // MARK: Asking

    /// Whether commands may be under way.
    var isAsked: Bool { !isClosed && !hasEnded && queue.inFlight > 0 }

    /// Whether the memory is there; zeros stand in its place where the machine has had none left.
    func checkMemory() -> Bool {
        guard mapping.isGone else { return true }
        if !isBroken { fault = "memory that was shared with it is gone" }
        isBroken = true
        return false
    }

    /// Asks for a read or a write, if it is one that can go this way now; the program sees it after
    /// `publish`.
    ///
    /// `borrower`: takes the bytes of a read where they are.
    func ask(_ command: UpstreamCommand, _ index: Int32, for borrower: UpstreamBytes?) -> Bool {
        takeReturned()
        guard !isBroken, queue.hasRoom, let isRead = direction(command),
            let page = runs.take(PageRuns.pages(for: command.count))
        else { return false }
        let offset = SlotQueueLayout.byteCount + UInt64(page * PageRuns.pageBytes)
        if !isRead {
            UpstreamMemory.copy(from: command.address, to: here(page), count: command.count)
        }
        guard checkMemory() else { return false }
        let slot = queue.put(
            memory, isWrite: !isRead, sector: command.position / UInt64(Self.sectorBytes),
            data: FrontEndOpening.memoryAddress + offset, byteCount: UInt32(command.count))
        guard let slot else {
            runs.give(page, PageRuns.pages(for: command.count))
            return false
        }
        asked[Int(slot)] = Asked(
            index: index, isRead: isRead, address: command.address, count: command.count,
            page: page, borrower: borrower)
        return true
    }

    var isMemoryGone: Bool { mapping.isGone }

    func giveBack(_ page: Int, _ pages: Int) {
        returned.withLock { $0.append((page, pages)) }
        hasReturned.store(true, ordering: .releasing)
    }

    private func takeReturned() {
        guard hasReturned.exchange(false, ordering: .acquiring) else { return }
        let taken = returned.withLock { list in
            defer { list.removeAll(keepingCapacity: true) }
            return list
        }
        for run in taken { runs.give(run.page, run.pages) }
    }

    /// Whether it is a read; nil: it has to go another way.
    private func direction(_ command: UpstreamCommand) -> Bool? {
        let count = UInt64(command.count)
        guard command.count > 0, command.count <= Self.requestBytesMax,
            command.position.isMultiple(of: alignment), count.isMultiple(of: alignment),
            command.position <= sizeBytes, count <= sizeBytes - command.position
        else { return nil }
        switch command.kind {
        case .read: return true
        // A request here cannot say that it is to be durable.
        case .write: return command.isDurable || isReadOnly ? nil : false
        case .discard, .flush, .prefetch, .status, .zero: return nil
        }
    }

    /// Where a page of the data is in this process.
    private func here(_ page: Int) -> UInt {
        UInt(mapping.place.rawValue + SlotQueueLayout.byteCount) + UInt(page * PageRuns.pageBytes)
    }

    /// Shows the program what was asked; returns whether it is to be kicked.
    func publish() -> Bool {
        guard !isBroken, checkMemory() else { return false }
        let wantsKick = queue.publish(memory)
        return checkMemory() && wantsKick
    }

    // MARK: Answers

    /// Whether something was answered that was not taken.
    var hasAnswers: Bool { !isBroken && queue.hasNext(memory) }

    /// Asks to be called, then looks once more: whether something was answered meanwhile.
    func wantCalls() -> Bool { !isBroken && queue.wantCalls(memory) }

    /// Takes what was answered; bytes of reads go where they were asked for.
    ///
    /// Returns commands that the program has not carried out: it does not say why.
    func collect(into answers: AnswerQueue) -> [Int32] {
        var refused: [Int32] = []
        while let (asked, isOK) = next() {
            let pages = PageRuns.pages(for: asked.count)
            if isOK, asked.isRead, asked.borrower == nil {
                UpstreamMemory.copy(from: here(asked.page), to: asked.address, count: asked.count)
                // Without an answer it is asked again.
                guard checkMemory() else { break }
            }
            guard isOK else {
                refused.append(asked.index)
                runs.give(asked.page, pages)
                continue
            }
            answers.note(asked.index, byteCount: asked.count)
            if let borrower = asked.borrower {
                borrower.borrow(
                    SharedRun(self, page: asked.page, pages: pages, address: here(asked.page)))
                continue
            }
            runs.give(asked.page, pages)
        }
        return refused
    }

    private func next() -> (Asked, isOK: Bool)? {
        guard !isBroken else { return nil }
        do throws(SlotQueueFault) {
            guard let done = try queue.take(memory), checkMemory(),
                let found = asked[Int(done.slot)]
            else {
                return nil
            }
            asked[Int(done.slot)] = nil
            return (found, done.isOK)
        } catch {
            fault = error.text
            isBroken = true
            return nil
        }
    }

    /// Gives pages back that a burst has needed and nobody has any more.
    func rest() {
        takeReturned()
        guard !isBroken, runs.inUse == 0, runs.high > Self.pagesKept else { return }
        let start = Int(SlotQueueLayout.byteCount) + Self.pagesKept * PageRuns.pageBytes
        FixedMemory.giveBack(file.raw, from: start, count: Self.dataBytes)
        runs.lower(to: Self.pagesKept)
    }
}

// MARK: Connecting

/// Messages and replies, each by a deadline.
private struct OpeningTalk {
    let socket: Int32
    /// On the monotonic clock, in nanoseconds.
    let deadline: UInt64

    /// Sends a message, and reads its reply if it has one.
    func exchange(
        _ message: FrontEndOpening.Message, _ passed: Int32?, _ opening: inout FrontEndOpening
    ) throws {
        try send(message.bytes, passed)
        guard opening.awaitsReply else { return opening.sent() }
        let header = try receive(MessageHeader.byteCount)
        let payload = try receive(opening.payloadBytes(header.span))
        try opening.answered(payload.span)
    }

    private func send(_ bytes: [UInt8], _ passed: Int32?) throws {
        var rest = bytes
        var passed = passed
        while !rest.isEmpty {
            let sent = DescriptorSocket.send(socket, rest, descriptor: passed)
            if sent == -Int(Errno.again) {
                try wait(POLLOUT)
            } else if sent < 0 {
                throw SystemFault(call: "sendmsg", errno: Int32(-sent))
            } else {
                // The descriptor goes with the first byte.
                passed = nil
                rest.removeFirst(sent)
            }
        }
    }

    private func receive(_ count: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        var strange: [Int32] = []
        defer { strange.forEach { close($0) } }
        while bytes.count < count {
            let result = DescriptorSocket.receive(
                socket, count - bytes.count, into: &bytes, descriptors: &strange)
            if result == -Int(Errno.again) {
                try wait(POLLIN)
            } else if result < 0 {
                throw SystemFault(call: "recvmsg", errno: Int32(-result))
            } else if result == 0 {
                throw UpstreamFault("it has closed the connection")
            }
        }
        return bytes
    }

    private func wait(_ events: Int32) throws {
        let now = MonotonicClock.now()
        let left = deadline > now ? Int32(clamping: (deadline - now) / 1_000_000 + 1) : 0
        guard left > 0, Polling.wait([(socket, events)], milliseconds: left) != nil else {
            throw UpstreamFault("it does not answer")
        }
    }
}
