package import Disk
package import ServerInterface
import Synchronization
package import SystemLayer

/// What others than the home ring's own loop ask of an upstream.
package struct UpstreamRequest: Sendable {
    /// Bytes, or 0, or a negative errno; of `.status` the extents.
    package typealias Answer = @Sendable (Int32, [UpstreamExtent]) -> Void

    let command: UpstreamCommand
    let bytes: UpstreamBytes?
    /// What may lend its own memory instead of filling theirs: a read of all of them.
    var borrower: UpstreamBytes? {
        guard let bytes, !hasSums, command.kind == .read, command.count == bytes.count,
            command.address == bytes.address
        else { return nil }
        return bytes
    }
    /// Whole slots of scratch, which have sums.
    private let hasSums: Bool
    let answer: Answer

    /// For bytes from `place` on.
    ///
    /// `hasSums`: they are whole slots of scratch, known by their sums from here on.
    package init(
        _ kind: UpstreamCommand.Kind, position: UInt64 = 0, count: Int = 0,
        into bytes: UpstreamBytes? = nil, at place: Int = 0, hasSums: Bool = false,
        answer: @escaping Answer
    ) {
        var command = UpstreamCommand(kind, position: position, count: count, asker: .nobody)
        command.address = bytes.map { $0.address + UInt(place) } ?? 0
        self.command = command
        self.bytes = bytes
        self.hasSums = hasSums
        self.answer = answer
    }

    /// A write of bytes that stay as they are, and where they are, until the answer or until the
    /// upstream is closed.
    package init(
        writing address: UInt, count: Int, position: UInt64, hasSums: Bool,
        answer: @escaping Answer
    ) {
        var command = UpstreamCommand(.write, position: position, count: count, asker: .nobody)
        command.address = address
        self.command = command
        bytes = nil
        self.hasSums = hasSums
        self.answer = answer
    }

    /// Keeps the sums of what is written, or gives those of what is read.
    func note(_ sums: inout ScratchSums, _ key: ScratchKey) {
        guard hasSums else { return }
        let first = Int(command.position) / key.slotBytes
        let slots = first..<first + command.count / key.slotBytes
        if let bytes {
            bytes.sums = slots.map { sums[$0] }
        } else {
            for slot in slots {
                sums[slot] = key.sum(
                    at: command.address + UInt((slot - first) * key.slotBytes))
            }
        }
    }
}

/// What a flush has come to.
private final class FlushResult: Sendable {
    let errno = Atomic<Int32>(0)
}

/// Connections that were made on a thread.
package final class FreshLinks: Sendable {
    let links: [UpstreamLink]
    /// Memory that is shared with the program behind them, where that does so.
    let shared: SharedQueue?
    /// Why it does not, where it should.
    let sharingFault: String?

    init(_ links: [UpstreamLink], _ shared: Result<SharedQueue, UpstreamFault>? = nil) {
        self.links = links
        switch shared {
        case .success(let queue): (self.shared, sharingFault) = (queue, nil)
        case .failure(let fault): (self.shared, sharingFault) = (nil, fault.detail)
        case nil: (self.shared, sharingFault) = (nil, nil)
        }
    }
}

/// What the ring that has an upstream is told.
package enum UpstreamMessage: Sendable {
    case ask(Int32, UpstreamRequest)
    /// An attempt to connect is over.
    case connected(Int32, Result<FreshLinks, UpstreamFault>)
    /// Nobody uses the upstream any more.
    case close(Int32)
}

/// Why scratch is not there any more.
package enum ScratchEnd: Sendable {
    case connectionBroke
    /// Something that was asked had no answer for the patience.
    case isSilent(milliseconds: UInt64)
}

/// How long an upstream that has gone is waited for.
package struct UpstreamTerms: Sendable {
    /// What an upstream holds.
    package enum Purpose: Sendable {
        case disk
        /// Old content of one job: nothing is flushed or kept, and a connection that breaks is not
        /// made again, for nobody could tell what became of what was written.
        case scratch
    }

    package var purpose = Purpose.disk
    /// Bytes of a slot of scratch, which is read as a whole: 0 of a disk.
    package var slotBytes = 0
    /// Requests wait so long for a connection that broke, in milliseconds; then they fail.
    package var patienceMilliseconds: UInt64
    /// One attempt to connect takes at most so long, in milliseconds.
    package var attemptMilliseconds: UInt64
    /// Numbers of descriptors from here on are not for what can be done without: further
    /// connections, and memory that is shared.
    package var descriptorsEnd: Int

    package init(
        patienceMilliseconds: UInt64, attemptMilliseconds: UInt64, purpose: Purpose = .disk,
        slotBytes: Int = 0, descriptorsEnd: Int = .max
    ) {
        self.descriptorsEnd = descriptorsEnd
        self.purpose = purpose
        self.slotBytes = slotBytes
        self.patienceMilliseconds = patienceMilliseconds
        self.attemptMilliseconds = attemptMilliseconds
    }
}

