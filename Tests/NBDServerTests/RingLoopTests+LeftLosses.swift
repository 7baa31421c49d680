import Disk
import SystemLayer
import Testing
import TrackingFiles

@testable import NBDServer

/// Losses of which the machine has not heard when its server goes.
extension RingLoopTests {
    @Test("P5: a loss that the guest has not heard of is left for the server after a kill")
    func unheardLoss() throws {
        let directory = try OwnDirectory()
        let memory = DiskDirectory(directory.path + "/memory")
        let doubt = TrackingDoubt(
            TrackingPlaces(
                files: DiskDirectory(directory.path + "/1"), memory: memory, isInMemory: true,
                mark: nil), spare: shared.spare)
        var loop = try emptyLoop()
        try addTracked(live, &loop, directory, memory: memory)
        settle(&loop)
        let socket = guest(&loop)
        #expect(!doubt.hasUnheardLoss)
        lost.set()
        tick(Limits.lossTicks, &loop)
        #expect(doubt.hasUnheardLoss)
        request(3, 1, 0, 0, socket)
        settle(&loop)
        #expect(world.take(from: socket) == failed(1, Self.ioError))
        #expect(!doubt.hasUnheardLoss)
        tick(2 * Limits.lossTicks, &loop)
        #expect(!doubt.hasUnheardLoss)
    }

    @Test("P5: flushes fail on a disk of which an earlier server has left that it lost writes")
    func leftLoss() throws {
        var loop = try loop()
        let socket = guest(&loop)
        live.source.expectLossToBeHeard()
        for cookie in 1...2 as ClosedRange<UInt64> {
            request(3, cookie, 0, 0, socket)
            settle(&loop)
        }
        #expect(
            world.take(from: socket) == failed(1, Self.ioError) + failed(2, Self.ioError))
        #expect(!live.source.hasLostWrites, "nothing recorded of it is wrong")
    }

    @Test("P5: a server whose disk has lost writes is not quiet, however late it hears of that")
    func lossWhileLeaving() throws {
        var loop = try loop()
        shared.mailboxes[0].post(.depart(Replies().ticket()))
        settle(&loop)
        let isQuiet = loop.hush()
        lost.set()
        let isQuietNow = loop.hush()
        #expect(isQuiet && !isQuietNow)
    }
}
