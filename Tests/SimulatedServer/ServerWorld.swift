import BoundedCalls
import Core
import NBDProtocol
import ServerInterface
import Simulation
import Synchronization
import SystemLayer
import TLS

/// A ring's loop, kept where it can be given turns.
final class RingBox {
    var loop: RingLoop<SimulatedIO>

    init(index: Int, shared: ServerShared, kernel: Kernel) throws(SystemFault) {
        loop = try RingLoop(index: index, shared: shared, io: SimulatedIO(kernel: kernel))
        loop.begin()
    }
}

/// The server's rings, turn by turn, between simulated disks and peers that speak bytes.
///
/// Production code decides: `RingLoop` and all below it, `InstantCall`, `EndCall`, a ledger's file.
/// The world is their kernel, their disks, their clock and their peers, in an order that a seed
/// chooses; and it remembers what was, to judge.
final class ServerWorld {
    let steps: StepList
    let swarm: ServerSwarm
    let canary: ServerCanary?
    /// Where ledgers of jobs lie.
    let memory = MemoryDirectory()
    var draw: Draw
    var faults = Faults()
    var now: UInt64 = 1_000_000_000

    // What outlives a process
    var disks: [ServedDisk] = []
    var jobs: [ServedJob] = []
    var jobCount = 0
    var sockets: [SimulatedSocket] = []
    var peers: [Peer] = []
    var lastStamp: Stamp = 1
    var checkpointCount = 0
    private(set) var processCount = 0
    var boot = 0
    private(set) lazy var stage = FileStage(self)

    // The process that serves
    private(set) var shared: ServerShared
    private(set) var server: NBDServer
    var kernels: [Kernel] = []
    var boxes: [RingBox] = []
    var liveScope = ExportScope(jobID: nil)
    var liveListener: RingListener?
    /// Peers that wait to be accepted, by listener.
    var backlog: [Int32: [SocketHandle]] = [:]
    var lastListener: UInt64 = 0
    var work: [(work: RingWork, ring: Int)] = []
    var begin: BeginUnderWay?
    var deletion: (call: DeleteCheckpointCall, disk: ServedDisk, name: String)?
    var growth: (call: EnlargeCall, disk: ServedDisk)?
    var endings: [(call: EndCall, job: ServedJob)] = []
    var pages: [Int: PagesUnderWay] = [:]
    var lastPages = 0
    /// Rings whose period is over.
    var ticksDue: Set<Int> = []
    /// Descriptors that front-ends have shared with the process.
    var handles: [Int32: SharedHandle] = [:]
    var lastHandle: Int32 = 0
    let guestBytes: GuestBytes
    /// Under a canary: bytes that are yet to come to a guest's memory.
    var lateFills: [(ranges: [GuestRange], bytes: [UInt8], start: Int)] = []
    /// Writes that a kernel which lies has answered and not made.
    var late: [(disk: ServedDisk, position: UInt64, stamps: [Stamp])] = []

    /// Faults have stopped, and everything is to end.
    var isFinishing = false
    /// Nobody comes any more.
    var isLeaving = false
    private(set) var violation: Violation?
    var trace: [String]?
    private var currentStep = -1

    init(_ steps: StepList, canary: ServerCanary? = nil, isTraced: Bool = false) throws {
        self.steps = steps
        self.canary = canary
        trace = isTraced ? [] : nil
        draw = Draw(seed: steps.seed)
        let swarm = ServerSwarm(seed: steps.seed)
        self.swarm = swarm
        shared = try Self.makeShared(swarm)
        guestBytes = try GuestBytes()
        server = NBDServer(simulating: shared)
        for (number, alignment) in swarm.alignments.enumerated() {
            disks.append(ServedDisk(number, alignment: alignment, self))
        }
        try startProcess()
    }

    private static func makeShared(_ swarm: ServerSwarm) throws -> ServerShared {
        var configuration = ServerConfiguration(maxConnections: swarm.maxConnections)
        configuration.rings = swarm.ringCount
        configuration.copyMemoryBytes = swarm.copyMemoryBytes
        return try ServerShared(
            RingLayout(rings: swarm.ringCount, servesJobs: true), configuration,
            security: SecurityStore(SecurityConfiguration()),
            // What it would do is done as what the event asks for.
            startThread: { _, _ in true }, isSimulated: true)
    }

    var isGoing: Bool { violation == nil }

    func fail(_ text: @autoclosure () -> String) {
        guard violation == nil else { return }
        violation = Violation(text: text(), step: currentStep)
        note("VIOLATION: \(violation?.text ?? "")")
    }

    func note(_ text: @autoclosure () -> String) {
        guard trace != nil else { return }
        trace?.append("\(currentStep): " + text())
    }

    /// Lives the history; returns what was violated.
    func run() -> Violation? {
        comeBack()
        for step in steps.taken where isGoing {
            currentStep = step
            draw = Draw(seed: steps.stepSeed(step))
            happen(Happening.allCases[draw.index(weights: swarm.weights)])
        }
        currentStep = -1
        draw = Draw(seed: steps.seed ^ 1)
        if isGoing { finish() }
        endProcess()
        return violation
    }

    // MARK: The process

    /// Rings, disks and a listener; then the jobs that were left.
    func startProcess() throws {
        shared = try Self.makeShared(swarm)
        server = NBDServer(simulating: shared)
        processCount += 1
        liveScope = ExportScope(jobID: nil)
        for ring in 0..<shared.layout.count {
            let kernel = Kernel(self, ring: ring)
            kernels.append(kernel)
            boxes.append(try RingBox(index: ring, shared: shared, kernel: kernel))
        }
        for disk in disks {
            _ = liveScope.add(.live(disk.live))
            server.state.withLock { $0.disks[disk.id] = disk.live }
            shared.mailboxes[disk.live.homeRing].post(
                .addDisk(disk.live, openTracking(disk), Replies().ticket()))
        }
        let handle = WorldHandle(self)
        server.setEventHandler { event in handle.world.take(event) }
        checkTracking()
        resumeJobs()
        liveListener = listen(liveScope, isUnix: true)
        for disk in disks where disk.sharesMemory {
            disk.listener = listen(liveScope, isUnix: true, guestOf: disk.live)
        }
    }

    func listen(
        _ scope: ExportScope, isUnix: Bool, guestOf export: LiveExport? = nil
    ) -> RingListener {
        lastListener += 1
        let listener = RingListener(
            number: lastListener, scope: scope, security: .plaintext, isUnix: isUnix,
            handle: ListenerHandle(Int32(lastListener)), guestOf: export)
        let mailbox =
            export.map { shared.mailboxes[$0.homeRing] } ?? shared.acceptor(for: scope.duty)
        mailbox.post(.addListener(listener))
        return listener
    }

    /// The process is gone, with all that it had in memory; its sockets are closed.
    func endProcess() {
        for kernel in kernels { kernel.die() }
        for job in jobs { for part in job.parts { loseWriter(of: part) } }
        boxes = []
        kernels = []
        work = []
        begin = nil
        deletion = nil
        growth = nil
        endings = []
        pages = [:]
        ticksDue = []
        backlog = [:]
        late = []
        for socket in sockets {
            dropMessages(socket)
            socket.isClosed = true
        }
        peers = []
        leaveMachines()
        closeHandles()
        lateFills = []
    }
}
