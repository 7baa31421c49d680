import Disk
import PointInTime
import ScratchFiles
import SystemLayer
import Testing
import Tracking
import UnitSupport

@Suite("Ledgers that the next process finds")
struct LedgerFileTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private var path: String { directory.path("ledger") }

    private static func facts(clusters: Int) -> LedgerFacts {
        LedgerFacts(
            bootID: "11111111-2222-3333-4444-555555555555",
            jobID: "c7a5fdbd-edaf-9455-926a-d65c16db1809", target: "v\nda\\",
            sizeBytes: UInt64(clusters) << ClusterGeometry.shift, source: "66:77",
            scratch: "66:78", scratchBytes: 5, roomBytes: 6, reservedBytes: 7,
            allocatedBytes: .max, hasBitmap: true)
    }

    private func make(clusters: Int) throws -> Ledger {
        let facts = Self.facts(clusters: clusters)
        return try Ledger(
            geometry: ClusterGeometry(sizeBytes: facts.sizeBytes),
            file: LedgerFile.create(path: path, facts: facts))
    }

    private func open(slotLimit: UInt32 = 1000) throws -> Ledger {
        try Ledger(try LedgerFile.open(path: path), slotLimit: slotLimit)
    }

    private func fault(_ body: () throws -> Void) -> LedgerFileFault? {
        do { try body() } catch { return error as? LedgerFileFault }
        return nil
    }

    @Test("P1: whenever the process dies, the next one serves the instant", arguments: 0..<20)
    func crashes(_ seed: UInt64) throws {
        var world = try CrashWorld(path: path, seed: seed)
        for _ in 0..<400 {
            try world.step()
            if !world.problems.isEmpty { break }
        }
        #expect(world.problems.isEmpty, "seed \(seed): \(world.problems)")
        #expect(world.deaths > 0)
    }

    @Test("a ledger whose entries come after the writes is found out")
    func canary() throws {
        let isFound = try (0..<20).allSatisfy { seed in
            var world = try CrashWorld(path: path, seed: UInt64(seed), keepsFile: false)
            for _ in 0..<400 where world.problems.isEmpty { try world.step() }
            return !world.problems.isEmpty
        }
        #expect(isFound)
    }

    @Test("what a ledger says is found again, with what is free of its scratch")
    func words() throws {
        let ledger = try make(clusters: 3_000_000)
        let places: [(Int, ClusterPlace)] = [
            (0, .slot(0)), (1, .zero), (7, .slot(4)), (2_000_000, .slot(2)), (2_999_999, .slot(9)),
        ]
        for (cluster, place) in places { ledger.view.publish(cluster, place) }
        ledger.view.settle()
        _ = ledger.view.release(7)
        ledger.view.settle()
        let found = try open()
        #expect(found.geometry == ledger.geometry)
        for (cluster, place) in places where cluster != 7 {
            #expect(found.view.place(of: cluster) == place)
        }
        #expect(found.view.place(of: 7) == .released)
        #expect(found.view.place(of: 8) == .source)
        let use = try #require(found.found)
        #expect(use.preserved == 4 && use.zeros == 1 && use.slotsUsed == 10)
        var gate = CopyBeforeWrite(changeLimit: 1)
        let attached = gate.attach(
            found.view, slotLimit: 1000, copyTimeoutNanoseconds: .max, found: use)
        let job = try #require(attached)
        #expect(gate.slotsUsed(job: job) == 3)
        withExtendedLifetime((ledger, found)) {}
    }

    // MARK: Long runs of words

    private static let longRun = 300_000

    /// Makes the file of a ledger of 400,000 clusters with these words at its beginning.
    private func keep(_ words: [UInt32]) throws {
        withExtendedLifetime(try make(clusters: 400_000)) {}
        var bytes: [UInt8] = []
        bytes.reserveCapacity(words.count * 4)
        for word in words {
            bytes.append(UInt8(truncatingIfNeeded: word))
            bytes.append(UInt8(truncatingIfNeeded: word >> 8))
            bytes.append(UInt8(truncatingIfNeeded: word >> 16))
            bytes.append(UInt8(truncatingIfNeeded: word >> 24))
        }
        let file = try FileCalls.open(path, [.write])
        try FileCalls.write(file.raw, bytes, at: 4096)
    }

    private func used(_ ledger: Ledger) throws -> UInt32 {
        let use = try #require(ledger.found)
        var gate = CopyBeforeWrite(changeLimit: 1)
        let job = gate.attach(
            ledger.view, slotLimit: 1_000_000, copyTimeoutNanoseconds: .max, found: use)
        return gate.slotsUsed(job: try #require(job))
    }

    @Test("P1: words that are not copied are the same, and what is stored to them is kept as ever")
    func borrowed() throws {
        let slots = UInt32(0)..<UInt32(Self.longRun)
        try keep(slots.map { $0 + 2 })
        let first = try open(slotLimit: 1_000_000)
        for cluster in [0, 1023, 1024, 262_143, 262_144, 299_999] {
            #expect(first.view.place(of: cluster) == .slot(UInt32(cluster)))
        }
        #expect(first.view.place(of: 300_000) == .source)
        #expect(try used(first) == UInt32(Self.longRun))
        first.view.publish(300_001, .slot(300_000))
        _ = first.view.release(5)
        // Nothing of it counts for the next process before it is settled.
        #expect(try open(slotLimit: 1_000_000).found?.preserved == Self.longRun)
        first.view.settle()
        let second = try open(slotLimit: 1_000_000)
        #expect(second.view.place(of: 5) == .released)
        #expect(second.view.place(of: 300_001) == .slot(300_000))
        #expect(try used(second) == UInt32(Self.longRun))
        withExtendedLifetime(first) {}
    }

    @Test("words that were taken over outlive the file that they came from")
    func takenOver() throws {
        try keep((UInt32(0)..<UInt32(Self.longRun)).map { $0 + 2 })
        let ledger = try open(slotLimit: 1_000_000)
        ledger.view.publish(350_000, .zero)
        ledger.takeOver()
        let file = try FileCalls.open(path, [.write])
        try FileCalls.setSize(file.raw, bytes: 100)
        for cluster in [0, 77_777, 299_999] {
            #expect(ledger.view.place(of: cluster) == .slot(UInt32(cluster)))
        }
        #expect(ledger.view.place(of: 350_000) == .zero)
        withExtendedLifetime(ledger) {}
    }

    @Test("P5: gaps among many slots are found, and slots that are named twice, wherever they are")
    func gaps() throws {
        let dense = (UInt32(0)..<UInt32(Self.longRun)).map { $0 + 2 }
        func words(_ change: (inout [UInt32]) -> Void) -> [UInt32] {
            var words = dense
            change(&words)
            return words
        }
        // As a kill leaves it: of the last copies some were never published.
        let late = words { words in
            for index in 299_990..<words.count { words[index] += 3 }
        }
        try keep(late)
        let found = try open(slotLimit: 1_000_000)
        #expect(found.found?.slotsUsed == 300_003)
        #expect(try used(found) == UInt32(Self.longRun))
        // Released far from the end.
        try keep(words { $0[10] = .max })
        #expect(try used(open(slotLimit: 1_000_000)) == UInt32(Self.longRun - 1))
        for (low, high) in [(7, 8), (7, 299_999), (299_980, 299_985)] {
            var twice = late
            twice[high] = twice[low]
            try keep(twice)
            let refusal = fault { _ = try open(slotLimit: 1_000_000) }
            #expect(refusal == .implausible, "\(low), \(high)")
        }
    }

    @Test("facts and figures are found again")
    func header() throws {
        let ledger = try make(clusters: 10)
        let figures = LedgerFile.Figures(wallTime: .max - 1, bytesRead: 77, isAboveWatermark: true)
        ledger.file?.keep(figures)
        let found = try LedgerFile.open(path: path)
        #expect(found.facts == Self.facts(clusters: 10))
        #expect(found.figures == figures)
    }

    @Test("P5: a ledger that was closed or given up is not gone on with")
    func closed() throws {
        let ledger = try make(clusters: 4)
        withExtendedLifetime(ledger) { ledger.view.close() }
        #expect(fault { _ = try open() } == .notWhole)
        try make(clusters: 4).file?.giveUp()
        #expect(fault { _ = try open() } == .notWhole)
    }

    @Test("P5: words that contradict each other, or their scratch, are not gone on with")
    func implausible() throws {
        // The last two name as many slots as there are words, one of them twice.
        for slots: [UInt32] in [[3, 3], [0, 2000], [0, 0, 2], [0, 0, 3, 3, 4]] {
            let ledger = try make(clusters: 5)
            for (cluster, slot) in slots.enumerated() {
                ledger.view.publish(cluster, .slot(slot))
            }
            withExtendedLifetime(ledger) { ledger.view.settle() }
            #expect(fault { _ = try open() } == .implausible, "\(slots)")
        }
        _ = try make(clusters: 4)
        let file = try FileCalls.open(path, [.write])
        try FileCalls.setSize(file.raw, bytes: 4096 + 8)
        #expect(fault { _ = try open() } == .implausible)
        try FileCalls.setSize(file.raw, bytes: 100)
        #expect(fault { _ = try open() } == .header(.damaged))
    }

    @Test("every damaged byte of a header is found")
    func damage() throws {
        _ = try make(clusters: 4)
        let bytes = Self.facts(clusters: 4).encode()
        #expect(try LedgerFacts.decode(bytes + [0, 0]) == Self.facts(clusters: 4))
        for position in bytes.indices {
            var damaged = bytes
            damaged[position] ^= 0x11
            #expect(throws: LedgerFacts.Damage.self) { try LedgerFacts.decode(damaged) }
        }
        for count in bytes.indices.dropLast() {
            #expect(throws: LedgerFacts.Damage.self) {
                try LedgerFacts.decode(Array(bytes[..<count]))
            }
        }
    }
}
