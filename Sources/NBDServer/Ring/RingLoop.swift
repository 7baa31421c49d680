import Core
import IORing
import NBDProtocol
import PointInTime
import ServerInterface
import Synchronization
import SystemLayer
import Tables

/// One ring's whole state, owned by its thread.
///
/// The loop takes completions, hands each to the part that waits for it, then gives every
/// connection to which something happened one turn. Nothing in here locks, allocates or counts
/// references per request: state lies in fixed tables and is named by slot numbers. What it asks of
/// the world goes through `io`.
///
/// Its methods are mutating even where they change nothing: for one that is not, the compiler
/// copies the whole value first. `dev/specialised` finds such copies.
struct RingLoop<IO: RingIO & ~Copyable>: ~Copyable {
    let index: Int
    let shared: ServerShared
    let mailbox: Mailbox<RingMessage>
    /// What the ring is doing, for whoever comes after a crash.
    let trace: FlightSlot
    // Declared before the arena so that it goes first: the kernel returns the buffers.
    var io: IO
    var arena: BufferArena
    /// Read once a turn, in nanoseconds.
    var now: UInt64

    /// What one connection may hold, and what others may take of `pieces`.
    let budget = ConnectionBudget(
        requests: Limits.requestsPerConnection, unsentBytes: Limits.unsentBytesPerConnection,
        replies: OutputQueue.capacity / 4,
        pages: Limits.bufferBytesPerConnection / BufferArena.pageBytes)
    let operationShares = OperationShares(
        data: Limits.dataPiecesPerRing, begun: Limits.begunPiecesPerRing)
    var connections: SlotTable<Connection>
    var requests = SlotTable<Request>(capacity: Limits.requestsPerRing)
    var pieces = SlotTable<Piece>(capacity: Limits.piecesPerRing)
    var disks = SlotTable<HomeDisk>(capacity: Limits.disksPerRing)
    var vhosts = SlotTable<VhostSession>(capacity: Limits.disksPerRing)
    /// Connections of front-ends.
    var sharing: [ConnectionIndex] = []
    var diskSlots: [DiskID: DiskIndex] = [:]
    var scratchWrites = GrowingTable<PendingScratchWrite>()
    var lastScratchSerial: UInt64 = 0
    /// Writes to scratch that nobody waits for, and whose buffers are in use all the same.
    var orphans: [OrphanWrite] = []
    var copyBuffers = GrowingTable<CopyBuffer>()
    /// Disks with copies that wait for memory, and whether there may be some by now.
    var hungryDisks: [DiskIndex] = []
    var copiesMayStart = false
    var listeners: [RingListener] = []
    /// Listeners that cannot accept, for want of descriptors or places; they try again at the next
    /// tick or when a connection goes.
    var pausedListeners: [RingListener] = []
    var closers: [Closer] = []
    /// At most one for each request of a job's clients.
    var releaseSteps: ArraySlice<ReleaseStep> = []
    var tickCount = 0
    /// Kernel workers for files as the kernel chose, and as set now.
    var ownWorkers: UInt32 = 0
    var workers: UInt32 = 0
    /// By kind.
    var briefWaits: [3 of BriefWait] = [.init(.client), .init(.busyGuests), .init(.disk)]
    var guestRate = GuestRate()
    /// Answers in a row for which no guest wanted a call.
    var uncalledAnswers = 0
    /// Guests were called, and their queues not looked at since.
    var hasCalled = false
    /// A write was made inline in this turn.
    var hasWrittenInline = false
    /// Folios that were split in this turn.
    var splitsInTurn = 0
    /// Reads and writes past the page cache that were prepared, and not handed over yet.
    var preparedForDisk = 0

    /// Places for zeroing requests at work on all disks, and whether some may be taken by now.
    var zeroingPlaces = Places(limit: Limits.zeroingPerRing)
    var zeroingMayStart = false
    /// When a stopping ring no longer waits for a disk that does not answer.
    var stopDeadline = UInt64.max

    /// Connections that get a turn after the completions at hand, guests first.
    var readyGuests: [ConnectionIndex] = []
    var ready: [ConnectionIndex] = []
    var guestTurn: [ConnectionIndex] = []
    var clientTurn: [ConnectionIndex] = []
    /// Connections that wait for an export that is to come soon.
    var parked: [ConnectionIndex] = []
    /// Connections that found no room in a table or the arena, to be woken when some is given back.
    var starved: [ConnectionIndex] = []
    /// Bytes that the ring has moved itself, between files and memory, in a front-end's turn.
    var movedBytes: UInt64 = 0
    var completions: [Completion] = []
    var stopTicket: Ticket?
    /// Connections are sent away, for another server to take them; who waits for the last.
    var isDeparting = false
    var departTicket: Ticket?
    /// Nothing is begun but what messages ask for.
    var isHushed = false

