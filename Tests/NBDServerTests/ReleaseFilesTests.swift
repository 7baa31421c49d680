import Foundation
import PointInTime
import ScratchFiles
import Synchronization
import SystemLayer
import Testing

@testable import Tracking
@testable import TrackingFiles

/// Files that releases have left (`Tests/Corpus/releases/make`) are read for ever: a disk of 64
/// blocks with checkpoints `c1`, `c2` and `c3`, between which blocks 1 to 3, then 5, then 7 were
/// written.
@Suite struct ReleaseFilesTests {
    private static let uuid = "5a1e5f11-0000-4000-8000-000000000001"
    private static let corpus = URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Corpus/releases").path

    static let releases: [String] = {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: corpus)) ?? []
        return names.filter { $0 != "make" && !$0.hasPrefix("_") && !$0.hasPrefix(".") }.sorted()
    }()

    /// A directory of a release, copied, as it may be changed.
    private static func copy(_ release: String, _ part: String) throws -> String {
        let path =
            FileManager.default.temporaryDirectory.path + "/np-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.copyItem(atPath: "\(corpus)/\(release)/\(part)", toPath: path)
        return path
    }

    private static func bytes(_ path: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(filePath: path)))
    }

    private static func names(_ path: String, _ ending: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path).filter { $0.hasSuffix(ending) }
    }

    private static func dirty(_ bitmap: DirtyBitmap) -> [Int] {
        (0..<bitmap.blockCount).filter { bitmap.isDirty($0) }
    }

    @Test("there are files of a release")
    func some() { #expect(!Self.releases.isEmpty) }

    @Test("P3: tracking that a release left in order is exact", arguments: releases)
    func clean(_ release: String) throws {
        let path = try Self.copy(release, "clean/state/disks/\(Self.uuid)/vda")
        defer { try? FileManager.default.removeItem(atPath: path) }
        let record = try #require(TrackingRecord.decode(try Self.bytes(path + "/record")))
        #expect(record.isClean)
        let places = TrackingPlaces(
            files: DiskDirectory(path), memory: nil, isInMemory: false, mark: nil, bootID: "now")
        let store = try TrackingStore.open(
            places, source: record.source, granularityBytes: record.granularityBytes)
        #expect(store.problem == nil && store.recoveredBytes == 0)
        #expect(store.record.chain.checkpoints == ["c1", "c2", "c3"])
        let (first, second) = (
            try store.sealedUnion(since: "c1"), try store.sealedUnion(since: "c2")
        )
        #expect(Self.dirty(first) == [1, 2, 3, 5])
        #expect(Self.dirty(second) == [5])
        #expect(Self.dirty(store.recording.snapshot()) == [7])
    }

    @Test("P3: what a killed release left of a disk's changes is read", arguments: releases)
    func killed(_ release: String) throws {
        let path = "\(Self.corpus)/\(release)/killed"
        let disk = "\(path)/state/disks/\(Self.uuid)/vda"
        let record = try #require(TrackingRecord.decode(try Self.bytes(disk + "/record")))
        #expect(!record.isClean)
        let tracking = path + "/memory/tracking"
        let session = try #require(
            TrackingSession.decode(try Self.bytes(tracking + "/session")))
        #expect(session.id == record.session && session.state == .tracked)
        let serial = record.chain.recordingSerial
        let live = try DiskDirectory(tracking).open(
            LiveBits.fileName(serial), writable: false)
        let bits = try LayerFile.readLive(
            live, session: session.id, serial: serial, blockCount: 64)
        #expect(bits.map(Self.dirty) == [7])
        let marked = try #require(IntentLogFile.markedRanges(in: DiskDirectory(disk)))
        #expect(!marked.isEmpty)
        let file = try DiskDirectory(disk).open(
            RecordingLayer.fileName(serial), writable: false)
        _ = try LayerFile.read(file, serial: serial, blockCount: 64)
        for name in try Self.names(disk, ".z") {
            _ = try LayerCodec.decode(try Self.bytes("\(disk)/\(name)"))
        }
    }

    @Test("P1: the ledger and the bitmap of a running job are read", arguments: releases)
    func job(_ release: String) throws {
        let path = try Self.copy(release, "killed/memory/jobs")
        defer { try? FileManager.default.removeItem(atPath: path) }
        let name = try #require(try Self.names(path, ".ledger").first)
        let found = try LedgerFile.open(path: "\(path)/\(name)")
        #expect(found.facts.target == "vda" && found.facts.sizeBytes == 4 << 20)
        #expect(found.facts.hasBitmap && found.figures.wallTime > 0)
        let ledger = try Ledger(found, slotLimit: 256)
        #expect(ledger.view.place(of: 7 * 4) == .slot(0))
        #expect(ledger.preservedClusters.load(ordering: .relaxed) == 1)
        let bitmap = try #require(try Self.names(path, ".bitmap").first)
        let (bits, identity) = try LayerCodec.decode(try Self.bytes("\(path)/\(bitmap)"))
        #expect(Self.dirty(bits) == [1, 2, 3, 5] && identity.diskBytes == 4 << 20)
        let flight = try #require(LeftFlight(try Self.bytes(path + "/flight")))
        #expect(flight.crash?.signal == 4 && flight.facts["build"]?.isEmpty == false)
    }

    @Test("a record of a newer version is told from a damaged one, and left alone")
    func newer() throws {
        let release = try #require(Self.releases.last)
        let path = try Self.copy(release, "clean/state/disks/\(Self.uuid)/vda")
        defer { try? FileManager.default.removeItem(atPath: path) }
        var bytes = try Self.bytes(path + "/record")
        let record = try #require(TrackingRecord.decode(bytes))
        let digit = try #require(bytes.firstIndex(of: UInt8(ascii: "\n"))) - 1
        bytes[digit] = UInt8(ascii: "9")
        try Data(bytes).write(to: URL(filePath: path + "/record"))
        let places = TrackingPlaces(
            files: DiskDirectory(path), memory: nil, isInMemory: false, mark: nil, bootID: "now")
        #expect(throws: TrackingFault.newer(path: path + "/record", version: 9)) {
            _ = try TrackingStore.open(
                places, source: record.source, granularityBytes: record.granularityBytes)
        }
        #expect(try Self.bytes(path + "/record") == bytes)
    }
}
