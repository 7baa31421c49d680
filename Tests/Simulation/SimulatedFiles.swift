package import SystemLayer
package import TrackingFiles

/// A file as everyone sees it, and as it is after a loss of power.
struct FileContent {
    var bytes: [UInt8] = []
    private var durable: [UInt8] = []
    private var dirty: [Range<Int>] = []
    private var doomed: [Range<Int>] = []
    /// The next sync reports a failed write-back, once.
    private var owesError = false

    init(reserving count: Int) {
        bytes = [UInt8](repeating: 0, count: count)
        durable = bytes
    }

    mutating func write(_ new: [UInt8], at start: Int, isLost: Bool) {
        let range = start..<start + new.count
        if bytes.count < range.upperBound {
            bytes += [UInt8](repeating: 0, count: range.upperBound - bytes.count)
        }
        bytes.replaceSubrange(range, with: new)
        if isLost { doomed.append(range) } else { dirty.append(range) }
    }

    private mutating func settle(_ range: Range<Int>) {
        if durable.count < range.upperBound {
            durable += [UInt8](repeating: 0, count: range.upperBound - durable.count)
        }
        durable.replaceSubrange(range, with: bytes[range])
    }

    /// Writes back everything; false when something was lost since the last call.
    mutating func sync(losesAll: Bool = false) -> Bool {
        if losesAll {
            doomed += dirty
            dirty = []
        }
        for range in dirty { settle(range) }
        if !doomed.isEmpty { owesError = true }
        dirty = []
        doomed = []
        defer { owesError = false }
        return !owesError
    }

    /// The power goes: of what was dirty each write was kept, lost, or torn.
    mutating func losePower(_ draw: inout Draw) {
        for range in dirty {
            switch draw.below(3) {
            case 0: settle(range)
            case 1: settle(range.lowerBound..<min(range.upperBound, range.lowerBound + 512))
            default: break
            }
        }
        dirty = []
        doomed = []
        owesError = false
        bytes = durable
    }

    /// The file system is unmounted and mounted again: what was lost is gone from the cache, too.
    mutating func dropCache() { bytes = durable }
}

/// A file, whatever its name.
final class Inode {
    var content: FileContent
    /// Its number in the world, once it has one.
    var number: Int?

    init(reserving count: Int) { content = FileContent(reserving: count) }
}

/// The files of a simulated directory: names as everyone sees them, and as they are after a loss of
/// power.
package final class FileTable {
    package init() {}

    private(set) var names: [String: Inode] = [:]
    private var durableNames: [String: Inode] = [:]

    func inode(_ name: String) -> Inode? { names[name] }
    var sortedNames: [String] { names.keys.sorted() }

    func create(_ name: String, reserving count: Int) -> Inode {
        let inode = Inode(reserving: count)
        names[name] = inode
        return inode
    }

    /// False when there is no such file.
    func rename(_ from: String, to: String) -> Bool {
        guard let inode = names.removeValue(forKey: from) else { return false }
        names[to] = inode
        return true
    }

    func remove(_ name: String) { names[name] = nil }

    func syncNames() { durableNames = names }

    /// Each name that is not durable is kept or lost.
    package func losePower(_ draw: inout Draw) {
        for name in Set(names.keys).union(durableNames.keys).sorted() where draw.chance(50) {
            durableNames[name] = names[name]
        }
        names = durableNames
        for name in sortedNames { names[name]?.content.losePower(&draw) }
    }

    /// Unmounted and mounted again in good order, as far as storage took what it was given.
    func remount() {
        for name in sortedNames {
            _ = names[name]?.content.sync()
            names[name]?.content.dropCache()
        }
        durableNames = names
    }

    /// The machine forgets it.
    package func forget() {
        names = [:]
        durableNames = [:]
    }
}

