import Synchronization
import SystemLayer
import TrackingFiles

/// What goes wrong at one call of simulated storage.
enum StorageFault: Hashable, CaseIterable {
    /// The call fails and does nothing.
    case fails
    /// The call fails although it was done.
    case failsDone
    /// A write succeeds; its data are lost on the way, which the next sync reports, once.
    case losesLater
    /// A sync fails once, and what it was to make durable is lost.
    case syncLoses
    /// Every call of the directory fails from here on (read-only, full, gone).
    case failsFromHere
    /// Every call never returns from here on, or the process dies: nothing is done any more.
    case stops
}

/// Counts the calls of a session over all its places, and lets one of them go wrong.
final class FaultPlan: Sendable {
    private struct State {
        var calls = 0
        var at: Int?
        var fault = StorageFault.fails
        var isStopped = false
        var failing: Set<String> = []
    }
    private let state = Mutex(State())

    /// Calls so far.
    var calls: Int { state.withLock { $0.calls } }
    var isStopped: Bool { state.withLock { $0.isStopped } }

    /// The call of this number goes wrong from now on, counted from here; nil: none.
    func set(_ fault: StorageFault, at call: Int?) {
        state.withLock {
            $0 = State()
            $0.at = call
            $0.fault = fault
        }
    }

    /// The storage works again.
    func heal() { set(.fails, at: nil) }

    /// Whether this call goes wrong, and how.
    func next(_ place: String) -> StorageFault? {
        state.withLock { state in
            if state.isStopped { return .stops }
            if state.failing.contains(place) { return .fails }
            state.calls += 1
            guard state.calls - 1 == state.at else { return nil }
            switch state.fault {
            case .stops: state.isStopped = true
            case .failsFromHere:
                state.failing.insert(place)
                return .fails
            default: break
            }
            return state.fault
        }
    }
}

/// A file as the page cache has it, and as the device has it.
struct SimulatedContent {
    var cached: [UInt8] = []
    var durable: [UInt8] = []
    var dirty: [Range<Int>] = []
    var doomed: [Range<Int>] = []
    var hasError = false

    private mutating func settle(_ ranges: [Range<Int>]) {
        for range in ranges {
            if durable.count < range.upperBound {
                durable += [UInt8](repeating: 0, count: range.upperBound - durable.count)
            }
            durable.replaceSubrange(range, with: cached[range])
        }
    }

    mutating func write(_ bytes: [UInt8], at start: Int, isLost: Bool) {
        let range = start..<start + bytes.count
        if cached.count < range.upperBound {
            cached += [UInt8](repeating: 0, count: range.upperBound - cached.count)
        }
        cached.replaceSubrange(range, with: bytes)
        if isLost { doomed.append(range) } else { dirty.append(range) }
    }

    /// Writes back all that is dirty; what is doomed is lost, and the error waits to be reported.
    mutating func writeBack() {
        settle(dirty)
        if !doomed.isEmpty { hasError = true }
        dirty = []
        doomed = []
    }

    /// The power goes: of what was dirty each piece may have been kept.
    mutating func losePower(_ keeps: () -> Bool) {
        settle(dirty.filter { _ in keeps() })
        dirty = []
        doomed = []
        hasError = false
        cached = durable
    }
}

/// A file of a simulated directory, whatever its name.
final class SimulatedInode: Sendable {
    let content: Mutex<SimulatedContent>
    init(reserving bytes: Int = 0) {
        var content = SimulatedContent()
        content.cached = [UInt8](repeating: 0, count: bytes)
        content.durable = content.cached
        self.content = Mutex(content)
    }
}

/// A file of simulated storage.
final class SimulatedFile: TrackedFile {
    let inode: SimulatedInode
    let directory: SimulatedDirectory

    init(_ inode: SimulatedInode, _ directory: SimulatedDirectory) {
        self.inode = inode
        self.directory = directory
    }

    func sizeBytes() throws(SystemFault) -> UInt64 {
        UInt64(inode.content.withLock { $0.cached.count })
    }

    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8] {
        if directory.fault() != nil { throw SystemFault(call: "pread", errno: 5) }
        return inode.content.withLock { content in
            let start = min(Int(position), content.cached.count)
            return Array(content.cached[start..<min(start + count, content.cached.count)])
        }
    }

    func data(from position: UInt64) throws(SystemFault) -> UInt64? {
        position < (try sizeBytes()) ? position : nil
    }

    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault) {
        let fault = directory.fault()
        if fault == .fails || fault == .stops || fault == .syncLoses {
            throw SystemFault(call: "pwrite", errno: 28)
        }
        inode.content.withLock {
            $0.write(bytes, at: Int(position), isLost: fault == .losesLater)
        }
        if fault == .failsDone { throw SystemFault(call: "pwrite", errno: 5) }
    }

    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        var bytes: [UInt8] = []
        for index in first..<first + count {
            for byte in 0..<8 {
                bytes.append(UInt8(truncatingIfNeeded: words[index] >> UInt64(8 * byte)))
            }
        }
        try write(bytes, at: position)
    }

    func sync() throws(SystemFault) {
        let fault = directory.fault()
        let failure = SystemFault(call: "fdatasync", errno: 5)
        if fault == .fails || fault == .stops { throw failure }
        let hasError = inode.content.withLock { content in
            if fault == .syncLoses {
                content.dirty = []
                content.doomed = []
            }
            content.writeBack()
            // Reported once; from then on all is said to be well.
            defer { content.hasError = false }
            return content.hasError
        }
        if fault == .failsDone || fault == .syncLoses { throw failure }
        if hasError, !directory.hidesErrors { throw failure }
    }
}