/// An upstream as all threads know it: where it is, what it told, and which ring has its
/// connections.
///
/// All connections belong to the home ring of the disk; others ask that one. So whatever is read
/// comes after what was written, however an upstream keeps its connections apart.
package final class UpstreamSource: RemoteSource {
    package let number: Int32
    package let address: UpstreamAddress
    package let facts: UpstreamFacts
    package let isReadOnly: Bool
    let terms: UpstreamTerms
    /// By which what is read from scratch is checked.
    package let key: ScratchKey?
    private let post: @Sendable (UpstreamMessage) -> Void
    /// Connections that the home ring has not taken yet.
    private let fresh: Mutex<FreshLinks?>
    private let handler = Mutex<(@Sendable (String) -> Void)?>(nil)
    /// Keeps that writes are lost which had succeeded.
    private let lossKeeper = Mutex<(@Sendable (Int32) -> Void)?>(nil)
    private let onClose: @Sendable () -> Void
    private let onEnd: @Sendable () -> Void
    private let end = Mutex<ScratchEnd?>(nil)
    /// Nobody is to ask it any more.
    private let isGivenUp = Atomic<Bool>(false)
    /// Memory is shared with the program behind it; not after it did there what none does.
    private let sharesMemory = Atomic<Bool>(true)
    /// Why its program shares no memory although it could; told once.
    private let sharingFault: Mutex<String?>
    /// What tells its server from others, by whatever name it was reached.
    package let server: String
    /// Its server listens at this number on this very machine; nil for any other.
    package let localPort: UInt16?
    /// The program behind it, where that is this server's own.
    private let adapter: (any Adapter)?
    /// Where it is said that this has something to lose.
    private let unflushed: UnflushedNote?
    /// What people know it by.
    private let name: String

    /// Connections of one upstream, where it takes several.
    static let linksMax = 4
    /// The others are waited for no longer, all together: a server may be willing to have several
    /// and have room for one.
    private static let furtherLinksNanoseconds: UInt64 = 1_000_000_000
    /// The same of memory that is shared with a program.
    private static let sharingNanoseconds: UInt64 = 5_000_000_000
    /// Largest cluster of a qcow2 image, in bytes: what is behind an upstream is not known.
    private static let zeroingUnitMax: UInt64 = 2 << 20
    /// A smallest block that is larger is refused, in bytes: buffers are aligned to this.
    private static let alignmentMax = 4096

    /// Connects; may wait as long as the terms say, and longer for a name server.
    ///
    /// `adapter`: the program behind the address, which is started again when it has ended, and
    /// ends with the upstream. `name`: what people know it by, the address unless given. `onClose`:
    /// nobody asks it any more; `onEnd`: nor does the program behind it run, later perhaps.
    package init(
        number: Int32, _ address: UpstreamAddress, readOnly: Bool, _ terms: UpstreamTerms,
        adapter: (any Adapter)? = nil, name: String? = nil,
        post: @escaping @Sendable (UpstreamMessage) -> Void,
        onClose: @escaping @Sendable () -> Void, onEnd: @escaping @Sendable () -> Void
    ) throws(UpstreamFault) {
        let links = try Self.connect(address, terms, adapter, sharing: adapter)
        guard let facts = links.links.first?.facts else { throw UpstreamFault("no connection") }
        if facts.isReadOnly, !readOnly {
            throw UpstreamFault(
                terms.purpose == .scratch
                    ? "its server lets nobody write to it"
                    : "the upstream lets nobody write to it: serve the disk read-only"
                        + " (<readonly/>, --read-only), or make it writable")
        }
        guard facts.alignment <= Self.alignmentMax, facts.alignment.nonzeroBitCount == 1 else {
            throw UpstreamFault(
                "its smallest block has \(facts.alignment) bytes, at most \(Self.alignmentMax) are"
                    + " served")
        }
        guard facts.sizeBytes.isMultiple(of: UInt64(facts.alignment)) else {
            throw UpstreamFault(
                "its size of \(facts.sizeBytes) bytes is not a multiple of its smallest block,"
                    + " \(facts.alignment) bytes")
        }
        guard facts.sizeBytes <= RawSource.sizeBytesMax else {
            throw UpstreamFault(
                "its size of \(facts.sizeBytes) bytes is larger than \(RawSource.sizeBytesMax)"
                    + " bytes, the most that is served")
        }
        self.number = number
        self.adapter = adapter
        unflushed =
            readOnly || terms.purpose == .scratch
            ? nil : (adapter?.unflushedFile).flatMap { UnflushedNote($0) }
        self.name = name ?? address.uri
        self.address = address
        self.facts = facts
        server = links.links[0].server
        localPort = links.links[0].localPort
        self.terms = terms
        key = terms.slotBytes > 0 ? ScratchKey(slotBytes: terms.slotBytes) : nil
        self.post = post
        self.onClose = onClose
        self.onEnd = onEnd
        isReadOnly = readOnly
        fresh = Mutex(links)
        sharingFault = Mutex(links.sharingFault)
    }

    /// Which export of which server it is, by whatever name that was reached.
    package var place: String { server + " " + address.name }

    /// The same of what its unix socket leads to now: a server that was started again has another.
    ///
    /// May wait for a file system.
    package var placeNow: String {
        guard case .unix(let path) = address.place else { return place }
        return UpstreamLink.server(path) + " " + address.name
    }

    /// The same as a source for rings and exports.
    package func rawSource() -> RawSource {
        var facts = SourceFacts(
            path: name, sizeBytes: facts.sizeBytes, raw: number,
            witness: WriteErrorWitness(
                raw: -1, earlier: adapter?.mayHaveLost == true ? Errno.io : nil,
                asking: { nil }))
        facts.type = .other
        facts.isReadOnly = isReadOnly
        facts.alignment = self.facts.alignment
        facts.remote = self
        let source = RawSource(facts)
        lossKeeper.withLock { keeper in
            keeper = { [weak source] errno in
                source?.noteFailedSync(
                    SystemFault(call: "NBD_CMD_FLUSH", errno: errno), isHeard: false)
            }
        }
        return source
    }

    // MARK: Connecting

    private static func connect(
        _ address: UpstreamAddress, _ terms: UpstreamTerms, _ adapter: (any Adapter)?,
        sharing partner: (any Adapter)?
    ) throws(UpstreamFault) -> FreshLinks {
        let isInOrder = adapter != nil
        let deadline = MonotonicClock.now() + terms.attemptMilliseconds * 1_000_000
        let first = try UpstreamLink(
            address, until: deadline, patienceMilliseconds: terms.patienceMilliseconds,
            isInOrder: isInOrder)
        var links = [first]
        if first.facts.takesConnections {
            // What cannot be had is done without.
            let end = min(deadline, MonotonicClock.now() + furtherLinksNanoseconds)
            while links.count < linksMax,
                let more = try? UpstreamLink(
                    address, until: end, patienceMilliseconds: terms.patienceMilliseconds,
                    isInOrder: isInOrder),
                Int(more.descriptor) < terms.descriptorsEnd,
                first.facts.difference(from: more.facts, forWriting: true) == nil
            {
                links.append(more)
            }
        }
        return FreshLinks(
            links,
            partner.flatMap {
                share(
                    first.facts, $0, descriptorsEnd: terms.descriptorsEnd,
                    until: min(deadline, MonotonicClock.now() + sharingNanoseconds))
            })
    }

    /// The program is served by sockets alone from now on.
    func shareNoMore(because fault: String) {
        sharesMemory.store(false, ordering: .relaxed)
        report(
            "its program does not get on with memory that is shared with it (\(fault)): it is asked"
                + " over its socket alone from now on, which is slower")
    }

    /// Shares memory with the program, which spares copies; nil: it does not do that.
    private static func share(
        _ facts: UpstreamFacts, _ adapter: any Adapter, descriptorsEnd: Int, until deadline: UInt64
    ) -> Result<SharedQueue, UpstreamFault>? {
        guard let path = adapter.sharedSocket else { return nil }
        do throws(UpstreamFault) {
            let shared = try SharedQueue(path, until: deadline, descriptorsEnd: descriptorsEnd)
            // A disk that ends within a sector has one less here.
            guard shared.sizeBytes <= facts.sizeBytes else {
                throw UpstreamFault(
                    "it has \(shared.sizeBytes) bytes in memory and \(facts.sizeBytes) by NBD")
            }
            return .success(shared)
        } catch {
            return .failure(error)
        }
    }

    func takeFresh() -> FreshLinks? {
        fresh.withLock { fresh in
            defer { fresh = nil }
            return fresh
        }
    }

    /// Tries to connect on a thread of its own; false when there is none.
    ///
    /// What comes of it is a message.
    func startConnecting() -> Bool {
        DetachedThread.run(name: "nbdpull-upstrm") { [self] in
            do throws(UpstreamFault) {
                try startAdapter()
                let partner = sharesMemory.load(ordering: .relaxed) ? adapter : nil
                let links = try Self.connect(address, terms, adapter, sharing: partner)
                for link in links.links {
                    if let text = facts.difference(from: link.facts, forWriting: !isReadOnly) {
                        throw UpstreamFault(text)
                    }
                }
                if let fault = links.sharingFault { sharingFault.withLock { $0 = fault } }
                reportAdapter()
                post(.connected(number, .success(links)))
            } catch {
                post(.connected(number, .failure(error)))
            }
        }
    }

    private func startAdapter() throws(UpstreamFault) {
        do throws(AdapterFault) {
            try adapter?.ensureRuns(milliseconds: Int32(clamping: terms.attemptMilliseconds))
        } catch {
            throw UpstreamFault(error.detail)
        }
        reportAdapter()
    }

    // MARK: Telling

    /// Who is told when the upstream goes and comes.
    package func setHandler(_ new: @escaping @Sendable (String) -> Void) {
        handler.withLock { $0 = new }
        reportAdapter()
    }

    private func reportAdapter() {
        guard let tell = handler.withLock({ $0 }) else { return }
        if let text = adapter?.takeProblem() { tell(text) }
        if let text = adapter?.takeSharingRefusal() {
            tell(
                "its program refuses to share memory with this server (\(text)), and was started"
                    + " without: it is asked over its socket alone, which is slower")
        }
        let fault = sharingFault.withLock { fault in
            defer { fault = nil }
            return fault
        }
        guard let fault else { return }
        tell(
            "its program shares no memory with this server (\(fault)): it is asked over its socket"
                + " until it is connected to again, which is slower")
    }

    /// Says what would be lost with this process.
    func note(_ atStake: AtStake) { unflushed?.set(atStake) }

    func report(_ text: String) { handler.withLock { $0 }?(text) }

    /// Whatever the upstream said of it: some errors would pass as saying nothing of what is lost.
    func keepLoss() { lossKeeper.withLock { $0 }?(Errno.io) }

    /// Of scratch: it is not there any more, and with it what was written.
    func noteEnd(_ reason: ScratchEnd) { end.withLock { $0 = $0 ?? reason } }

    /// Why it was scratch and is no more; nil while it is.
    package var scratchEnd: ScratchEnd? { end.withLock { $0 } }

    // MARK: RemoteSource

    /// Asks the home ring, which has the connections.
    package func ask(_ request: UpstreamRequest) { post(.ask(number, request)) }

    package func makeDurable() throws(SystemFault) {
        let latch = Latch(count: 1)
        let result = FlushResult()
        ask(
            UpstreamRequest(.flush) { answer, _ in
                result.errno.store(-answer, ordering: .relaxed)
                latch.arrive()
            })
        _ = latch.wait(milliseconds: -1)
        let answer = -result.errno.load(ordering: .relaxed)
        if answer < 0 { throw SystemFault(call: "NBD_CMD_FLUSH", errno: -answer) }
    }

    package func beginFlush() {
        if !isReadOnly { ask(UpstreamRequest(.flush) { _, _ in }) }
    }

    package var discards: Bool { facts.discards }
    package var zeroesFast: Bool { facts.zeroesFast }
    package var tellsAllocation: Bool { facts.tellsAllocation }
    package var zeroingUnit: UInt64 { adapter?.zeroingUnit ?? Self.zeroingUnitMax }

    package var before: RemoteState { Self.state(adapter?.before) }

    package func close(milliseconds: Int32) -> RemoteState? {
        guard let adapter else { return RemoteState() }
        // So that nobody takes its end for a loss.
        giveUp()
        post(.close(number))
        defer { reportAdapter() }
        return adapter.end(milliseconds: milliseconds).map { Self.state($0) }
    }

    private static func state(_ image: ImageState?) -> RemoteState {
        image.map { RemoteState(files: $0.files, changed: $0.changed) } ?? RemoteState()
    }

    /// From here on it is opened by no ring: whoever still asks is refused.
    package func giveUp() { isGivenUp.store(true, ordering: .releasing) }

    var isOpenable: Bool { !isGivenUp.load(ordering: .acquiring) }

    package func heedLoss() { adapter?.heedLoss() }

    package func forgetLoss() { adapter?.forgetLoss() }

    package func leave() {
        // So that nobody takes its end for a loss.
        giveUp()
        adapter?.leave()
    }

    package func release() {
        giveUp()
        onClose()
        post(.close(number))
        // Nobody asks it for anything any more; what was to be durable is.
        guard let adapter else { return onEnd() }
        let stop = { @Sendable [onEnd] in
            adapter.stop(whenOver: onEnd)
        }
        // Whoever has it last may be a ring, and the program may take long to end.
        if terms.purpose == .scratch || !WorkerThread.mayWait,
            DetachedThread.run(name: "nbdpull-upstrm", stop)
        {
            return
        }
        stop()
        reportAdapter()
    }
}
