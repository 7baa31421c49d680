/// What can happen in a step of a history.
package enum EventKind: Int, CaseIterable, Sendable {
    case guestWrite, guestDurableWrite, guestZero, guestDiscard, guestFlush
    case io, deliver, thread, tick, resume
    case beginJob, makeCheckpoint, deleteCheckpoint, endJob
    case startRead, moveReader, releaseClusters
    case spoil, heal, loseScratch, evictScratch, loseSource
    case kill, cutPower, cleanStop, start
    case changeMeanwhile, growMeanwhile, removeFile
    case checkTracking

    /// How often it comes, before a history has drawn its own mix.
    fileprivate var usual: Int {
        switch self {
        case .io: 300
        case .deliver: 130
        case .moveReader: 100
        case .guestWrite, .tick: 60
        case .thread: 50
        case .start: 40
        case .resume, .startRead: 30
        case .beginJob: 16
        case .makeCheckpoint, .checkTracking: 10
        case .guestZero, .guestFlush, .guestDurableWrite, .endJob, .spoil: 8
        case .loseScratch, .guestDiscard, .heal: 6
        case .deleteCheckpoint, .releaseClusters, .evictScratch, .cutPower: 4
        case .kill, .cleanStop, .loseSource: 3
        case .changeMeanwhile, .growMeanwhile, .removeFile: 2
        }
    }

    /// Whether a history can do without it.
    fileprivate var isOptional: Bool {
        switch self {
        case .io, .deliver, .thread, .tick, .resume, .start, .moveReader, .checkTracking: false
        default: true
        }
    }
}

