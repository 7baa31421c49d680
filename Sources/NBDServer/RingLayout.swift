/// What a ring is for.
enum RingDuty: Sendable, Hashable {
    /// The machines' own disks: their clients, their changes, and the copies these wait for.
    case guests
    /// Clients of jobs.
    case backups
}

/// Which rings serve machines and which serve backup clients.
///
/// They are different threads, so that the scheduler can tell them apart: when processors are short
/// a machine's disk goes before its backup. A client of a job can be served by any ring, since it
/// only reads ledgers, and talks to the disk's home ring by messages.
struct RingLayout: Sendable, Hashable {
    private let guests: Int
    private let backups: Int

    /// So many rings of each kind; without jobs none for backups.
    init(rings: Int, servesJobs: Bool) {
        guests = rings
        backups = servesJobs ? rings : 0
    }

    /// Pipes that a ring may make: the two kinds share what a ring without jobs has alone.
    var pipesPerRing: Int { backups > 0 ? Limits.pipesPerRing / 2 : Limits.pipesPerRing }

    /// Descriptors that all rings may have open, those of connections and disks apart.
    var descriptorsMax: Int { count * (Limits.descriptorsPerRing + 2 * pipesPerRing) }

    /// All rings.
    var count: Int { guests + backups }

    /// The rings of a kind, at least one.
    func rings(for duty: RingDuty) -> Range<Int> {
        duty == .backups && backups > 0 ? guests..<count : 0..<guests
    }

    /// What debuggers and `top -H` call the ring's thread: at most 15 bytes.
    func threadName(of ring: Int) -> String {
        ring < guests ? "nbdpull-ring-\(ring)" : "nbdpull-job-\(ring - guests)"
    }

    /// What a ring is for.
    func duty(of ring: Int) -> RingDuty { ring < guests ? .guests : .backups }
}
