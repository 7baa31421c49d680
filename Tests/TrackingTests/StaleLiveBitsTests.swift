import Synchronization
import SystemLayer
import Testing
import Tracking
import TrackingFiles

/// Memory that refuses every change for a while.
private final class StubbornMemory: TrackedDirectory {
    private let directory: DiskDirectory
    let isBroken = Atomic<Bool>(false)
    var path: String { directory.path }

    init(_ path: String) { directory = DiskDirectory(path) }

    fileprivate func change() throws(SystemFault) {
        if isBroken.load(ordering: .relaxed) { throw SystemFault(call: "call", errno: 30) }
    }

    func make() throws(SystemFault) { try directory.make() }
    func names() throws(SystemFault) -> [String] { try directory.names() }
    func open(_ name: String, writable: Bool) throws(SystemFault) -> any TrackedFile {
        StubbornFile(try directory.open(name, writable: writable), self)
    }
    func create(_ name: String, reserving: UInt64) throws(SystemFault) -> any TrackedFile {
        try change()
        return StubbornFile(try directory.create(name, reserving: reserving), self)
    }
    func rename(_ from: String, to: String) throws(SystemFault) {
        try change()
        try directory.rename(from, to: to)
    }
    func remove(_ name: String) throws(SystemFault) {
        try change()
        try directory.remove(name)
    }
    func sync() throws(SystemFault) { try directory.sync() }
    func removeIfEmpty() throws(SystemFault) {}
}

private final class StubbornFile: TrackedFile {
    private let file: any TrackedFile
    private let memory: StubbornMemory

    init(_ file: any TrackedFile, _ memory: StubbornMemory) {
        self.file = file
        self.memory = memory
    }

    func sizeBytes() throws(SystemFault) -> UInt64 { try file.sizeBytes() }
    func read(at position: UInt64, count: Int) throws(SystemFault) -> [UInt8] {
        try file.read(at: position, count: count)
    }
    func data(from position: UInt64) throws(SystemFault) -> UInt64? {
        try file.data(from: position)
    }
    func write(_ bytes: [UInt8], at position: UInt64) throws(SystemFault) {
        try memory.change()
        try file.write(bytes, at: position)
    }
    func write(
        _ words: LazyWords, first: Int, count: Int, at position: UInt64
    ) throws(SystemFault) {
        try memory.change()
        try file.write(words, first: first, count: count, at: position)
    }
    func sync() throws(SystemFault) { try file.sync() }
}

/// Found by the simulator: what an attempt at a checkpoint could not remove was the next one's live
/// file.
@Suite struct StaleLiveBitsTests {
    @Test(
        "P3: a checkpoint is refused while an earlier attempt's live bits can be taken for its own")
    func stale() throws {
        let world = try TrackingWorld()
        let memory = StubbornMemory(world.directory + "-stubborn")
        let places = TrackingPlaces(
            files: DiskDirectory(world.directory), memory: memory, isInMemory: true, mark: nil,
            bootID: "boot 0")
        defer {
            for name in (try? memory.names()) ?? [] { try? memory.remove(name) }
            try? DiskDirectory(memory.path).removeIfEmpty()
        }
        var store = try TrackingStore.open(
            places, source: world.source, granularityBytes: TrackingWorld.granularityBytes)
        let attempt = try store.prepareNext()
        memory.isBroken.store(true, ordering: .relaxed)
        store.abandon(attempt)
        #expect(throws: TrackingFault.self) { try store.prepareNext() }
        memory.isBroken.store(false, ordering: .relaxed)
        let next = try store.prepareNext()
        try store.seal(checkpoint: "c", next: next)
        #expect(next.mark(offset: 0, length: 1))
        // The process is killed: the next one has every change since the checkpoint.
        let after = try TrackingStore.open(
            places, source: world.source, granularityBytes: TrackingWorld.granularityBytes)
        let answer = try after.union(since: "c", recording: after.recording.snapshot())
        #expect(answer.isDirty(0) && answer.dirtyCount == 1)
    }
}