    /// A ring that has nothing yet, on the world that `io` is.
    init(index: Int, shared: ServerShared, io: consuming IO) throws(SystemFault) {
        let arena = try BufferArena(
            capacityBytes: Limits.arenaBytes(
                connections: shared.configuration.maxConnections,
                copies: shared.copyMemory.limitBytes))
        self.index = index
        self.shared = shared
        mailbox = shared.mailboxes[index]
        trace = shared.flight.claim()
        now = io.now()
        self.io = io
        self.arena = arena
        connections = SlotTable(capacity: shared.configuration.maxConnections)
        completions.reserveCapacity(128)
    }

    // MARK: Driving

    // The driver begins the loop, then gives it a turn whenever there are completions or it wants
    // one, until it is finished, and ends it. Nothing of this waits.

    /// Asks for messages and ticks.
    mutating func begin() {
        io.prepareEvent(.messages, tag: Operation.mailbox.tag)
        io.prepareEvent(.tick, tag: Operation.clock.tag)
    }

    /// Whether there is something to do without a completion.
    var wantsTurn: Bool { !ready.isEmpty || !readyGuests.isEmpty || !releaseSteps.isEmpty }

    /// Takes the completions that are there, and gives a turn to everyone to whom something
    /// happened.
    mutating func turn() {
        hasWrittenInline = false
        splitsInTurn = 0
        takeCompletions()
        if !sharing.isEmpty { lookAtQueues() }
        giveTurns()
        takeReleaseStep()
    }

    /// Whether the ring was told to stop and nothing keeps it.
    var isFinished: Bool {
        guard stopTicket != nil else { return false }
        return now > stopDeadline || (connections.count == 0 && disks.count == 0)
    }

    /// Leaves what is still there.
    mutating func end() {
        for slot in connections.indices where connections.contains(slot) {
            io.close(connections[slot].socket)
        }
        stopTicket?.answer()
    }

    private mutating func takeCompletions() {
        now = io.now()
        repeat {
            io.drain(into: &completions, &arena)
            for index in completions.indices { dispatch(completions[index]) }
        } while completions.count == completions.capacity
        startWaitingZeroing()
        startWaitingCopies()
    }

    private mutating func dispatch(_ completion: Completion) {
        switch Operation(tag: completion.tag) {
        case .mailbox:
            trace.note(.message)
            for message in io.takeMessages() { handle(message) }
            io.prepareEvent(.messages, tag: completion.tag)
        case .clock:
            trace.note(.tick)
            io.takeTick()
            tick()
            io.prepareEvent(.tick, tag: completion.tag)
        case .accept(let listener):
            trace.mark(.accepting)
            acceptAll(from: listener, result: completion.result)
        case .receive(let slot): received(slot, result: completion.result)
        case .writable(let slot):
            connections[slot].outbox.waitsForWritable = false
            markReady(slot)
        case .piece(let piece): pieceCompleted(piece, result: completion.result)
        case .copyRead(let disk, let copy):
            trace.note(.copy, export: disks[disk].number)
            copyReadCompleted(disk, copy, result: completion.result)
        case .message(let vhost): hasMessage(vhost)
        case .kick(let vhost, let queue): kicked(vhost, queue)
        case .ignored: break
        }
    }

    /// Gives the connection a turn after the completions at hand.
    mutating func markReady(_ slot: ConnectionIndex) {
        guard !connections[slot].isInReadyList else { return }
        connections[slot].isInReadyList = true
        if connections[slot].transmission.disk != nil {
            readyGuests.append(slot)
        } else {
            ready.append(slot)
        }
    }

    /// Gives a turn to everyone who is ready.
    ///
    /// On a ring with disks, guests are looked after between the turns of peers that negotiate and
    /// of clients of read-only disks: none waits for more than one of those.
    private mutating func giveTurns() {
        serveGuests()
        swap(&ready, &clientTurn)
        // By position: to iterate over an array counts a reference to it.
        for position in clientTurn.indices {
            guard isReady(clientTurn[position]) else { continue }
            giveTurn(clientTurn[position])
            guard disks.count > 0 else { continue }
            io.submit(waiting: false)
            takeCompletions()
            serveGuests()
        }
        clientTurn.removeAll(keepingCapacity: true)
    }

    /// Whether a connection that was ready is still there, and waits for its turn.
    private mutating func isReady(_ slot: ConnectionIndex) -> Bool {
        connections.contains(slot) && connections[slot].isInReadyList
    }

    private mutating func giveTurn(_ slot: ConnectionIndex) {
        // Else a crash before the turn's first request were told of another connection's last.
        trace.mark(.turn, export: connections[slot].transmission.path?.export ?? 0)
        connections[slot].isInReadyList = false
        serve(slot)
    }