/// The world around simulated files.
package protocol FileWorld: AnyObject {
    /// Counts the processes that have served.
    var process: Int { get }
    func isAlive(_ process: Int) -> Bool
    /// What goes wrong with the next I/O at a place.
    func nextFault(_ place: Place) -> Fault?
    /// Others go first, now and then or in any case.
    func dawdle()
    func pause()
    /// The call is not answered before its place is healed, or never; whether it goes on.
    func hang(forEver: Bool) -> Bool
    /// A disk's tracking directory, or the one in memory.
    func table(of disk: Int, isMemory: Bool) -> FileTable
    func markText(of disk: Int) -> String?
    func setMarkText(_ text: String, of disk: Int)
    /// A rule that is broken on purpose: what a sync reports is not passed on.
    var hidesErrors: Bool { get }
}

/// What objects of production code can find a world's files by.
package final class FileStage {
    unowned let world: any FileWorld
    private var inodes: [Inode] = []

    package init(_ world: any FileWorld) { self.world = world }

    /// Numbers a file for those who may only know it by a number.
    func number(_ inode: Inode?) -> Int {
        guard let inode else { preconditionFailure("a file that was just made") }
        if let known = inode.number { return known }
        inode.number = inodes.count
        inodes.append(inode)
        return inodes.count - 1
    }

    func inode(_ number: Int) -> Inode { inodes[number] }
}

/// Finds the stage from objects that production code passes from thread to thread.
///
/// A history runs on one thread, and its world outlives everything in it.
struct StageReference: Sendable {
    private let address: UInt

    init(_ stage: FileStage) {
        // SAFETY: only turned back into the object, by `stage`.
        address = unsafe UInt(bitPattern: Unmanaged.passUnretained(stage).toOpaque())
    }

    var stage: FileStage {
        guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else {
            preconditionFailure("an object is never at zero")
        }
        // SAFETY: the stage outlives its directories and files.
        return unsafe Unmanaged<FileStage>.fromOpaque(pointer).takeUnretainedValue()
    }

    var world: any FileWorld { stage.world }
}

/// A directory of one disk's tracking, as production code sees it.
package final class SimulatedDirectory: TrackedDirectory {
    package let path: String
    let disk: Int
    /// Whether it is the one in memory.
    let isMemory: Bool
    /// The process that uses it: a dead one writes nothing.
    private let process: Int
    private let reference: StageReference

    package init(_ path: String, disk: Int, isMemory: Bool, _ stage: FileStage) {
        self.path = path
        self.disk = disk
        self.isMemory = isMemory
        process = stage.world.process
        reference = StageReference(stage)
    }

    private var world: any FileWorld { reference.world }
    var table: FileTable { world.table(of: disk, isMemory: isMemory) }

    /// What goes wrong with a call; throws when the process is gone or never hears of it.
    ///
    /// Others may go first, where storage may take its time.
    func fault(mayPause: Bool) throws(SystemFault) -> Fault? {
        let place: Place = isMemory ? .memory(disk) : .state(disk)
        guard world.isAlive(process) else { throw SystemFault(call: "read", errno: 5) }
        switch world.nextFault(place) {
        case .fails(let errno): throw SystemFault(call: "call", errno: errno)
        case .hangs(let forEver):
            guard !isMemory, mayPause, world.hang(forEver: forEver), world.isAlive(process) else {
                throw SystemFault(call: "call", errno: 5)
            }
            return nil
        case .delays:
            if mayPause, !isMemory { world.pause() }
        case let other:
            if mayPause, !isMemory { world.dawdle() }
            guard world.isAlive(process) else { throw SystemFault(call: "call", errno: 5) }
            return other
        }
        guard world.isAlive(process) else { throw SystemFault(call: "call", errno: 5) }
        return nil
    }

    /// A change of names, which may be made although an error is told.
    private func change(
        mayPause: Bool = false, _ body: () throws(SystemFault) -> Void
    ) throws(SystemFault) {
        let fault = try fault(mayPause: mayPause)
        try body()
        if case .failsDone(let errno) = fault { throw SystemFault(call: "call", errno: errno) }
    }

    package func make() throws(SystemFault) { _ = try fault(mayPause: false) }
    package func names() throws(SystemFault) -> [String] {
        _ = try fault(mayPause: true)
        return table.sortedNames
    }
    package func open(_ name: String, writable: Bool) throws(SystemFault) -> any TrackedFile {
        _ = try fault(mayPause: true)
        guard table.inode(name) != nil else {
            throw SystemFault(call: "open", errno: Errno.notFound)
        }
        return SimulatedFile(reference.stage.number(table.inode(name)), self, reference)
    }
    package func create(_ name: String, reserving: UInt64) throws(SystemFault) -> any TrackedFile {
        var inode: Inode?
        try change(mayPause: true) { () throws(SystemFault) in
            inode = table.create(name, reserving: Int(reserving))
        }
        return SimulatedFile(reference.stage.number(inode), self, reference)
    }
    // Names are changed under locks of the production's: nobody goes first there.
    package func rename(_ from: String, to: String) throws(SystemFault) {
        try change { () throws(SystemFault) in
            guard table.rename(from, to: to) else {
                throw SystemFault(call: "rename", errno: Errno.notFound)
            }
        }
    }
    package func remove(_ name: String) throws(SystemFault) {
        try change { () throws(SystemFault) in table.remove(name) }
    }
    package func sync() throws(SystemFault) {
        try change(mayPause: true) { () throws(SystemFault) in table.syncNames() }
    }
    package func removeIfEmpty() throws(SystemFault) {}
}

