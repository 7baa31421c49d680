import Disk
import NBDProtocol
import ServerInterface
import SystemLayer
import Testing

@testable import NBDServer

/// What a ring's own thread asks of a disk's file, and when it does not.
extension RingLoopTests {
    func write(_ count: Int, at offset: Int, _ socket: SocketHandle, _ loop: inout Loop) {
        for number in 0..<count {
            request(1, UInt64(number), offset, 4096, socket)
            send([UInt8](repeating: UInt8(number & 255), count: 4096), socket)
            settle(&loop)
        }
        #expect(world.take(from: socket).count == 16 * count)
    }

    /// Another disk, which lies there.
    func other(_ path: String, _ change: (inout SourceFacts) -> Void = { _ in }) -> LiveExport {
        var facts = SourceFacts(
            path: path, sizeBytes: 1 << 20, raw: 3 << 24,
            witness: WriteErrorWitness(raw: -1) { nil }
        )
        facts.type = .blockDevice
        change(&facts)
        return LiveExport(
            DiskConfiguration(
                exportName: "vdb", path: path, kind: .block, readOnly: false, cacheMode: .buffered,
                discardMode: .ignore),
            disk: DiskID(number: 2), source: RawSource(facts), homeRing: 0, places: shared.places)
    }

    @Test("P6: a ring writes itself only while all disks would hang together")
    func writesOfSeveralPlaces() throws {
        var loop = try loop()
        let socket = guest(&loop)
        var same: LiveExport? = other("/disk")
        write(3, at: 0, socket, &loop)
        #expect(world.inlineWrites == 3)
        var elsewhere: LiveExport? = other("/elsewhere")
        write(3, at: 0, socket, &loop)
        #expect(world.inlineWrites == 3)
        #expect(world.files[Self.source]?[4095] == 2)
        withExtendedLifetime(elsewhere) {}
        elsewhere = nil
        write(3, at: 0, socket, &loop)
        #expect(world.inlineWrites == 6)
        withExtendedLifetime(same) {}
        same = nil
    }

    @Test("the folio of a dear write is split before it, once")
    func splitsFolios() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.writeNanoseconds = FolioSplits.dearNanoseconds + 1
        world.splitNanoseconds = FolioSplits.realNanoseconds + 1
        write(2, at: 0, socket, &loop)
        #expect(world.splits.isEmpty)
        write(1, at: 8192, socket, &loop)
        #expect(world.splits == [8192])
        world.writeNanoseconds = 2000
        write(2, at: 16384, socket, &loop)
        write(2, at: 600 << 10, socket, &loop)
        #expect(world.splits == [8192, 600 << 10])
    }

    @Test("what cannot be split is not tried again")
    func splitsNothing() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.canSplitFolios = false
        world.writeNanoseconds = FolioSplits.dearNanoseconds + 1
        write(3, at: 0, socket, &loop)
        write(3, at: 600 << 10, socket, &loop)
        #expect(world.splits.count == 1)
    }

    @Test("a split that waits is the last for a while")
    func slowSplits() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.writeNanoseconds = FolioSplits.dearNanoseconds + 1
        world.splitNanoseconds = FolioSplits.slowNanoseconds + 1
        write(3, at: 0, socket, &loop)
        write(3, at: 600 << 10, socket, &loop)
        #expect(world.splits.count == 1)
    }

    @Test("P6: a ring asks nothing of a disk's file while an operation on it hangs")
    func stalledDisk() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.hung = [Self.source]
        request(0, 1, 65536, 4096, socket)
        settle(&loop)
        pass(2 * Limits.stallNanoseconds, &loop)
        #expect(!live.source.isStalled, "a read keeps no lock")
        request(1, 3, 65536, 4096, socket)
        send([UInt8](repeating: 5, count: 4096), socket)
        settle(&loop)
        pass(Limits.stallNanoseconds + 1, &loop)
        #expect(live.source.isStalled)
        world.inlineWrites = 0
        request(1, 2, 0, 4096, socket)
        send([UInt8](repeating: 5, count: 4096), socket)
        settle(&loop)
        #expect(world.inlineWrites == 0)
        world.hung = []
        settle(&loop)
        pass(Limits.hungNanoseconds, &loop)
        #expect(!live.source.isStalled)
        _ = world.take(from: socket)
        write(1, at: 0, socket, &loop)
        #expect(world.inlineWrites == 1)
    }

    @Test("P6: workers that hang are replaced, and a file's own thread is none of the kernel's")
    func hungWorkers() throws {
        var loop = try loop()
        let socket = guest(&loop)
        world.workers = 4
        world.hung = [Self.source]
        world.changeThreads = [Self.source]
        request(1, 1, 0, 4096, socket)
        send([UInt8](repeating: 5, count: 4096), socket)
        settle(&loop)
        pass(Limits.stallNanoseconds + 1, &loop)
        #expect(live.source.isStalled)
        #expect(world.workers == 4)
        request(0, 2, 65536, 4096, socket)
        settle(&loop)
        pass(Limits.hungNanoseconds + 1, &loop)
        #expect(world.workers == 20)
        world.changeThreads = []
        world.hung = []
        settle(&loop)
        pass(Limits.hungNanoseconds + 1, &loop)
        #expect(world.workers == 4)
        world.hung = [Self.source]
        request(1, 3, 0, 4096, socket)
        send([UInt8](repeating: 5, count: 4096), socket)
        settle(&loop)
        pass(Limits.hungNanoseconds + 1, &loop)
        #expect(world.workers == 20)
    }

    @Test("a ring says which files it changes: no devices, and of direct ones the end apart")
    func enteredFiles() throws {
        var loop = try loop()
        #expect(world.entered.isEmpty, "a device is no file")
        let tail: Int32 = 4 << 24
        let wants: [(change: (inout SourceFacts) -> Void, entered: [Int32: Bool])] = [
            ({ $0.type = .regular }, [3 << 24: true]),
            ({ ($0.type, $0.alignment) = (.regular, 512) }, [3 << 24: false]),
            (
                { ($0.type, $0.alignment, $0.tailRaw) = (.regular, 512, tail) },
                [3 << 24: false, tail: true]
            ),
            ({ ($0.type, $0.isReadOnly) = (.regular, true) }, [:]),
        ]
        for want in wants {
            let disk = other("/elsewhere", want.change)
            shared.mailboxes[0].post(.addDisk(disk, nil, Replies().ticket()))
            settle(&loop)
            #expect(world.entered == want.entered)
            var detach = DetachCall(
                disk.disk, disk.id, home: 0, gracefulMilliseconds: 1_000,
                forcedMilliseconds: 1_000, shared, now: world.now)
            for _ in 0..<10 where detach.step(now: world.now) == nil { settle(&loop) }
            #expect(world.entered.isEmpty)
        }
    }

    @Test("P6: of what is asked for elsewhere, a read that hangs says enough")
    func stalledFarDisk() throws {
        var loop = try emptyLoop()
        let disk = other("/nfs/disk") { ($0.type, $0.isFar) = (.regular, true) }
        world.files[3 << 24] = [UInt8](repeating: 7, count: Self.diskBytes)
        shared.mailboxes[0].post(.addDisk(disk, nil, Replies().ticket()))
        _ = scope.add(.live(disk))
        let socket = guest(&loop, "vdb")
        world.hung = [3 << 24]
        request(0, 1, 65536, 4096, socket)
        settle(&loop)
        pass(Limits.stallNanoseconds + 1, &loop)
        #expect(disk.source.isStalled)
    }
}
