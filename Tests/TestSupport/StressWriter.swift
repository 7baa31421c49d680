import Foundation
import VhostFrontEnd

/// How the stress writer behaves.
package struct StressPlan: Sendable {
    package var seed: UInt64
    /// Commands in flight over all disks.
    package var inFlight = 32
    package var largestBytes = 4 << 20
    /// Every offset and length is a multiple of this many bytes.
    package var alignment = 1

    package init(seed: UInt64) { self.seed = seed }
}

/// Plays a busy guest on several disks at once and knows what each must hold.
///
/// One thread, one connection per disk of whatever kind, many commands in flight, none of which
/// overlap on a disk: so the oracle is exact. Every error and every wrong byte that the guest sees
/// is a failure.
package final class StressWriter {
    package let plan: StressPlan
    /// What each disk holds, as far as commands have finished.
    package internal(set) var oracle: [[UInt8]]
    package private(set) var failures: [String] = []
    package private(set) var finishedCount = 0
    package private(set) var slowest = Duration.zero
    /// The slowest command's name.
    package private(set) var slowestSummary = ""

    package let disks: [any GuestDisk]
    /// What every range is a multiple of, in bytes.
    private let alignment: Int
    var flying: [StressOperation] = []
    var windows: [InstantWindow] = []
    /// Ticks at every start and every end of a command.
    var clock = 0
    private var generator: SeededGenerator
    private let pool: [UInt8]

    /// A guest that has its disks over NBD; `contents` are their contents now.
    package convenience init(uris: [String], contents: [[UInt8]], plan: StressPlan) throws {
        try self.init(
            disks: uris.map { uri throws in try NBDClient(uri) }, contents: contents, plan: plan)
    }

    /// `contents` are the disks' contents now.
    package init(disks: [any GuestDisk], contents: [[UInt8]], plan: StressPlan) throws {
        self.plan = plan
        self.disks = disks
        alignment = disks.reduce(plan.alignment) { max($0, $1.blockBytes) }
        oracle = contents
        generator = SeededGenerator(seed: plan.seed)
        pool = generator.bytes(8 << 20)
        for (disk, content) in zip(disks, contents) where disk.sizeBytes != content.count {
            throw TestFailure("size \(disk.sizeBytes), expected \(content.count)")
        }
    }

    /// Keeps the disks busy until the condition holds; throws at the first failure.
    package func run(
        timeout seconds: Double = 120, until condition: () throws -> Bool
    ) throws {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while try !condition() {
            if flying.count < plan.inFlight { try submit() }
            try collect(waiting: flying.count < plan.inFlight ? 0 : 2)
            guard ContinuousClock.now < deadline else {
                throw TestFailure("the writer waited \(seconds) s in vain; \(state)")
            }
        }
    }

    package func run(seconds: Double) throws {
        let end = ContinuousClock.now + .seconds(seconds)
        try run(timeout: seconds + 60) { ContinuousClock.now >= end }
    }

    /// Waits for a program while the disks stay busy, and returns its result.
    package func run(beside command: Command, timeout seconds: Double = 120) throws
        -> CommandResult
    {
        try run(timeout: seconds) { !command.isRunning }
        return try command.result()
    }

    /// Lets every command in flight finish.
    package func drain(timeout seconds: Double = 60) throws {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while !flying.isEmpty {
            try collect(waiting: 5)
            guard ContinuousClock.now < deadline else {
                throw TestFailure("commands never finished; \(state)")
            }
        }
    }

    /// Forgets the slowest command so far.
    package func resetSlowest() { slowest = .zero }

    private var state: String {
        "seed \(plan.seed), \(finishedCount) finished, in flight: "
            + flying.prefix(4).map(\.summary).joined(separator: ", ")
    }
}

// Choosing and starting commands.
extension StressWriter {
    private func submit() throws {
        let disk = generator.below(disks.count)
        if generator.oneIn(50) { return try start(.flush, disk, 0, 0) }
        guard let (offset, count) = freeRange(disk) else { return }
        switch generator.below(10) {
        case 0, 1: try start(.read, disk, offset, count)
        case 2, 3: try start(.zero, disk, offset, count)
        case 4 where disks[disk].canTrim: try start(.trim, disk, offset, count)
        default: try start(.write, disk, offset, count)
        }
    }

    /// A range that nothing in flight touches, of any size and mostly small.
    private func freeRange(_ disk: Int) -> (Int, Int)? {
        let size = oracle[disk].count
        for _ in 0..<8 {
            var largest = 1 << generator.below(23)
            largest = min(largest, plan.largestBytes)
            var count = generator.oneIn(3) ? largest : 1 + generator.below(largest)
            count = max(alignment, count / alignment * alignment)
            let placing = max(alignment, [1, 512, 4096, 65_536][generator.below(4)])
            var offset = generator.below(size) / placing * placing
            // Every eighth command goes to a hot megabyte, so that overwrites are common.
            if generator.oneIn(8) { offset %= 1 << 20 }
            guard offset + count <= size else { continue }
            if !flying.contains(where: {
                $0.disk == disk && $0.kind != .flush && $0.overlaps(offset, count)
            }) {
                return (offset, count)
            }
        }
        return nil
    }

