package import Glibc
import VhostClient

/// How a request ended.
package enum DiskAnswer: Sendable, Equatable {
    /// Success, with the bytes that were read.
    case done([UInt8])
    case failed(String)
}

/// What a guest asks its disk for.
package enum DiskCommand: Sendable, Equatable {
    case read
    case write([UInt8])
    case flush
    case discard
    case writeZeroes(mayUnmap: Bool)
    case identify
}

/// A guest's disk behind a front-end: many requests in flight, cut into buffers of all shapes.
package final class VhostDisk {
    private struct Flight {
        let command: DiskCommand
        let slot: Int
        /// Where the data is, and how much the device writes there.
        let data: UInt64
        let inputBytes: Int
    }

    package let frontEnd: FrontEnd
    /// Requests in flight, by number.
    private var flights: [Int: Flight] = [:]
    private var answers: [Int: DiskAnswer] = [:]
    /// The request of each chain, by queue and head.
    private var owners: [[UInt32: Int]]
    private var freeSlots: [Int]
    private var nextNumber = 0
    private let slotBytes: Int
    /// Why nothing will be answered any more: the back-end has broken a queue.
    private var breakage: String?
    /// Whether the back-end has closed the connection.
    package private(set) var isGone = false

    private static let statusOffset: UInt64 = 32
    private static let tableOffset: UInt64 = 256
    private static let dataOffset: UInt64 = 4096
    private static let notAnswered: UInt8 = 0xee

    /// `largest` bounds a request's data, in bytes, `depth` requests in flight.
    package init(
        _ path: String, _ given: FrontEndOptions = FrontEndOptions(), largest: Int = 4 << 20,
        depth: Int = 40
    ) throws {
        slotBytes = (largest + 4095) / 4096 * 4096 + 8192
        var options = given
        options.dataBytes = slotBytes * depth
        frontEnd = try FrontEnd(path, options)
        owners = Array(repeating: [:], count: options.queues)
        freeSlots = (0..<depth).reversed()
    }

    package var sizeBytes: Int { frontEnd.diskBytes }
    package var canDiscard: Bool { frontEnd.features & FrontEnd.discards != 0 }
    package var canWriteZeroes: Bool { frontEnd.features & FrontEnd.writesZeroes != 0 }
    package var isReadOnly: Bool { frontEnd.features & FrontEnd.readOnly != 0 }
    package var inFlight: Int { flights.count }

    // MARK: Requests

    /// Sends a request, and returns its number.
    package func start(_ command: DiskCommand, _ offset: Int = 0, _ count: Int = 0) throws -> Int {
        guard let slot = freeSlots.popLast() else { throw ClientViolation("no slot is free") }
        let number = nextNumber
        nextNumber += 1
        let queue = number % frontEnd.queues.count
        let request = Self.request(command, offset, count)
        guard let (head, data) = place(request, slot, number, queue) else {
            freeSlots.append(slot)
            throw ClientViolation("the queue is full")
        }
        owners[queue][UInt32(head)] = number
        flights[number] = Flight(
            command: command, slot: slot, data: data, inputBytes: request.inputBytes)
        let driver = frontEnd.queues[queue].driver
        driver.publish()
        frontEnd.memory.fence()
        if driver.wantsKick() { frontEnd.queues[queue].kick.signal() }
        return number
    }

    private static func request(_ command: DiskCommand, _ offset: Int, _ count: Int)
        -> DriverRequest
    {
        let sector = UInt64(offset / 512)
        let sectors = UInt32(count / 512)
        return switch command {
        case .read: .read(sector, sectors: count / 512)
        case .write(let bytes): .write(sector, bytes)
        case .flush: .flush
        case .discard: .discard(sector, sectors: sectors)
        case .writeZeroes(let mayUnmap):
            .writeZeroes(sector, sectors: sectors, flags: mayUnmap ? 1 : 0)
        case .identify: .getID
        }
    }

    /// Puts a request into memory and into the ring.
    private func place(
        _ request: DriverRequest, _ slot: Int, _ number: Int, _ queue: Int
    ) -> (head: UInt16, data: UInt64)? {
        let memory = frontEnd.memory
        let start = frontEnd.dataStart + UInt64(slot * slotBytes)
        memory.write(Array(request.readable.prefix(16)), start)
        memory.write([Self.notAnswered], start + Self.statusOffset)
        // Guests may have their data anywhere; sectors and pages are the rule.
        let data = start + Self.dataOffset + [0, 512, 0, 8, 0, 1][number / 5 % 6]
        if !request.output.isEmpty { memory.write(request.output, data) }
        let count = max(request.output.count, request.inputBytes)
        let driver = frontEnd.queues[queue].driver
        for cuts in [Self.cuts(number, count), []] {
            let buffers =
                [DriverBuffer(start, 16)]
                + Self.cut(data, count, cuts, isWritable: request.inputBytes > 0)
                + [DriverBuffer(start + Self.statusOffset, 1, isWritable: true)]
            let tableIsFirst = number.isMultiple(of: 2)
            for useTable in [tableIsFirst, !tableIsFirst] {
                if useTable, !frontEnd.usesIndirect { continue }
                let head =
                    useTable
                    ? driver.stage(buffers, table: start + Self.tableOffset)
                    : driver.stage(buffers)
                if let head { return (head, data) }
            }
        }
        return nil
    }

    /// Sizes of buffers, the last of which takes the rest.
    private static func cuts(_ number: Int, _ count: Int) -> [Int] {
        switch number % 5 {
        case 1: [512]
        case 2: [1000, 24, 4096]
        case 3: [Int](repeating: max(count / 8, 1), count: 7)
        case 4: [1, 4095]
        default: []
        }
    }

    private static func cut(
        _ address: UInt64, _ count: Int, _ cuts: [Int], isWritable: Bool
    ) -> [DriverBuffer] {
        guard count > 0 else { return [] }
        var buffers: [DriverBuffer] = []
        var done = 0
        for cut in cuts where done + cut < count {
            buffers.append(
                DriverBuffer(address + UInt64(done), UInt32(cut), isWritable: isWritable))
            done += cut
        }
        return buffers + [
            DriverBuffer(address + UInt64(done), UInt32(count - done), isWritable: isWritable)
        ]
    }

    // MARK: Answers

    /// A request's answer, which is given once; nil while it is in flight.
    package func answer(to number: Int) -> DiskAnswer? {
        if let answer = answers.removeValue(forKey: number) { return answer }
        guard let breakage, flights.removeValue(forKey: number) != nil else { return nil }
        return .failed(breakage)
    }

    /// Takes what the device has given back; throws when the device breaks the rules.
    package func collect() throws {
        for (index, queue) in frontEnd.queues.enumerated() {
            if queue.failure.take() > 0 { breakage = "queue \(index) is broken" }
            for used in try queue.driver.collect() {
                guard let number = owners[index].removeValue(forKey: used.id),
                    let flight = flights.removeValue(forKey: number)
                else { throw ClientViolation("an answer to no request: chain \(used.id)") }
                answers[number] = try answer(flight, used)
                freeSlots.append(flight.slot)
            }
        }
    }

    private func answer(_ flight: Flight, _ used: DriverUsed) throws -> DiskAnswer {
        let memory = frontEnd.memory
        let start = frontEnd.dataStart + UInt64(flight.slot * slotBytes)
        switch memory.read(start + Self.statusOffset, 1)[0] {
        case 0:
            guard Int(used.written) == flight.inputBytes + 1 else {
                throw ClientViolation(
                    "\(used.written) bytes are said to be written, not \(flight.inputBytes + 1)")
            }
            return .done(memory.read(flight.data, flight.inputBytes))
        case 1: return .failed("I/O error")
        case 2: return .failed("not supported")
        case Self.notAnswered: throw ClientViolation("given back without a status")
        case let other: throw ClientViolation("status \(other)")
        }
    }

    /// What to wait for before ``collect()``; nil if there is something to collect at once.
    package func waiting() -> [pollfd]? {
        for queue in frontEnd.queues { queue.driver.wantCalls() }
        frontEnd.memory.fence()
        guard !frontEnd.queues.contains(where: { $0.driver.hasUsed }) else { return nil }
        var entries = frontEnd.queues.flatMap { [$0.call.number, $0.failure.number] }
        if !isGone { entries.append(frontEnd.socket.descriptor.number) }
        return entries.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    }

    /// Collects what there is, and sees whether the back-end is still there.
    package func proceed() throws {
        for queue in frontEnd.queues { queue.call.take() }
        try collect()
        if !isGone { isGone = frontEnd.socket.isClosed() }
    }

    /// Goes on with a back-end that was started again.
    package func reconnect() throws {
        try frontEnd.reconnect()
        isGone = false
    }

    /// Carries a request out; throws if it fails or takes longer.
    @discardableResult
    package func perform(
        _ command: DiskCommand, _ offset: Int = 0, _ count: Int = 0, seconds: Int = 20
    ) throws -> [UInt8] {
        let number = try start(command, offset, count)
        let deadline = ContinuousClock.now + .seconds(seconds)
        while true {
            if var entries = waiting() {
                // SAFETY: the array outlives the call, which has its count.
                _ = unsafe poll(&entries, nfds_t(entries.count), 100)
            }
            try proceed()
            switch answer(to: number) {
            case .done(let bytes): return bytes
            case .failed(let reason): throw ClientViolation("\(command.name): \(reason)")
            case nil:
                guard !isGone else { throw ClientViolation("\(command.name): connection lost") }
                guard ContinuousClock.now < deadline else {
                    throw ClientViolation("\(command.name): no answer after \(seconds) s")
                }
            }
        }
    }
}

extension DiskCommand {
    /// The command without its data.
    var name: String {
        switch self {
        case .read: "read"
        case .write(let bytes): "write of \(bytes.count) bytes"
        case .flush: "flush"
        case .discard: "discard"
        case .writeZeroes(let mayUnmap): mayUnmap ? "zeroing by unmapping" : "zeroing"
        case .identify: "identification"
        }
    }
}
