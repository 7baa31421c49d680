import IORing
import Simulation

/// One operation that a ring has handed to its kernel.
final class KernelOperation {
    enum Kind {
        case read(FileHandle, position: UInt64, count: Int)
        case write(FileHandle, position: UInt64, WrittenBytes, durable: Bool)
        case allocate(FileHandle, position: UInt64, count: UInt64)
        case sync(FileHandle)
        case receive(SocketHandle, count: Int, whole: Bool)
        case event(RingEvent)
        /// An event that a front-end shares is waited for, or made: the operation keeps it,
        /// whatever becomes of its descriptor.
        case kick(SharedEvent)
        case call(SharedEvent)
        case cancel(UInt64)
        case workers(UInt32)
        case nothing
    }

    let tag: UInt64
    let kind: Kind
    /// Where in the arena bytes go when the completion is taken.
    let arenaOffset: Int
    /// Where they go instead, as they are read: memory that a guest shares.
    let guest: [GuestRange]?
    var bytes: [UInt8] = []
    var result: Int32 = 0
    /// Parts of its effect that are left.
    var partsLeft = 2
    /// It reports this whatever was done.
    var errno: Int32?
    /// Bytes that are moved at most; fewer than asked for is no error.
    var limit = Int.max
    /// It is not answered until its place is healed, or never.
    var isHung = false
    var hangsForEver = false
    /// What it writes is going to be lost on the way.
    var isLost = false
    /// How often it is passed over yet.
    var patience = 0

    init(_ tag: UInt64, _ kind: Kind, arenaOffset: Int = 0, guest: [GuestRange]? = nil) {
        self.tag = tag
        self.kind = kind
        self.arenaOffset = arenaOffset
        self.guest = guest
    }

    /// The file that it is about.
    var file: FileHandle? {
        switch kind {
        case .read(let file, _, _), .write(let file, _, _, _), .allocate(let file, _, _),
            .sync(let file):
            file
        case .receive, .event, .kick, .call, .cancel, .workers, .nothing: nil
        }
    }

    /// Nobody is told that it is complete.
    var isSilent: Bool {
        if case .call = kind { true } else { false }
    }
}

/// The kernel of one ring: what is prepared, in flight, and complete.
final class Kernel {
    unowned let world: ServerWorld
    let ring: Int
    private var prepared: [KernelOperation] = []
    private(set) var inFlight: [KernelOperation] = []
    private(set) var ready: [KernelOperation] = []
    /// Bytes that are to be sent.
    var gathered: [UInt8] = []
    /// Operations on files that it carries out at once, as it chose and as it was told.
    static let ownWorkers: UInt32 = 4
    private var workers = Kernel.ownWorkers
    private var runs: [ReadRun] = []

    init(_ world: ServerWorld, ring: Int) {
        self.world = world
        self.ring = ring
    }

    func prepare(_ operation: KernelOperation) { prepared.append(operation) }

    func submit() {
        let batch = prepared
        prepared = []
        for operation in batch {
            world.decideFate(of: operation)
            inFlight.append(operation)
        }
    }

    /// An operation goes on by a step; true when it is complete.
    @discardableResult
    func move(_ index: Int) -> Bool {
        let operation = inFlight[index]
        if operation.patience > 0 {
            operation.patience -= 1
            return false
        }
        guard hasWorker(for: index), world.advance(operation, self) else { return false }
        inFlight.removeAll { $0 === operation }
        if !operation.isSilent { ready.append(operation) }
        return true
    }

    /// Whether the operation is one of those that have a worker: the oldest ones.
    private func hasWorker(for index: Int) -> Bool {
        guard inFlight[index].file != nil else { return true }
        let before = inFlight[..<index].count { $0.file != nil }
        return before < Int(workers)
    }

    /// Ticks and messages that are there are told.
    func deliverEvents() {
        for operation in inFlight {
            guard case .event(let event) = operation.kind, event == .tick || event == .messages,
                world.advance(operation, self)
            else { continue }
            inFlight.removeAll { $0 === operation }
            ready.append(operation)
        }
    }

    func carryOut(_ operation: KernelOperation) {
        switch operation.kind {
        case .cancel(let target):
            guard let found = inFlight.first(where: { $0.tag == target }) else { return }
            found.result = -125
            inFlight.removeAll { $0 === found }
            ready.append(found)
        case .workers(let count): if world.canary != .keepsWorkers { workers = count }
        default: break
        }
    }

    /// Completions that fit, oldest first.
    func take(atMost count: Int) -> [KernelOperation] {
        let taken = Array(ready.prefix(count))
        ready.removeFirst(taken.count)
        return taken
    }

    /// What hung goes on.
    func wake(where isMeant: (KernelOperation) -> Bool) {
        for operation in inFlight where !operation.hangsForEver && isMeant(operation) {
            operation.isHung = false
        }
    }

    /// The process is gone: the kernel goes on with some of what it has, and nobody is told.
    func die() {
        for operation in inFlight {
            while operation.partsLeft > 0, world.draw.chance(60) {
                let left = operation.partsLeft
                _ = world.advance(operation, self)
                if operation.partsLeft == left { break }
            }
        }
        prepared = []
        inFlight = []
        ready = []
    }

    // MARK: A lie

    /// Under a canary: what of the arena was read from where.
    private struct ReadRun {
        let file: FileHandle
        let position: UInt64
        let bytes: [UInt8]
        let offset: Int
    }

    func noteRead(_ file: FileHandle, _ position: UInt64, _ bytes: [UInt8], at offset: Int) {
        guard world.canary == .readsAgainWhenSending, world.disk(file) != nil else { return }
        if runs.count > 64 { runs.removeFirst() }
        runs.append(ReadRun(file: file, position: position, bytes: bytes, offset: offset))
    }

    /// Bytes that are sent, with what their files hold by now in place of what was read.
    func lookedAtAgain(_ bytes: [UInt8], at offset: Int) -> [UInt8] {
        guard world.canary == .readsAgainWhenSending else { return bytes }
        var bytes = bytes
        for run in runs {
            let first = run.offset - offset
            let end = first + run.bytes.count
            guard first >= 0, end <= bytes.count, Array(bytes[first..<end]) == run.bytes else {
                continue
            }
            bytes.replaceSubrange(
                first..<end, with: world.content(run.file, run.position, run.bytes.count))
        }
        return bytes
    }
}
