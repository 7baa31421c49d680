/// Where I/O goes: everything that can break by itself.
package enum Place: Hashable, Sendable {
    case source(Int)
    case scratch(job: Int, disk: Int)
    /// The disk's tracking directory.
    case state(Int)
    /// The disk's directory in memory.
    case memory(Int)
    /// The attribute of the disk's source.
    case mark(Int)
}

/// How a place behaves until it is healed.
package enum Condition: Hashable, Sendable {
    case fails(Int32)
    /// Nothing is answered until the place is healed.
    case hangs
    /// Nothing that is begun is ever answered.
    case hangsForEver
    /// Writes succeed and are lost on the way.
    case loses
}

/// What becomes of one I/O.
package enum Fault: Hashable, Sendable {
    /// It fails and does nothing.
    case fails(Int32)
    /// It fails although all or some of it was done.
    case failsDone(Int32)
    case hangs(forEver: Bool)
    /// It succeeds; what it wrote is lost on the way, which the next sync reports, once.
    case losesLater
    /// It comes long after everything else.
    case delays
}

/// Decides which I/O goes wrong.
package struct Faults {
    /// A fault at one I/O of a scenario, for sweeps.
    package struct Plan {
        /// Counted from zero over all places.
        package var at: Int
        package var fault: Fault
        /// Every later I/O of the same place has it, too.
        package var stays: Bool

        package init(at: Int, fault: Fault, stays: Bool) {
            self.at = at
            self.fault = fault
            self.stays = stays
        }
    }

    package init() {}

    package private(set) var conditions: [Place: Condition] = [:]
    /// I/Os so far.
    package private(set) var count = 0
    package var plan: Plan?
    private var stuckPlace: Place?
    /// The planned fault has come.
    package private(set) var isReached = false
    /// Faults may come; false: storage works.
    package var areOn = true

    package mutating func set(_ condition: Condition?, at place: Place) {
        conditions[place] = condition
    }

    /// Counts from here on, to the I/O that is to go wrong.
    package mutating func begin(_ plan: Plan) {
        self.plan = plan
        count = 0
        isReached = false
        stuckPlace = nil
    }

    /// Storage works from now on, as far as it answers.
    package mutating func stop() {
        areOn = false
        conditions = [:]
        plan = nil
        stuckPlace = nil
    }

    /// Places that do not work, in a fixed order.
    package var broken: [Place] {
        conditions.keys.sorted { "\($0)" < "\($1)" }
    }

    package func hangs(_ place: Place) -> Bool {
        conditions[place] == .hangs || conditions[place] == .hangsForEver
    }

    /// What goes wrong with the next I/O at a place; nil: nothing.
    package mutating func next(_ place: Place, rate: Int, _ draw: inout Draw) -> Fault? {
        guard areOn else { return nil }
        count += 1
        if let planned = planned(place) { return planned }
        switch conditions[place] {
        case .fails(let errno): return .fails(errno)
        case .hangs: return .hangs(forEver: false)
        case .hangsForEver: return .hangs(forEver: true)
        case .loses: return draw.chance(50) ? .losesLater : nil
        case nil: break
        }
        guard rate > 0, draw.below(1000) < rate else { return nil }
        let errno = Self.errnos[draw.below(Self.errnos.count)]
        switch draw.below(6) {
        case 0, 1: return .fails(errno)
        case 2: return .failsDone(errno)
        case 3: return .losesLater
        case 4: return .delays
        default: return .hangs(forEver: draw.chance(50))
        }
    }

    private mutating func planned(_ place: Place) -> Fault? {
        guard let plan else { return nil }
        if place == stuckPlace { return plan.fault }
        guard count - 1 == plan.at else { return nil }
        isReached = true
        if plan.stays { stuckPlace = place }
        return plan.fault
    }

    /// EIO, ENOSPC, EROFS.
    package static let errnos: [Int32] = [5, 28, 30]
}