/// A directory of simulated storage.
final class SimulatedDirectory: TrackedDirectory {
    private struct State {
        var entries: [String: SimulatedInode] = [:]
        var durableEntries: [String: SimulatedInode] = [:]
    }
    let path: String
    let plan: FaultPlan
    /// A driver that does not look at what syncs say.
    let hidesErrors: Bool
    private let state = Mutex(State())

    init(_ path: String, _ plan: FaultPlan, hidesErrors: Bool = false) {
        self.path = path
        self.plan = plan
        self.hidesErrors = hidesErrors
    }

    private var entries: [String: SimulatedInode] {
        get { state.withLock { $0.entries } }
        set { state.withLock { $0.entries = newValue } }
    }
    private var durableEntries: [String: SimulatedInode] {
        get { state.withLock { $0.durableEntries } }
        set { state.withLock { $0.durableEntries = newValue } }
    }

    func fault() -> StorageFault? { plan.next(path) }

    private func change(
        _ call: String, _ body: () throws(SystemFault) -> Void
    ) throws(SystemFault) {
        let fault = fault()
        if fault == .fails || fault == .stops { throw SystemFault(call: call, errno: 30) }
        try body()
        if fault == .failsDone || fault == .syncLoses { throw SystemFault(call: call, errno: 5) }
    }

    func make() throws(SystemFault) {}
    func names() throws(SystemFault) -> [String] {
        if fault() != nil { throw SystemFault(call: "readdir", errno: 5) }
        return entries.keys.sorted()
    }
    func open(_ name: String, writable: Bool) throws(SystemFault) -> any TrackedFile {
        let fault = fault()
        if fault == .fails || fault == .stops { throw SystemFault(call: "open", errno: 24) }
        guard let inode = entries[name] else {
            throw SystemFault(call: "open", errno: Errno.notFound)
        }
        return SimulatedFile(inode, self)
    }
    func create(_ name: String, reserving: UInt64) throws(SystemFault) -> any TrackedFile {
        let inode = SimulatedInode(reserving: Int(reserving))
        try change("open") { () throws(SystemFault) in entries[name] = inode }
        return SimulatedFile(inode, self)
    }
    func rename(_ from: String, to: String) throws(SystemFault) {
        try change("rename") { () throws(SystemFault) in
            guard let inode = entries.removeValue(forKey: from) else {
                throw SystemFault(call: "rename", errno: Errno.notFound)
            }
            entries[to] = inode
        }
    }
    func remove(_ name: String) throws(SystemFault) {
        try change("unlink") { () throws(SystemFault) in entries[name] = nil }
    }
    func sync() throws(SystemFault) {
        try change("fsync") { () throws(SystemFault) in durableEntries = entries }
    }

    func removeIfEmpty() throws(SystemFault) {}

    // MARK: What happens to it

    /// Unmounted and mounted again; `keeps` says whether what was dirty reached the device.
    func remount(keeps: Bool) {
        if keeps {
            for inode in entries.values { inode.content.withLock { $0.writeBack() } }
            durableEntries = entries
        }
        entries = durableEntries
        for inode in entries.values { inode.content.withLock { $0.losePower { false } } }
    }

    /// The machine forgets it.
    func forget() { entries = [:] }

    func losePower(_ keeps: () -> Bool) {
        // Names are kept or lost one by one, each in any of its states since the last sync.
        for name in Set(entries.keys).union(durableEntries.keys) where keeps() {
            durableEntries[name] = entries[name]
        }
        entries = durableEntries
        for inode in entries.values { inode.content.withLock { $0.losePower(keeps) } }
    }
}

/// An extended attribute of simulated storage.
final class SimulatedMark: SourceMark {
    let plan: FaultPlan
    let isLasting: Bool
    private let noted = Mutex<String?>(nil)
    var text: String? {
        get { noted.withLock { $0 } }
        set { noted.withLock { $0 = newValue } }
    }

    init(_ plan: FaultPlan, isLasting: Bool) {
        self.plan = plan
        self.isLasting = isLasting
    }

    func read() throws(SystemFault) -> String? {
        if plan.next("source") != nil { throw SystemFault(call: "fgetxattr", errno: 5) }
        return text
    }

    func write(_ new: String) throws(SystemFault) {
        let fault = plan.next("source")
        if fault == .fails || fault == .stops { throw SystemFault(call: "fsetxattr", errno: 28) }
        text = new
        if fault != nil { throw SystemFault(call: "fsync", errno: 5) }
    }
}
