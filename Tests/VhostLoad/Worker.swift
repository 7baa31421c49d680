import Glibc

/// One queue's load, on a thread of its own.
struct Worker: ~Copyable {
    private let plan: LoadPlan
    private let places: [UInt64]
    private var queue: LoadQueue
    private var started: [UInt64]
    private var freeSlots: [Int]
    private var generator: UInt64
    private var nextPlace = 0
    private let firstBlock: UInt64
    private let blocks: UInt64
    private var result = WorkerResult()

    init?(_ setup: WorkerSetup) {
        guard let queue = LoadQueue(setup.rings, setup.plan) else { return nil }
        plan = setup.plan
        places = setup.places
        self.queue = queue
        started = Array(repeating: 0, count: plan.depth)
        freeSlots = Array((0..<plan.depth).reversed())
        generator = plan.seed &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(setup.index) &+ 1
        let all = UInt64(plan.spanBytes / plan.blockBytes)
        let isApart = plan.order == .sequential
        blocks = isApart ? all / UInt64(plan.queues) : all
        firstBlock = isApart ? blocks * UInt64(setup.index) : 0
    }

    static func now() -> UInt64 {
        var time = timespec()
        // SAFETY: a local variable.
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    private mutating func random() -> UInt64 {
        generator ^= generator << 13
        generator ^= generator >> 7
        generator ^= generator << 17
        return generator
    }

    /// The next place; nil when there is none left.
    private mutating func place() -> UInt64? {
        switch plan.order {
        case .random: return random() % blocks * UInt64(plan.blockBytes)
        case .sequential:
            defer { nextPlace = UInt64(nextPlace + 1) == blocks ? 0 : nextPlace + 1 }
            return (firstBlock + UInt64(nextPlace)) * UInt64(plan.blockBytes)
        case .touch:
            guard nextPlace < places.count else { return nil }
            defer { nextPlace += 1 }
            return places[nextPlace]
        }
    }

    /// Fills all free slots; false when there is nothing more to do.
    private mutating func fill(_ now: UInt64) -> Bool {
        while let slot = freeSlots.popLast() {
            guard let place = place() else {
                freeSlots.append(slot)
                break
            }
            let isRead = plan.readShare > 0 && Int(random() >> 33 % 100) < plan.readShare
            queue.stage(slot, isRead: isRead, offset: place)
            started[slot] = now
            if isRead { result.reads += 1 } else { result.writes += 1 }
        }
        if queue.publish() { result.kicks += 1 }
        return freeSlots.count < plan.depth
    }

    /// Takes all answers.
    private mutating func collect(_ now: UInt64) {
        while let (slot, status) = queue.next() {
            result.latencies.add(now - started[slot])
            if status != 0 { result.errors += 1 }
            freeSlots.append(slot)
        }
        if plan.wait == .poll { queue.suppressCalls() }
    }

    /// Runs until its time is over, or all is done.
    consuming func run() -> WorkerResult {
        let begun = Self.now()
        let end = begun + UInt64(plan.seconds * 1e9)
        queue.suppressCalls()
        var now = begun
        var isOver = !fill(now)
        while !isOver || freeSlots.count < plan.depth {
            if plan.wait == .poll {
                queue.spin()
            } else if !queue.hasAnswers, queue.sleep() {
                result.sleeps += 1
            }
            now = Self.now()
            collect(now)
            if !isOver {
                // What touches every place once takes the time that it needs.
                isOver = plan.order != .touch && now >= end
                if !isOver { isOver = !fill(now) }
            }
        }
        result.seconds = Double(now - begun) / 1e9
        return result
    }
}
