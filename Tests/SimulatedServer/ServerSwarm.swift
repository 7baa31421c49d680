import Simulation

/// What can happen in a step.
enum Happening: Int, CaseIterable, Sendable {
    case turn, kernel, goOn, work, tick, rest, control, watch
    case joinGuest, joinClient, talk, listen, ask, leave
    case beginJob, endJob, makeCheckpoint, deleteCheckpoint, grow
    case spoil, heal, loseScratch, loseSource, writeBack
    case kill, cutPower, cleanStop

    /// How often it comes, before a history has drawn its own mix.
    fileprivate var usual: Int {
        switch self {
        case .turn, .kernel: 120
        case .ask: 100
        case .talk, .listen, .goOn: 50
        case .work: 40
        case .control: 50
        case .joinClient: 12
        case .joinGuest: 8
        case .tick: 4
        case .beginJob: 8
        case .endJob, .leave, .spoil, .heal, .watch: 3
        case .loseScratch, .writeBack: 2
        case .makeCheckpoint: 4
        case .grow: 2
        case .loseSource, .kill, .cutPower, .cleanStop, .rest, .deleteCheckpoint: 1
        }
    }

    /// Whether a history can do without it.
    fileprivate var isOptional: Bool {
        switch self {
        case .spoil, .leave, .loseScratch, .loseSource, .writeBack, .endJob, .kill, .cutPower,
            .cleanStop, .rest, .deleteCheckpoint, .grow:
            true
        default: false
        }
    }
}

/// A history's own mix of what happens, of faults and sizes, drawn from its seed.
struct ServerSwarm: Sendable {
    var weights: [Int]
    var ringCount: Int
    /// Of each disk: over 1 where the page cache is bypassed.
    var alignments: [Int]
    /// An I/O goes wrong so many times of a thousand although its place is healthy.
    var faultRate: Int
    /// Percent: a read or write moves less than was asked; a call is interrupted; there is no
    /// descriptor.
    var shortRate: Int
    var interruptRate: Int
    var acceptFaultRate: Int
    /// Percent: the kernel goes on while a ring has its turn.
    var meanwhileRate: Int
    /// Connections that there are at once, and requests of each.
    var peerLimit: Int
    var depth: Int
    var maxConnections: Int
    var copyMemoryBytes: Int
    /// Clients of a job may let go of clusters.
    var releases: Bool
    /// Jobs outlive their process.
    var keepsJobs: Bool
    /// Changes are recorded.
    var tracks: Bool
    /// Of each disk: its guest is a machine that shares its memory.
    var sharesMemory: [Bool]

    init(seed: UInt64) {
        var draw = Draw(seed: seed ^ 0x5EED_0003)
        weights = Happening.allCases.map { happening in
            guard happening.isOptional else { return happening.usual }
            return [0, 0, happening.usual, happening.usual * 3][draw.below(4)]
        }
        ringCount = 1 + draw.below(2)
        alignments = (0..<1 + draw.below(3)).map { _ in draw.chance(30) ? 4096 : 1 }
        faultRate = draw.chance(50) ? 0 : 1 + draw.below(20)
        shortRate = draw.chance(50) ? 0 : 20
        interruptRate = draw.chance(60) ? 0 : 5
        acceptFaultRate = draw.chance(70) ? 0 : 30
        meanwhileRate = [0, 20, 60][draw.below(3)]
        peerLimit = draw.chance(80) ? 8 : 20
        depth = draw.chance(70) ? 12 : 100
        maxConnections = draw.chance(80) ? 40 : 4
        copyMemoryBytes = draw.chance(60) ? 8 << 20 : 32 << 10
        releases = draw.chance(30)
        keepsJobs = draw.chance(70)
        tracks = draw.chance(60)
        let mayShare = draw.chance(40)
        sharesMemory = alignments.map { _ in mayShare && draw.chance(70) }
        // A machine has no way to wait for others to leave.
        if sharesMemory.contains(true) { maxConnections = 40 }
    }
}
