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

    @Test("facts and figures are found again")
    func header() throws {
        let ledger = try make(clusters: 10)
        for doubt in [nil, .lostWrites, .hungSync] as [SourceDoubt?] {
            let figures = LedgerFile.Figures(
                wallTime: .max - 1, bytesRead: 77, isAboveWatermark: true, doubt: doubt)
            ledger.file?.keep(figures)
            let found = try LedgerFile.open(path: path)
            #expect(found.facts == Self.facts(clusters: 10))
            #expect(found.figures == figures)
        }
    }

    @Test("P1: a long run of words that stays in the file is found, goes on, and is found again")
    func mapped() throws {
        let count = Ledger.mappedWordsMin + 1500
        let left = try make(clusters: count)
        for cluster in 0..<Ledger.mappedWordsMin { left.view.publish(cluster, .zero) }
        left.view.publish(count - 1, .slot(0))
        left.view.settle()
        for round in 0..<3 {
            let found = try open()
            #expect(found.found?.zeros == Ledger.mappedWordsMin + round && !found.view.isClosed)
            // A word in a page of the file, and one in a page that has had none.
            #expect(found.view.place(of: count - 1) == .slot(0))
            #expect(found.view.place(of: Ledger.mappedWordsMin + round) == .source)
            found.view.publish(Ledger.mappedWordsMin + round, .zero)
            // Nobody finds it before it is settled.
            #expect(try open().found?.zeros == Ledger.mappedWordsMin + round)
            found.view.settle()
        }
        let last = try open()
        last.view.close()
        #expect(last.view.isClosed && fault { _ = try open() } == .notWhole)
        withExtendedLifetime((left, last)) {}
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