    private func start(_ kind: StressOperation.Kind, _ disk: Int, _ offset: Int, _ count: Int)
        throws
    {
        clock += 1
        let startedAt = clock
        let isDurable = generator.oneIn(20)
        let content =
            switch kind {
            case .write: freshContent(count)
            case .zero: [UInt8](repeating: 0, count: count)
            case .trim, .read, .flush: [UInt8]()
            }
        let number = try disks[disk].start(
            GuestRequest(
                kind: kind, offset: offset, count: count, content: content, isDurable: isDurable,
                mayUnmap: kind == .zero && generator.oneIn(2)))
        let operation = StressOperation(
            kind: kind, disk: disk, offset: offset, count: count, content: content,
            startedAt: startedAt, number: number)
        flying.append(operation)
        if operation.changesData {
            for window in windows { window.operations.append(operation) }
        }
    }

    /// Bytes that no other command writes: a slice of a random pool, each sector numbered.
    private func freshContent(_ count: Int) -> [UInt8] {
        let start = generator.below(pool.count - count)
        var content = [UInt8](pool[start..<start + count])
        for sector in stride(from: 0, to: count - 8, by: 512) {
            for byte in 0..<4 {
                content[sector + byte] = UInt8(truncatingIfNeeded: clock >> (8 * byte))
            }
        }
        return content
    }
}

// Collecting what has finished.
extension StressWriter {
    private func collect(waiting milliseconds: Int32) throws {
        try waitForActivity(disks, milliseconds: milliseconds)
        var remaining: [StressOperation] = []
        for operation in flying {
            guard let answer = disks[operation.disk].answer(to: operation.number) else {
                remaining.append(operation)
                continue
            }
            switch answer {
            case .failed(let failure): failures.append("\(operation.summary): \(failure)")
            case .done(let bytes):
                if try finish(operation, bytes) { remaining.append(operation) }
            }
        }
        flying = remaining
        if let first = failures.first { throw TestFailure("the guest saw \(first); \(state)") }
    }

    /// Takes a command's effect over; true if its range is still being read back.
    private func finish(_ operation: StressOperation, _ bytes: [UInt8]) throws -> Bool {
        if operation.finishedAt == nil {
            clock += 1
            operation.finishedAt = clock
            let lasted = ContinuousClock.now - operation.begun
            if lasted > slowest {
                slowest = lasted
                slowestSummary = operation.summary
            }
        }
        switch operation.kind {
        case .flush: break
        case .write, .zero: apply(operation)
        case .read: compare(operation, bytes)
        case .trim where !operation.isReadingBack:
            operation.isReadingBack = true
            operation.number = try disks[operation.disk].start(
                GuestRequest(
                    kind: .read, offset: operation.offset, count: operation.count, content: [],
                    isDurable: false, mayUnmap: false))
            return true
        case .trim:
            compareTrimmed(operation, bytes)
            operation.content = bytes
            apply(operation)
        }
        finishedCount += 1
        return false
    }

    private func apply(_ operation: StressOperation) {
        Bytes.copy(
            operation.content, at: 0, to: &oracle[operation.disk], at: operation.offset,
            count: operation.count)
        operation.isApplied = true
    }

    private func compare(_ operation: StressOperation, _ bytes: [UInt8]) {
        let difference = Bytes.firstDifference(
            oracle[operation.disk], at: operation.offset, bytes, at: 0, count: operation.count)
        if let difference {
            let place = operation.offset + difference
            let wrong = (difference..<operation.count).filter {
                bytes[$0] != oracle[operation.disk][operation.offset + $0]
            }
            failures.append(
                "a wrong byte at \(place), \(bytes[difference]) for"
                    + " \(oracle[operation.disk][place]), the last of \(wrong.count) at"
                    + " \(operation.offset + (wrong.last ?? 0)): \(operation.summary)")
        }
    }

    /// Trimmed bytes hold what they held, or zero.
    private func compareTrimmed(_ operation: StressOperation, _ bytes: [UInt8]) {
        let before = oracle[operation.disk]
        if Bytes.isZero(bytes, at: 0, count: bytes.count) { return }
        for index in bytes.indices where bytes[index] != 0 {
            if bytes[index] != before[operation.offset + index] {
                let place = operation.offset + index
                failures.append("a trim left a foreign byte at \(place): \(operation.summary)")
                return
            }
        }
    }
}