    private mutating func serveGuests() {
        swap(&readyGuests, &guestTurn)
        for position in guestTurn.indices where isReady(guestTurn[position]) {
            giveTurn(guestTurn[position])
        }
        guestTurn.removeAll(keepingCapacity: true)
    }

    /// Room was given back: those who wait for it get another turn.
    mutating func wakeStarved() {
        guard !starved.isEmpty else { return }
        for slot in starved where connections.contains(slot) { markReady(slot) }
        starved.removeAll(keepingCapacity: true)
    }

    private mutating func tick() {
        tickCount &+= 1
        if tickCount % Limits.trimTicks == 0 { arena.trim() } else { arena.goOnTrimming() }
        for slot in connections.indices where connections.contains(slot) {
            checkDeadline(slot)
            reportBytesRead(slot)
            chooseStrategy(slot)
        }
        resumeAccepting()
        replaceHungWorkers()
        if !hungryDisks.isEmpty { copiesMayStart = true }
        for slot in disks.indices where disks.contains(slot) {
            if !isHushed { tickTracking(slot) }
            publishFigures(slot)
            guard disks[slot].hasActiveJobs else { continue }
            disks[slot].changes.expire(now: now)
            perform(slot)
        }
        wakeStarved()
    }

    private mutating func handle(_ message: RingMessage) {
        switch message {
        case .adopt(let seed): adopt(seed)
        case .addListener(let listener):
            listeners.append(listener)
            armAccept(listener)
        case .removeListener(let number, let ticket): removeListener(number, ticket)
        case .resumeAccepting: resumeAccepting()
        case .exportsCame:
            for slot in parked where connections.contains(slot) { markReady(slot) }
            parked.removeAll(keepingCapacity: true)
        case .evictHandshake(let scope): evictHandshake(of: scope)
        case .addDisk(let export, let tracking, let ticket):
            trace.note(.message, export: export.id.number)
            addDisk(export, tracking)
            ticket.answer()
        case .removeDisk(let disk, let claim, let ticket):
            ticket.answer(removeDisk(disk, claim))
        case .hold(let disk, let ticket): hold(disk, ticket)
        case .attachJob(let export, let ticket):
            trace.note(.message, export: export.id.number)
            ticket.answer(attach(export))
        case .resume(let disk): resume(disk)
        case .detachJob(let export, let ticket): detach(export, ticket)
        case .breakJob(let export, let cause): breakJob(export, cause)
        case .releaseClusters(let export, let clusters, let ring, let request):
            releaseSteps.append(
                ReleaseStep(export: export, clusters: clusters, ring: ring, request: request))
        case .clustersReleased(let request): clustersReleased(request)
        case .scratchWritten(let ticket, let outcome): scratchWritten(ticket, outcome)
        case .copyMemoryFreed: copiesMayStart = true
        case .spaceReclaimed(let piece): resubmit(piece)
        case .closeConnections(let export, let gracefully, let ticket):
            closeConnections(of: export, gracefully: gracefully, ticket)
        case .swapRecording(let disk, let next, let ticket):
            swapRecording(disk, next)
            ticket.answer()
        case .unswapRecording(let disk, let old, let ticket):
            unswapRecording(disk, old)
            ticket.answer()
        case .sealedDurably(let disk): sealedDurably(disk)
        case .pauseClearing(let disk, let ticket): ticket.answer(pauseClearing(disk))
        case .resumeClearing(let disk): resumeClearing(disk)
        case .snapshotRecording(let disk, let box, let ticket):
            snapshotRecording(disk, box)
            ticket.answer()
        case .addBits(let disk, let bits, let ticket):
            addBits(disk, bits)
            ticket.answer()
        case .intentLogWritten(let disk, let fault): intentLogWritten(disk, fault)
        case .bitsSaved(let disk, let fault): bitsSaved(disk, fault)
        case .lossDeclared(let disk): lossDeclared(disk)
        case .growDisk(let disk, let growth, let claim, let ticket):
            ticket.answer(grow(disk, growth, claim))
        case .mayLeave(let ticket): ticket.answer(mayLeave())
        case .depart(let ticket): depart(ticket)
        case .hush(let ticket): ticket.answer(hush())
        case .stay: stay()
        case .leave(let ticket):
            leave()
            ticket.answer()
        case .upstream(let message): io.upstream(message)
        case .upstreamAnswered(let answer): io.upstreamAnswered(answer)
        case .stop(let ticket):
            stopTicket = ticket
            stopDeadline = now + Limits.farewellNanoseconds
            for slot in connections.indices where connections.contains(slot) {
                close(slot)
            }
        }
    }
}

/// Waits for the last connection of an export to go.
struct Closer {
    let export: ExportID
    let ticket: Ticket
}
