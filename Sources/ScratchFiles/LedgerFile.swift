package import Disk
package import PointInTime
package import SystemLayer
import Tables

/// Why a ledger's file cannot be gone on with.
package enum LedgerFileFault: Error, Sendable, Hashable {
    case system(SystemFault)
    case header(LedgerFacts.Damage)
    /// The job broke or was ended, or its file could not be brought up to date.
    case notWhole
    /// The words contradict each other or what belongs to them.
    case implausible
}

/// The file in memory by which the next process goes on with a ledger.
///
/// A page of header, then the words. The header's first half says what the file is (`LedgerFacts`);
/// the second has the state of the words and the figures.
package final class LedgerFile: Sendable {
    package let path: String
    private let storage: WordsMirrorStorage

    static let headerBytes = 4096
    private static let factsBytes = 2048
    private static let statePosition: UInt64 = 2048
    private static let figuresPosition: UInt64 = 3072
    private static let figuresCount = 5

    private init(path: String, _ storage: WordsMirrorStorage) {
        self.path = path
        self.storage = storage
    }

    var mirror: WordsMirror { storage.view }

    /// Makes the file of a ledger on which nothing is preserved, mode 0600; one that has the name
    /// goes.
    package static func create(
        path: String, facts: LedgerFacts
    ) throws(SystemFault) -> LedgerFile {
        var header = facts.encode()
        guard header.count <= factsBytes else {
            throw SystemFault(call: "write", errno: Errno.fileTooBig)
        }
        header += [UInt8](repeating: 0, count: headerBytes - header.count)
        header[Int(statePosition)] = UInt8(WordsMirrorStorage.State.whole.rawValue)
        try FileCalls.remove(path)
        let descriptor = try FileCalls.open(path, [.write, .createNew])
        do throws(SystemFault) {
            let geometry = ClusterGeometry(sizeBytes: facts.sizeBytes)
            try FileCalls.setSize(
                descriptor.raw,
                bytes: UInt64(headerBytes) + UInt64(geometry.clusterCount) * 4)
            try FileCalls.write(descriptor.raw, header, at: 0)
        } catch {
            try? FileCalls.remove(path)
            throw error
        }
        return LedgerFile(path: path, follow(descriptor))
    }

    private static func follow(_ descriptor: consuming OwnedDescriptor) -> WordsMirrorStorage {
        WordsMirrorStorage(
            descriptor, wordsPosition: UInt64(headerBytes), statePosition: statePosition)
    }

    /// Whether the next process could go on with it.
    package var isWhole: Bool { storage.isWhole }

    /// The next process is not to go on with it: something that belongs to it is missing.
    package func giveUp() { storage.giveUp() }

    /// Removes the file; those who have it open keep using it.
    package func remove() { try? FileCalls.remove(path) }

    // MARK: Figures

    /// What is kept beside the words, for people and for doubts.
    package struct Figures: Sendable, Hashable {
        /// When they were written, in nanoseconds since 1970.
        package var wallTime: UInt64
        /// Bytes sent to clients.
        package var bytesRead: UInt64
        /// The watermark event has been sent.
        package var isAboveWatermark: Bool
        /// Why the next process must not go on with the job, whatever it finds.
        package var doubt: SourceDoubt?

        package init(
            wallTime: UInt64, bytesRead: UInt64, isAboveWatermark: Bool,
            doubt: SourceDoubt? = nil
        ) {
            self.wallTime = wallTime
            self.bytesRead = bytesRead
            self.isAboveWatermark = isAboveWatermark
            self.doubt = doubt
        }
    }

    /// Writes figures over those before; never waits for a device.
    package func keep(_ figures: Figures) {
        let words = [
            figures.wallTime, figures.bytesRead, figures.isAboveWatermark ? 1 : 0,
            // Whatever it is, a version that knows only of syncs does not go on either.
            figures.doubt == nil ? 0 : 1, UInt64(figures.doubt?.rawValue ?? 0),
        ]
        let bytes = words.flatMap { word in
            (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64($0 * 8)) }
        }
        // They are the same bytes of a page that is there; without them there is a doubt, no wrong.
        try? FileCalls.write(storage.raw, bytes, at: Self.figuresPosition)
    }

    private static func figures(_ header: [UInt8]) -> Figures {
        let words = (0..<figuresCount).map { index in
            (0..<8).reduce(UInt64(0)) { word, byte in
                word | UInt64(header[Int(figuresPosition) + index * 8 + byte]) << UInt64(byte * 8)
            }
        }
        return Figures(
            wallTime: words[0], bytesRead: words[1], isAboveWatermark: words[2] == 1,
            doubt: words[3] == 0
                ? nil : UInt8(exactly: words[4]).flatMap(SourceDoubt.init) ?? .hungSync)
    }

    // MARK: The next process

    /// A ledger's file as it was found.
    package struct Found: Sendable {
        package let facts: LedgerFacts
        package let figures: Figures
        let file: LedgerFile
    }

    /// Opens the file that an earlier process has left; its words are read by
    /// `Ledger.init(_:slotLimit:)`.
    package static func open(path: String) throws(LedgerFileFault) -> Found {
        let descriptor = try system { () throws(SystemFault) in
            try FileCalls.open(path, [.write])
        }
        let header = try system { [raw = descriptor.raw] () throws(SystemFault) in
            try FileCalls.read(raw, at: 0, count: headerBytes)
        }
        guard header.count == headerBytes else { throw .header(.damaged) }
        let facts: LedgerFacts
        do throws(LedgerFacts.Damage) {
            facts = try LedgerFacts.decode(Array(header[..<factsBytes]))
        } catch {
            throw .header(error)
        }
        let state = Array(header[Int(statePosition)..<Int(statePosition) + 4])
        guard state == [UInt8(WordsMirrorStorage.State.whole.rawValue), 0, 0, 0] else {
            throw .notWhole
        }
        return Found(
            facts: facts, figures: figures(header),
            file: LedgerFile(path: path, follow(descriptor)))
    }

    static func system<Value: ~Copyable>(
        _ body: () throws(SystemFault) -> Value
    ) throws(LedgerFileFault) -> Value {
        do throws(SystemFault) {
            return try body()
        } catch {
            throw .system(error)
        }
    }

    /// What has its words filled from the file, those that were never stored left out.
    func reading(
        into words: SharedWordsStorage, clusterCount: Int, mappedWordsMin: Int
    ) throws(LedgerFileFault) -> LedgerReading {
        let base = UInt64(Self.headerBytes)
        let end = base + UInt64(clusterCount) * 4
        var extents: [Range<Int>] = []
        let size = try Self.system { () throws(SystemFault) in
            try FileCalls.facts(storage.raw).sizeBytes
        }
        guard size == end else { throw .implausible }
        var position = base
        while position < end, let data = try seek(position, data: true), data < end {
            let hole = try seek(data, data: false) ?? end
            let first = Int((max(data, base) - base) / 4)
            let last = Int((min(hole, end) - base) / 4)
            extents.append(first..<last)
            position = hole
        }
        return try LedgerReading(storage.raw, words, extents, mappedWordsMin: mappedWordsMin)
    }

    private func seek(_ position: UInt64, data: Bool) throws(LedgerFileFault) -> UInt64? {
        try Self.system { () throws(SystemFault) in
            try FileCalls.seek(storage.raw, from: position, data: data)
        }
    }
}
