import Synchronization
import Testing

@testable import NBDServer
@testable import ServerInterface

/// How many calls have each disk at this moment.
private final class Owners: Sendable {
    private let counts = Mutex<[DiskID: Int]>([:])
    private let clashed = Atomic<Bool>(false)

    var haveClashed: Bool { clashed.load(ordering: .relaxed) }

    func change(_ disks: Set<DiskID>, by step: Int) {
        counts.withLock { counts in
            for disk in disks {
                counts[disk, default: 0] += step
                if counts[disk, default: 0] > 1 { clashed.store(true, ordering: .relaxed) }
            }
        }
    }
}

@Suite struct DiskQueuesTests {
    private func disks(_ numbers: UInt64...) -> Set<DiskID> { Set(numbers.map(DiskID.init)) }

    /// Waits until somebody waits for free disks, so that they are not to be had.
    private func untilWanted(_ queues: DiskQueues, _ disks: Set<DiskID>) async {
        while await queues.take(disks, milliseconds: 1) {
            queues.giveBack(disks)
            try? await Task.sleep(for: .milliseconds(1))
        }
    }

    @Test("a call waits for calls on its own disks only, in the order of their coming")
    func order() async {
        let queues = DiskQueues()
        #expect(await queues.take(disks(1), milliseconds: 1000))
        // One that wants a taken and a free disk keeps others from neither but that free one.
        let both = Task { await queues.take(disks(1, 2), milliseconds: 60_000) }
        await untilWanted(queues, disks(2))
        #expect(await queues.take(disks(3), milliseconds: 1000))
        queues.giveBack(disks(1))
        #expect(await both.value)
        #expect(await !queues.take(disks(1), milliseconds: 10))
        queues.giveBack(disks(1, 2))
        #expect(await queues.take(disks(1, 2), milliseconds: 1000))
    }

    @Test("one that gives up waiting makes way for those behind it")
    func givesUp() async {
        let queues = DiskQueues()
        #expect(await queues.take(disks(1), milliseconds: 1000))
        let first = Task { await queues.take(disks(1, 2), milliseconds: 2000) }
        // It may have given up by the time that this is looked at.
        while queues.waitingCount == 0 { try? await Task.sleep(for: .milliseconds(1)) }
        #expect(await queues.take(disks(2), milliseconds: 60_000))
        #expect(await !first.value)
    }

    @Test("however calls overlap, no disk ever has two, and all get theirs")
    func storm() async {
        let queues = DiskQueues()
        let owners = Owners()
        await withTaskGroup(of: Void.self) { group in
            for call in 0..<400 {
                let wanted = Set(
                    (0...(call % 3)).map { DiskID(number: UInt64((call * 7 + $0 * 5) % 11)) })
                group.addTask {
                    let limit: Int32 = call % 5 == 0 ? 1 : 60_000
                    guard await queues.take(wanted, milliseconds: limit) else { return }
                    owners.change(wanted, by: 1)
                    await Task.yield()
                    owners.change(wanted, by: -1)
                    queues.giveBack(wanted)
                }
            }
        }
        #expect(!owners.haveClashed)
        let all = Set((0..<11).map { DiskID(number: UInt64($0)) })
        #expect(await queues.take(all, milliseconds: 5000))
    }
}
