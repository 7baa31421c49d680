import Foundation
import SystemLayer
import Tracking
import TrackingFiles
import UnitSupport

/// A disk's tracking files in a directory of their own, with an oracle of what each checkpoint
/// must answer.
///
/// Changes are marked as the home ring marks them; the disk itself need not exist.
final class TrackingWorld {
    enum Failure: Error { case message(String) }

    static let granularityBytes: UInt32 = 1 << 16
    static let blocksPerRegion = 1 << (27 - 16)

    let directory: String
    var source: SourceIdentity
    var store: TrackingStore?
    var bootID = "boot 0"
    /// Oldest first: everything written since the checkpoint.
    var oracle: [(name: String, blocks: DirtyBitmap)] = []
    var names = 0
    private var logGeneration = IntentLogFile.firstGeneration
    private(set) var marked: Set<Int> = []
    /// Stands for memory that outlives the process.
    private var memory: String { directory + "-memory" }

    init(sizeBytes: UInt64 = 6 << 27) throws {
        directory = NSTemporaryDirectory() + "nbdpull-tracking-" + UUID().uuidString
        source = SourceIdentity(
            path: "/disk.img", sizeBytes: sizeBytes, inode: 7, changedNanoseconds: 1)
        try open()
    }

    deinit {
        try? FileManager.default.removeItem(atPath: directory)
        try? FileManager.default.removeItem(atPath: memory)
    }

    var places: TrackingPlaces {
        TrackingPlaces(
            files: DiskDirectory(directory), memory: DiskDirectory(memory), isInMemory: true,
            mark: nil, bootID: bootID)
    }

    var blockCount: Int { Int((source.sizeBytes + 65_535) >> 16) }

    // MARK: Life

    func current() throws -> TrackingStore {
        guard let store else { throw Failure.message("the store is not open") }
        return store
    }

    func open() throws {
        store = try TrackingStore.open(
            places, source: source, granularityBytes: Self.granularityBytes)
        logGeneration = IntentLogFile.firstGeneration
        let log = try current().log
        marked = log.isAllMarked ? Set(0..<log.shape.regionCount) : []
    }

    /// The process dies: what lies in memory stays.
    func kill() { store = nil }

    func stopCleanly() throws {
        var closing = try current()
        closing.compressSealed()
        try closing.close(source: source)
        kill()
    }

    /// Power goes, and memory with it.
    func losePower() throws {
        kill()
        bootID += "+"
        try FileManager.default.removeItem(atPath: memory)
    }

    // MARK: Changes

    /// A change of the disk: recorded in `layer`, or where the store records.
    func change(_ blocks: Range<Int>, in layer: RecordingLayer? = nil) throws {
        let store = try current()
        let offset = UInt64(blocks.lowerBound) << 16
        let length = min(UInt64(blocks.upperBound) << 16, source.sizeBytes) - offset
        let regions = store.log.regions(touching: offset, length: length)
        if !marked.isSuperset(of: regions) {
            marked.formUnion(regions)
            try writeLog()
        }
        guard (layer ?? store.recording).mark(offset: offset, length: length) else {
            throw Failure.message("the live bits cannot be written")
        }
        for index in oracle.indices { oracle[index].blocks.mark(blocks) }
    }

    func changeSomewhere(
        _ generator: inout SplitMix64, in layer: RecordingLayer? = nil
    ) throws {
        let start = generator.below(blockCount)
        let count = 1 + generator.below(generator.below(4) == 0 ? 300 : 5)
        try change(start..<min(start + count, blockCount), in: layer)
    }

    private func writeLog() throws {
        let log = try current().log
        var words = [UInt64](repeating: 0, count: (log.shape.regionCount + 63) / 64)
        for region in marked { words[region >> 6] |= 1 << UInt64(region & 63) }
        logGeneration += 1
        try log.write(words, generation: logGeneration)
    }

    /// The bits become durable, and the log forgets its marks.
    func clearLog() throws {
        try current().recording.save()
        marked = []
        // Both slots count until they are written again.
        try writeLog()
        try writeLog()
    }

    // MARK: Checkpoints

    func freshName() -> String {
        names += 1
        return "c\(names)"
    }

    @discardableResult
    func checkpoint() throws -> String {
        let name = freshName()
        var sealing = try current()
        let next = try sealing.prepareNext()
        try sealing.seal(checkpoint: name, next: next)
        store = sealing
        oracle.append((name, DirtyBitmap(blockCount: blockCount)))
        return name
    }

    func delete(_ name: String) throws {
        var deleting = try current()
        let bits = try deleting.bitsToAdd(deleting: name)
        if let bits, !deleting.recording.formUnion(bits) {
            throw Failure.message("the live bits cannot be written")
        }
        try deleting.delete(checkpoint: name)
        store = deleting
        oracle.removeAll { $0.name == name }
    }

    // MARK: Answers

    func answer(_ name: String) throws -> DirtyBitmap {
        let store = try current()
        return try store.union(since: name, recording: store.recording.snapshot())
    }

    /// Names the checkpoints whose answer is not exactly the oracle's.
    func wrongAnswers() throws -> [String] {
        let found = try current().record.chain.checkpoints
        guard found == oracle.map(\.name) else { return ["the chain is \(found)"] }
        return try oracle.filter { try answer($0.name) != $0.blocks }.map(\.name)
    }

    /// Names the checkpoints that miss a change, or have more than the extra blocks.
    func wrongAnswers(allowing extra: DirtyBitmap) throws -> [String] {
        let found = try current().record.chain.checkpoints
        guard found == oracle.map(\.name) else { return ["the chain is \(found)"] }
        return try oracle.filter { checkpoint in
            let answer = try answer(checkpoint.name)
            var atLeast = answer
            atLeast.formUnion(checkpoint.blocks)
            var atMost = checkpoint.blocks
            atMost.formUnion(extra)
            let largest = atMost
            atMost.formUnion(answer)
            return atLeast != answer || atMost != largest
        }.map(\.name)
    }

    /// Takes today's answers for what must be answered from now on.
    func accept() throws {
        for index in oracle.indices { oracle[index].blocks = try answer(oracle[index].name) }
    }

    /// The blocks of all regions that the log marks.
    func markedBlocks() -> DirtyBitmap {
        var blocks = DirtyBitmap(blockCount: blockCount)
        for region in marked {
            let start = region * Self.blocksPerRegion
            blocks.mark(start..<min(start + Self.blocksPerRegion, blockCount))
        }
        return blocks
    }

    func everyBlock() -> DirtyBitmap {
        var blocks = DirtyBitmap(blockCount: blockCount)
        blocks.mark(0..<blockCount)
        return blocks
    }

    // MARK: Files

    /// Files in memory have names that begin so.
    private static let memoryPrefix = "memory/"

    private func path(_ name: String) -> String {
        name.hasPrefix(Self.memoryPrefix)
            ? memory + "/" + name.dropFirst(Self.memoryPrefix.count) : directory + "/" + name
    }

    func read(_ name: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path(name))))
    }

    /// Writes a file in place, so that no other name comes into being.
    func write(_ name: String, _ bytes: [UInt8]) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path(name)))
    }

    func exists(_ name: String) -> Bool { FileCalls.exists(path(name)) }

    func remove(_ name: String) throws { try FileCalls.remove(path(name)) }

    func files() throws -> [String: [UInt8]] {
        var files: [String: [UInt8]] = [:]
        let names =
            StateFiles.names(in: directory)
            + StateFiles.names(in: memory).map { Self.memoryPrefix + $0 }
        for name in names { files[name] = try read(name) }
        return files
    }
}