/// An open file of a simulated directory.
final class SimulatedFile: TrackedFile {
    private let number: Int
    private let directory: SimulatedDirectory
    private let reference: StageReference

    init(_ number: Int, _ directory: SimulatedDirectory, _ reference: StageReference) {
        self.number = number
        self.directory = directory
        self.reference = reference
    }

    private var inode: Inode { reference.stage.inode(number) }

    func sizeBytes() throws(SystemFault) -> UInt64 { UInt64(inode.content.bytes.count) }

    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8] {
        _ = try directory.fault(mayPause: true)
        let bytes = inode.content.bytes
        let start = min(Int(position), bytes.count)
        return Array(bytes[start..<min(start + count, bytes.count)])
    }

    func data(from position: UInt64) throws(SystemFault) -> UInt64? {
        position < UInt64(inode.content.bytes.count) ? position : nil
    }

    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault) {
        let fault = try directory.fault(mayPause: true)
        inode.content.write(bytes, at: Int(position), isLost: fault == .losesLater)
        if case .failsDone(let errno) = fault { throw SystemFault(call: "pwrite", errno: errno) }
    }

    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count * 8)
        for index in first..<first + count {
            let word = words[index]
            for byte in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(8 * byte))) }
        }
        try write(bytes, at: position)
    }

    func sync() throws(SystemFault) {
        let fault = try directory.fault(mayPause: true)
        let isKept = inode.content.sync(losesAll: fault == .losesLater)
        if case .failsDone(let errno) = fault { throw SystemFault(call: "fdatasync", errno: errno) }
        // Reported once; from then on all is said to be well.
        guard isKept || reference.world.hidesErrors else {
            throw SystemFault(call: "fdatasync", errno: 5)
        }
    }

    /// A sync whose error is not passed on, for drivers that break a rule.
    func syncAgain() { _ = inode.content.sync() }
}

/// The attribute of a disk's source.
package final class SimulatedMark: SourceMark {
    package let isLasting: Bool
    private let disk: Int
    private let process: Int
    private let reference: StageReference

    package init(disk: Int, isLasting: Bool, _ stage: FileStage) {
        self.disk = disk
        self.isLasting = isLasting
        process = stage.world.process
        reference = StageReference(stage)
    }

    private func fault() throws(SystemFault) -> Fault? {
        guard reference.world.isAlive(process) else { throw SystemFault(call: "call", errno: 5) }
        let fault = reference.world.nextFault(.mark(disk))
        switch fault {
        case .fails(let errno): throw SystemFault(call: "fsetxattr", errno: errno)
        case .hangs: throw SystemFault(call: "fsetxattr", errno: 5)
        default: return fault
        }
    }

    package func read() throws(SystemFault) -> String? {
        _ = try fault()
        return reference.world.markText(of: disk)
    }

    package func write(_ text: String) throws(SystemFault) {
        let fault = try fault()
        reference.world.setMarkText(text, of: disk)
        if case .failsDone(let errno) = fault { throw SystemFault(call: "fsync", errno: errno) }
    }
}
