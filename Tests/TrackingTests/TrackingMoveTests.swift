import SystemLayer
import Testing
import Tracking
import TrackingFiles
import UnitSupport

/// A disk's tracking goes to another server's directory, and storage fails at any step.
@Suite struct TrackingMoveTests {
    private static let move = "0d8e5a52-0a3a-4e19-9d0f-2f6f6f6f0001"
    private static let bytes: UInt64 = 6 << 20

    /// One server's storage.
    private final class Host {
        let plan = FaultPlan()
        let files: SimulatedDirectory
        let source: SourceIdentity

        init(_ name: String, bytes: UInt64 = TrackingMoveTests.bytes) {
            files = SimulatedDirectory("/" + name, plan)
            source = SourceIdentity(
                path: "/disk.img", sizeBytes: bytes, inode: 7, changedNanoseconds: 1)
        }

        var closed: TrackingPlaces { TrackingPlaces(closed: files) }

        func open(granularityBytes: UInt32 = 1 << 16) throws(TrackingFault) -> TrackingStore {
            try TrackingStore.open(
                TrackingPlaces(
                    files: files, memory: nil, isInMemory: false, mark: nil, bootID: "boot"),
                source: source, granularityBytes: granularityBytes)
        }

        func close(_ store: TrackingStore) throws(TrackingFault) {
            var store = store
            store.compressSealed()
            try store.close(source: source)
        }
    }

    private func mark(_ store: TrackingStore, _ blocks: Range<Int>, shift: UInt64 = 16) {
        let isMarked = store.recording.mark(
            offset: UInt64(blocks.lowerBound) << shift, length: UInt64(blocks.count) << shift)
        #expect(isMarked)
    }

    /// Checkpoints c1 and c2, with changes since each, closed in order.
    private func leaving() throws -> Host {
        let host = Host("a")
        var store = try host.open()
        for (name, blocks) in [("c1", 1..<3), ("c2", 10..<12)] {
            let next = try store.prepareNext()
            try store.seal(checkpoint: name, next: next)
            mark(store, blocks)
        }
        try host.close(store)
        return host
    }

    /// Opened once, with a change of its own.
    private func arriving(granularityBytes: UInt32 = 1 << 16) throws -> Host {
        let host = Host("b")
        let store = try host.open(granularityBytes: granularityBytes)
        mark(store, 40..<41)
        try host.close(store)
        return host
    }

    private func dirty(_ store: TrackingStore, since name: String) throws -> [Int] {
        let union = try store.union(since: name, recording: store.recording.snapshot())
        return (0..<union.blockCount).filter { union.isDirty($0) }
    }

    private let adoption = TrackingStore.Adoption(
        mark: nil, changedNanoseconds: nil, marksEverything: false)

    @Test("P3: what goes from one directory to another answers as before, with what came between")
    func moved() throws {
        let (a, b) = (try leaving(), try arriving())
        try TrackingStore.depart(a.closed, move: Self.move, mark: nil, changedNanoseconds: nil)
        let pack = try TrackingStore.pack(a.closed, move: Self.move)
        try TrackingStore.adopt(pack, in: b.closed, adoption)
        let store = try b.open()
        #expect(store.problem == nil && store.recoveredBytes == 0)
        #expect(try dirty(store, since: "c1") == [1, 2, 10, 11, 40])
        #expect(try dirty(store, since: "c2") == [10, 11, 40])
        // Here it begins anew, and nothing of it is left to go once more.
        let left = try a.open()
        #expect(left.record.chain.checkpoints.isEmpty)
        try a.close(left)
        #expect(throws: Never.self) { try TrackingStore.pack(a.closed, move: Self.move) }
        #expect(try !TrackingStore.hasDeparted(a.closed, move: Self.move))
    }

    @Test("P3: bits of another granularity are added by the bytes that they cover")
    func otherGranularity() throws {
        for granularity: UInt32 in [4096, 1 << 20] {
            let a = try leaving()
            let b = Host("b")
            let opened = try b.open(granularityBytes: granularity)
            mark(opened, 40..<41)
            mark(opened, 95..<96)
            try b.close(opened)
            let pack = try TrackingStore.pack(a.closed, move: Self.move)
            try TrackingStore.adopt(pack, in: b.closed, adoption)
            let found = try dirty(try b.open(), since: "c2")
            let added = granularity == 4096 ? [40, 95] : Array(32..<48) + Array(80..<96)
            #expect(found == [10, 11] + added)
        }
    }

