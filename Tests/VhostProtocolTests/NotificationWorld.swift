import VhostClient
import VhostProtocol

/// A device and a driver that sleep until they are told, in one order of steps out of all.
final class NotificationWorld {
    struct Setting: Sendable, CustomStringConvertible {
        var hasEventIndex = true
        /// Requests that are there before the device looks for the first time.
        var before = 0
        /// Requests that the driver sends while the device runs.
        var requests = 1
        /// Whether the driver wants to be called for what was done.
        var waitsForCalls = true
        var isLazy = true
        /// Whether the device tells of each chain by itself.
        var publishesEach = false
        /// How often at most the driver runs in the midst of the device's work; a lost wake-up
        /// needs one or two such moments.
        var interruptions = Int.max
        /// Broken on purpose: no fences, or no second look.
        var hasFences = true
        var looksAgain = true
        var description: String {
            "event index \(hasEventIndex), \(before) + \(requests) requests,"
                + " waits \(waitsForCalls), lazy \(isLazy), each \(publishesEach)"
        }
    }

    private enum Step { case send, fenceSend, kick, collect, arm, fenceArm, recheck, asleep, done }

    private let setting: Setting
    private let choose: (Int) -> Int
    private let memory: TwoSidedMemory
    private let side: DriverSide
    private let driver: DriverQueue
    private var queue: Virtqueue
    private var segments = [
        GuestSegment(place: GuestPlace(rawValue: 0), byteCount: 0)
    ]
    private var step: Step
    private var sent = 0
    private var returned = 0
    private var isKicked = false
    private var isCalled = false
    private var isDeviceAsleep = true
    private var interruptions = 0

    init(_ setting: Setting, choose: @escaping (Int) -> Int) throws {
        self.setting = setting
        self.choose = choose
        memory = TwoSidedMemory(
            0x180, isLazy: setting.isLazy, hasFences: setting.hasFences)
        side = DriverSide(memory)
        driver = DriverQueue(side, size: 4, at: 0, hasEventIndex: setting.hasEventIndex)
        queue = try Virtqueue(memory, QueueSetup(driver))
        memory.shared = [
            driver.available, driver.available + 2, driver.available + 12, driver.used,
            driver.used + 2, driver.used + 36,
        ]
        step = setting.requests > 0 ? .send : .collect
        for _ in 0..<setting.before { _ = stage() }
        driver.publish()
        _ = driver.wantsKick()
        side.fence()
        isKicked = setting.before > 0
        if setting.before == 0 {
            _ = try queue.wantKicks(memory)
            memory.drainDevice()
        }
        memory.onAccess = { [unowned self] in interrupt() }
    }

    private func stage() -> UInt16? {
        driver.stage([DriverBuffer(0x170, 1, isWritable: true)])
    }

    /// Runs until nobody can go on; whether everything was done and everybody knows.
    func run() throws -> Bool {
        var steps = 0
        while true {
            steps += 1
            guard steps < 1000 else { return false }
            let driverCan = canDrive
            let deviceCan = isDeviceAsleep && isKicked
            switch (driverCan, deviceCan) {
            case (false, false):
                let isSeen = !setting.waitsForCalls || returned == setting.before + sent
                return sent == setting.requests && queue.nextAvailable == driver.published
                    && isSeen
            case (true, false): try drive()
            case (false, true): try runDevice()
            case (true, true): if choose(2) == 0 { try drive() } else { try runDevice() }
            }
        }
    }

    /// Before one of the device's accesses: any number of the driver's steps.
    private func interrupt() {
        guard interruptions < setting.interruptions else { return }
        var hasDriven = false
        while canDrive, choose(2) == 1 {
            hasDriven = true
            do { try drive() } catch { step = .done }
        }
        if hasDriven { interruptions += 1 }
    }

    // MARK: The device

    private func runDevice() throws {
        isKicked = false
        isDeviceAsleep = false
        queue.suppressKicks(memory)
        while true {
            var span = segments.mutableSpan
            while let chain = try queue.next(memory, into: &span) {
                queue.complete(memory, head: chain.head, written: 1)
                if setting.publishesEach { publish() }
            }
            publish()
            // What was stored a while ago may have arrived.
            if setting.isLazy, choose(2) == 1 { memory.drainDevice() }
            let isMore = try queue.wantKicks(memory)
            guard isMore, setting.looksAgain else { break }
        }
        // A store that nobody waits for arrives late, but it arrives.
        memory.onAccess?()
        memory.drainDevice()
        isDeviceAsleep = true
    }

    private func publish() {
        guard queue.publish(memory) else { return }
        // A signal is a system call: it takes along what was stored before.
        memory.drainDevice()
        isCalled = true
    }

    // MARK: The driver

    private var canDrive: Bool { step == .asleep ? isCalled : step != .done }

    private func drive() throws {
        switch step {
        case .send:
            _ = stage()
            driver.publish()
            sent += 1
            step = .fenceSend
        case .fenceSend:
            side.fence()
            step = .kick
        case .kick:
            if driver.wantsKick() { isKicked = true }
            step = sent < setting.requests ? .send : setting.waitsForCalls ? .collect : .done
        case .collect:
            driver.suppressCalls()
            // That, too, may have arrived before anything else happens.
            if setting.isLazy, !setting.hasEventIndex, choose(2) == 1 { side.fence() }
            returned += try driver.collect().count
            step = returned == setting.before + sent ? .done : .arm
        case .arm:
            driver.wantCalls()
            step = .fenceArm
        case .fenceArm:
            side.fence()
            step = .recheck
        case .recheck:
            let count = try driver.collect().count
            returned += count
            step = returned == setting.before + sent ? .done : count > 0 ? .arm : .asleep
        case .asleep:
            isCalled = false
            step = .collect
        case .done: break
        }
    }
}

/// Every sequence of choices, one after the other.
struct Choices {
    private var path: [(taken: Int, of: Int)] = []
    private var position = 0

    /// The next choice of this run.
    mutating func choose(_ count: Int) -> Int {
        defer { position += 1 }
        if position == path.count { path.append((0, count)) }
        return path[position].taken
    }

    /// Goes to the next run; false: there is none.
    mutating func advance() -> Bool {
        path.removeLast(path.count - position)
        position = 0
        while let last = path.last, last.taken + 1 == last.of { path.removeLast() }
        guard !path.isEmpty else { return false }
        path[path.count - 1].taken += 1
        return true
    }
}