/// A history's own mix of events, faults and sizes, drawn from its seed.
///
/// Histories that leave something out, or have much of it, reach states that an even mix never
/// does.
package struct Swarm: Sendable {
    var weights: [Int]
    var diskCount: Int
    var ringCount: Int
    var regions: Int
    /// Changes may share a block of the source.
    var hasBlocks: Bool
    /// The sources are files, whose time of change tells something.
    var isFile: Bool
    var jobsAtOnce: Int
    var slotLimit: UInt32
    /// The limits of jobs for held writes, in nanoseconds.
    var holdLimits: [UInt64]
    var zeroingPlaces: Int
    /// An I/O goes wrong so many times of a thousand although its place is healthy.
    var faultRate: Int
    /// A read or write moves less than was asked so many times of a hundred.
    var shortRate: Int
    /// A call of the state directory lets others go first so many times of a hundred.
    var pauseRate: Int
    /// The log has been cleared when the history begins.
    var startsCalm: Bool
    /// Clients of a job may let go of clusters.
    var releases: Bool
    /// Jobs outlive a process that is killed.
    var keepsJobs: Bool
    /// What is spoilt is the state's storage, which loses what it took.
    var losesState = false

    package init(seed: UInt64) {
        var draw = Draw(seed: seed ^ 0x5EED_0F5E_ED00_0001)
        weights = EventKind.allCases.map { kind in
            guard kind.isOptional else { return kind.usual }
            switch draw.below(10) {
            case 0...3: return 0
            case 4...7: return kind.usual
            default: return kind.usual * 4
            }
        }
        diskCount = 1 + draw.below(3)
        ringCount = 1 + draw.below(2)
        regions = 1 + draw.below(3)
        hasBlocks = draw.chance(30)
        isFile = draw.chance(50)
        jobsAtOnce = 1 + draw.below(3)
        slotLimit = draw.chance(25) ? UInt32(2 + draw.below(8)) : 1000
        let limits: [UInt64] = [500, 1000, 5000]
        holdLimits = (0..<3).map { _ in limits[draw.below(3)] * 1_000_000 }
        zeroingPlaces = 1 + draw.below(3)
        faultRate = draw.chance(50) ? 0 : 1 + draw.below(40)
        shortRate = draw.chance(50) ? 0 : 20
        pauseRate = draw.chance(50) ? 0 : 5 + draw.below(20)
        releases = draw.chance(30)
        startsCalm = draw.chance(80)
        keepsJobs = draw.chance(70)
        if weights[EventKind.guestWrite.rawValue] == 0 {
            weights[EventKind.guestWrite.rawValue] = 20
        }
        focus(&draw)
    }

    /// Some histories are about one thing: readers against writers, or tracking over bad storage.
    private mutating func focus(_ draw: inout Draw) {
        switch draw.below(9) {
        case 0:
            multiply([(.startRead, 5), (.moveReader, 4), (.beginJob, 3), (.guestWrite, 2)])
            for kind in [EventKind.kill, .cutPower, .cleanStop] { weights[kind.rawValue] = 0 }
            regions = 1
        case 1:
            multiply([
                (.makeCheckpoint, 3), (.spoil, 3), (.heal, 3), (.cutPower, 3), (.kill, 2),
                (.thread, 3), (.tick, 2), (.guestWrite, 1),
            ])
            for kind in [EventKind.startRead, .moveReader, .beginJob] { weights[kind.rawValue] = 0 }
            pauseRate = 30
        case 2: focusOnLostScratch()
        case 3: if draw.chance(30) { focusOnLostState() } else { focusOnQuietLoss() }
        case 4: focusOnLeftJobs()
        case 5: focusOnGivingUp()
        case 6: focusOnSlowSeals()
        default: break
        }
    }

    /// Scratch loses what it took while clients read it.
    private mutating func focusOnLostScratch() {
        multiply([
            (.startRead, 5), (.moveReader, 4), (.beginJob, 6), (.guestWrite, 2),
            (.loseScratch, 4), (.evictScratch, 4), (.endJob, 1),
        ])
        for kind in [EventKind.kill, .cutPower, .cleanStop, .spoil] { weights[kind.rawValue] = 0 }
        regions = 1
        slotLimit = 1000
    }

    /// State storage loses what it took, between checkpoints and losses of power.
    private mutating func focusOnLostState() {
        multiply([
            (.makeCheckpoint, 2), (.spoil, 4), (.heal, 4), (.cutPower, 3), (.thread, 4),
            (.tick, 3), (.guestWrite, 1),
        ])
        for kind in [EventKind.startRead, .moveReader, .beginJob, .removeFile, .loseSource] {
            weights[kind.rawValue] = 0
        }
        losesState = true
        startsCalm = true
    }

    /// State storage loses what it took, and guests rest: nothing that is saved later makes up for
    /// it before the power goes.
    private mutating func focusOnQuietLoss() {
        weights = EventKind.allCases.map { $0.isOptional ? 0 : $0.usual }
        multiply([
            (.makeCheckpoint, 1), (.spoil, 3), (.heal, 6), (.cutPower, 2), (.thread, 6),
            (.tick, 5), (.deliver, 2), (.start, 2),
        ])
        weights[EventKind.guestWrite.rawValue] = 15
        (diskCount, regions, faultRate, pauseRate) = (1, 1, 0, 0)
        hasBlocks = false
        losesState = true
        startsCalm = true
    }

    /// Nothing can be said for a while of changes that are not recorded, until storage works again.
    private mutating func focusOnGivingUp() {
        weights = EventKind.allCases.map { $0.isOptional ? 0 : $0.usual }
        multiply([
            (.makeCheckpoint, 2), (.spoil, 6), (.heal, 8), (.cutPower, 3), (.thread, 4),
            (.tick, 3), (.deliver, 2), (.start, 2), (.guestWrite, 1),
        ])
        (diskCount, regions, faultRate, pauseRate) = (1, 1, 0, 0)
        (hasBlocks, isFile, startsCalm) = (false, false, true)
    }

    /// Checkpoints take their time, and the power goes before they are made.
    private mutating func focusOnSlowSeals() {
        weights = EventKind.allCases.map { $0.isOptional ? 0 : $0.usual }
        multiply([
            (.makeCheckpoint, 6), (.cutPower, 1), (.thread, 8), (.deliver, 3), (.start, 3),
            (.moveReader, 0),
            (.io, 2),
        ])
        weights[EventKind.resume.rawValue] = 8
        weights[EventKind.guestWrite.rawValue] = 12
        (diskCount, regions, faultRate, pauseRate) = (1, 1, 0, 15)
        (hasBlocks, startsCalm) = (false, true)
    }

    /// Processes are killed while jobs copy, and clients read on in the next one.
    private mutating func focusOnLeftJobs() {
        multiply([
            (.startRead, 4), (.moveReader, 4), (.beginJob, 4), (.guestWrite, 4), (.kill, 5),
            (.start, 4), (.deliver, 2),
        ])
        for kind in [EventKind.cutPower, .cleanStop, .endJob, .loseScratch, .removeFile] {
            weights[kind.rawValue] = 0
        }
        keepsJobs = true
        regions = 1
    }

    private mutating func multiply(_ factors: [(EventKind, Int)]) {
        for (kind, factor) in factors { weights[kind.rawValue] = kind.usual * factor }
    }
}