    @Test("P3: what does not fit is refused, and the directory is as it was")
    func refused() throws {
        let pack = try TrackingStore.pack(try leaving().closed, move: Self.move)
        var changes: [TrackingPack] = Array(repeating: pack, count: 6)
        changes[0].source.sizeBytes += 1 << 16
        changes[1].granularityBytes = 4096
        changes[2].layers = []
        changes[3].layers[0].checkpoint = "c2"
        changes[4].layers[1].bytes[100] ^= 1
        changes[5].granularityBytes = 3
        for (index, changed) in changes.enumerated() {
            let b = try arriving()
            #expect(throws: TrackingFault.self, "\(index)") {
                try TrackingStore.adopt(changed, in: b.closed, adoption)
            }
            let store = try b.open()
            #expect(store.recoveredBytes == 0 && store.recording.dirtyCount == 1, "\(index)")
        }
        let open = Host("a")
        let store = try open.open()
        #expect(throws: TrackingFault.notMoved("it was not closed in order")) {
            try TrackingStore.pack(open.closed, move: Self.move)
        }
        _ = store
    }

    @Test("P3: the bits of a checkpoint that does not go along count for the one before it")
    func leftOut() throws {
        let host = Host("a")
        var store = try host.open()
        for (index, name) in ["c1", "c2", "c3", "c4"].enumerated() {
            let next = try store.prepareNext()
            try store.seal(checkpoint: name, next: next)
            mark(store, index * 10..<index * 10 + 1)
        }
        try host.close(store)
        for (keeping, dirt) in [
            (["c1", "c3"], [[0, 10, 20, 30, 40], [20, 30, 40]]),
            (["c2", "c4"], [[10, 20, 30, 40], [30, 40]]),
            (["c3"], [[20, 30, 40]]),
        ] {
            let pack = try TrackingStore.pack(
                host.closed, move: Self.move, keeping: Set(keeping))
            #expect(pack.layers.map(\.checkpoint) == keeping)
            let b = try arriving()
            try TrackingStore.adopt(pack, in: b.closed, adoption)
            let taken = try b.open()
            for (name, blocks) in zip(keeping, dirt) {
                #expect(try dirty(taken, since: name) == blocks, "\(keeping) \(name)")
            }
        }
        let none = try TrackingStore.pack(host.closed, move: Self.move, keeping: [])
        #expect(none.layers.map(\.checkpoint) == [nil])
    }

    @Test("P3: bits that cannot be read are told of before the disk is let go of, not after")
    func unreadable() throws {
        let a = try leaving()
        let names = try a.files.names().filter { $0.hasSuffix(".z") }
        let name = try #require(names.first)
        try a.files.open(name, writable: true).write([1, 2, 3], at: 0)
        do {
            _ = try TrackingStore.pack(a.closed, move: Self.move)
            Issue.record("it was packed")
        } catch {
            guard case .damagedLayer(let path, _) = error else { throw error }
            #expect(path.hasSuffix(name))
        }
        try TrackingStore.depart(a.closed, move: Self.move, mark: nil, changedNanoseconds: nil)
        let pack = try TrackingStore.pack(a.closed, move: Self.move)
        #expect(pack.layers.map(\.checkpoint) == ["c2"])
    }

    @Test("P6: what cannot be adopted is refused by the look before, which changes nothing")
    func checked() throws {
        let pack = try TrackingStore.pack(try leaving().closed, move: Self.move)
        let b = try arriving()
        #expect(throws: Never.self) { try TrackingStore.check(pack, in: b.closed) }
        var changes: [TrackingPack] = Array(repeating: pack, count: 6)
        changes[0].layers[0].bytes[100] ^= 1
        changes[1].layers[0].bytes = []
        changes[2].layers[1].checkpoint = nil
        changes[3].layers = []
        changes[4].granularityBytes = 8192
        // A layer of many more blocks than the disk has.
        let identity = LayerIdentity(diskBytes: 1 << 46, granularityBytes: 1 << 16, serial: 1)
        changes[5].layers[0].bytes = LayerCodec.encode(
            DirtyBitmap(blockCount: Int(identity.blockCount)), identity: identity)
        for (index, changed) in changes.enumerated() {
            #expect(throws: TrackingFault.self, "\(index)") {
                try TrackingStore.check(changed, in: b.closed)
            }
        }
        let store = try b.open()
        #expect(store.recoveredBytes == 0 && store.recording.dirtyCount == 1)
    }

    @Test("P6: bits much finer than the domain's, which would take all memory, are refused")
    func tooFine() throws {
        let bytes: UInt64 = 2 << 40
        let b = Host("b", bytes: bytes)
        try b.close(try b.open())
        func pack(_ granularityBytes: UInt32) -> TrackingPack {
            let identity = LayerIdentity(
                diskBytes: bytes, granularityBytes: granularityBytes, serial: 1)
            let bits = DirtyBitmap(blockCount: Int(identity.blockCount))
            return TrackingPack(
                source: b.source, granularityBytes: granularityBytes, mark: "",
                layers: [
                    TrackingPack.Layer(
                        checkpoint: "c1", bytes: LayerCodec.encode(bits, identity: identity))
                ])
        }
        #expect(throws: Never.self) { try TrackingStore.check(pack(8192), in: b.closed) }
        #expect(throws: TrackingFault.self) { try TrackingStore.check(pack(4096), in: b.closed) }
    }

    @Test("P3: an export that storage cuts off at any step goes on, and is not believed once done")
    func departureCutOff() throws {
        for fault in [StorageFault.fails, .failsDone, .syncLoses, .stops] {
            for losesPower in [false, true] {
                var call = 0
                while true {
                    let a = try leaving()
                    let before = try TrackingStore.pack(a.closed, move: Self.move)
                    a.files.losePower { true }
                    a.plan.set(fault, at: call)
                    var isDone = true
                    do {
                        try TrackingStore.depart(
                            a.closed, move: Self.move, mark: "m", changedNanoseconds: 9)
                    } catch {
                        isDone = false
                    }
                    let calls = a.plan.calls
                    a.plan.heal()
                    if losesPower { a.files.losePower { call % 2 == 0 } }
                    let label: Comment = "\(fault) at \(call), power \(losesPower)"
                    if isDone {
                        let isMoved = try TrackingStore.hasDeparted(a.closed, move: Self.move)
                        #expect(isMoved, label)
                        #expect(try a.open().record.chain.checkpoints.isEmpty, label)
                    } else {
                        try TrackingStore.depart(
                            a.closed, move: Self.move, mark: "m", changedNanoseconds: 9)
                        let pack = try TrackingStore.pack(a.closed, move: Self.move)
                        #expect(pack.layers == before.layers, label)
                        #expect(pack.source.changedNanoseconds == 9 && pack.mark == "m", label)
                    }
                    if calls <= call { break }
                    call += 1
                }
                #expect(call > 5)
            }
        }
    }

    @Test("P3: an import that storage cuts off at any step misses nothing, and goes on")
    func arrivalCutOff() throws {
        let pack = try TrackingStore.pack(try leaving().closed, move: Self.move)
        for fault in [StorageFault.fails, .failsDone, .syncLoses, .stops] {
            for losesPower in [false, true] {
                var call = 0
                while true {
                    let b = try arriving()
                    b.files.losePower { true }
                    b.plan.set(fault, at: call)
                    let isDone = (try? TrackingStore.adopt(pack, in: b.closed, adoption)) != nil
                    let calls = b.plan.calls
                    b.plan.heal()
                    if losesPower { b.files.losePower { call % 2 == 0 } }
                    let label: Comment = "\(fault) at \(call), power \(losesPower)"
                    var store = try b.open()
                    if store.record.chain.checkpoints.isEmpty {
                        #expect(!isDone, label)
                        try b.close(store)
                        try TrackingStore.adopt(pack, in: b.closed, adoption)
                        store = try b.open()
                    }
                    let found = try dirty(store, since: "c1")
                    #expect(Set(found).isSuperset(of: [1, 2, 10, 11, 40]), label)
                    if calls <= call { break }
                    call += 1
                }
                #expect(call > 5)
            }
        }
    }
}
