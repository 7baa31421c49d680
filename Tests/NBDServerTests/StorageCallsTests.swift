import Glibc
import Synchronization
import SystemLayer
import Testing

@testable import BoundedCalls
@testable import NBDServer
@testable import ServerInterface

/// Something that a call hangs on until the test lets go.
private final class Hang: Sendable {
    private let isOver = Mutex(false)
    func end() { isOver.withLock { $0 = true } }
    func wait() { while !isOver.withLock({ $0 }) { usleep(1000) } }
}

/// What calls have left behind.
private final class Notes: Sendable {
    private let lines = Mutex<[String]>([])
    func add(_ line: String) { lines.withLock { $0.append(line) } }
    var all: [String] { lines.withLock { $0 } }
    func appear(_ count: Int) async -> Bool {
        for _ in 0..<500 {
            if all.count >= count { return true }
            try? await Task.sleep(for: .milliseconds(10))
        }
        return false
    }
}

@Suite struct StorageCallsTests {
    private typealias Answer = Result<String, ServerFault>

    private func stick(
        _ calls: StorageCalls, _ place: StoragePlace, _ hang: Hang, count: Int,
        milliseconds: Int32 = 20
    ) async {
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<count {
                group.addTask {
                    _ = await calls.run(at: place, what: "x", .begin(milliseconds: milliseconds)) {
                        () -> Answer in
                        hang.wait()
                        return .success("late")
                    }
                }
            }
        }
    }

    @Test("P6: a thread that waits for its next call keeps nothing of the last one")
    func idleThreads() async {
        let calls = StorageCalls()
        weak var last: Notes?
        do {
            let notes = Notes()
            last = notes
            _ = await calls.run(at: .storage("/a"), what: "x", .begin(milliseconds: 5_000)) {
                () -> Answer in
                notes.add("run")
                return .success("done")
            }
        }
        for _ in 0..<500 where last != nil { try? await Task.sleep(for: .milliseconds(10)) }
        #expect(last == nil)
        // It takes the next one, whatever its place.
        let next = await calls.run(at: .tracking, what: "x", .end(milliseconds: nil)) {
            () -> Answer in .success("next")
        }
        #expect(next == .success("next") && calls.runningCount <= 1)
    }

    @Test("P6: alarms call back when their time is over, unless they are cancelled")
    func alarms() async {
        let notes = Notes()
        // All alarms of the process have one thread, which may be late itself.
        let canceled = Alarms.shared.set(after: 2000) { notes.add("canceled") }
        Alarms.shared.cancel(canceled)
        _ = Alarms.shared.set(after: 40) { notes.add("second") }
        let begin = MonotonicClock.now()
        #expect(await notes.appear(1))
        #expect(MonotonicClock.now() - begin > 30_000_000)
        _ = Alarms.shared.set(after: 2100) { notes.add("last") }
        #expect(await notes.appear(2))
        #expect(notes.all == ["second", "last"])
    }

    @Test("P6: a call that hangs is given up at its limit, and what it makes later is taken back")
    func givenUp() async {
        let (calls, hang, notes) = (StorageCalls(), Hang(), Notes())
        let answer = await calls.run(
            at: .storage("/nfs"), what: "'/nfs/a'", .begin(milliseconds: 30),
            late: { notes.add("removed \($0)") }
        ) { () -> Answer in
            hang.wait()
            return .success("scratch")
        }
        #expect(answer == .failure(.timedOut(what: "'/nfs/a'", milliseconds: 30)))
        #expect(notes.all.isEmpty)
        hang.end()
        #expect(await notes.appear(1))
        #expect(notes.all == ["removed scratch"])
    }

    @Test("P6: a place whose threads all hang holds up no other place")
    func others() async {
        let (calls, hang) = (StorageCalls(), Hang())
        await stick(calls, .storage("/nfs"), hang, count: StorageCalls.threadsPerPlace)
        for place in [StoragePlace.storage("/images"), .host("example"), .tracking, .disks] {
            let answer = await calls.run(at: place, what: "y", .begin(milliseconds: 5000)) {
                Answer.success("done")
            }
            #expect(answer == .success("done"), "\(place)")
        }
        hang.end()
    }

    @Test("P6: where every thread is stuck, a begin is refused at once and an end is done later")
    func stuckPlace() async {
        let (calls, hang, notes) = (StorageCalls(), Hang(), Notes())
        let place = StoragePlace.storage("/nfs")
        await stick(calls, place, hang, count: StorageCalls.threadsPerPlace)
        #expect(calls.runningCount == StorageCalls.threadsPerPlace)
        let begun = await calls.run(at: place, what: "y", .begin(milliseconds: 60_000)) {
            Answer.success("begun")
        }
        #expect(
            begun
                == .failure(
                    .storageStuck(what: "'/nfs'", calls: StorageCalls.threadsPerPlace)))
        let ended = await calls.run(at: place, what: "z", .end(milliseconds: 20)) { () -> Answer in
            notes.add("ended")
            return .success("ended")
        }
        #expect(ended == .failure(.timedOut(what: "z", milliseconds: 20)))
        hang.end()
        #expect(await notes.appear(1))
        // Everything is as before: the place works again, and no thread is left.
        let again = await calls.run(at: place, what: "y", .begin(milliseconds: 5000)) {
            Answer.success("begun")
        }
        #expect(again == .success("begun"))
        for _ in 0..<500 where calls.runningCount > 0 {
            try? await Task.sleep(for: .milliseconds(10))
        }
        #expect(calls.runningCount == 0)
    }

    @Test("more calls than threads of one place all get their turn")
    func turns() async {
        let calls = StorageCalls()
        let sum = await withTaskGroup(of: Int.self) { group in
            for number in 1...200 {
                group.addTask {
                    let answer = await calls.run(
                        at: .tracking, what: "", .end(milliseconds: nil)
                    ) { () -> Result<Int, ServerFault> in
                        usleep(200)
                        return .success(number)
                    }
                    return (try? answer.get()) ?? 0
                }
            }
            return await group.reduce(0, +)
        }
        #expect(sum == 200 * 201 / 2)
    }

    @Test("of calls that wait those go first that are urgent, and then those that come early")
    func urgent() async {
        let (calls, hang, notes, asked) = (StorageCalls(), Hang(), Notes(), Notes())
        let place = StoragePlace.security
        await withTaskGroup(of: Void.self) { group in
            // The place has one thread, which is busy until all of them wait.
            group.addTask {
                _ = await calls.run(at: place, what: "x", .begin(milliseconds: nil)) {
                    () -> Answer in
                    notes.add("begun")
                    hang.wait()
                    return .success("")
                }
            }
            _ = await notes.appear(1)
            for number in 1...8 {
                group.addTask {
                    _ = await calls.run(
                        at: place, what: "x", .begin(milliseconds: nil),
                        isUrgent: { number == 5 && !asked.all.isEmpty }, comesEarly: number == 7
                    ) { () -> Answer in
                        notes.add("\(number)")
                        return .success("")
                    }
                }
            }
            while calls.waitingCount(at: place) < 8 {
                try? await Task.sleep(for: .milliseconds(5))
            }
            asked.add("now")
            hang.end()
        }
        #expect(notes.all.count == 9 && notes.all[1...2] == ["5", "7"], "\(notes.all)")
    }

    @Test("a stop answers whoever waits to begin something, and lets what ends something go on")
    func stop() async {
        let (calls, hang, notes) = (StorageCalls(), Hang(), Notes())
        let begin = Task {
            await calls.run(
                at: .storage("/nfs"), what: "x", .begin(milliseconds: nil),
                late: { notes.add("removed \($0)") }
            ) { () -> Answer in
                hang.wait()
                return .success("scratch")
            }
        }
        let end = Task {
            await calls.run(at: .storage("/nfs"), what: "y", .end(milliseconds: nil)) {
                () -> Answer in
                hang.wait()
                return .success("ended")
            }
        }
        while calls.runningCount < 2 { try? await Task.sleep(for: .milliseconds(1)) }
        calls.stop()
        #expect(await begin.value == .failure(.shuttingDown))
        let refused = await calls.run(at: .storage("/"), what: "z", .begin(milliseconds: nil)) {
            Answer.success("begun")
        }
        #expect(refused == .failure(.shuttingDown))
        hang.end()
        #expect(await end.value == .success("ended"))
        #expect(await notes.appear(1))
    }

    @Test(
        "paths that hang together are one place",
        arguments: [
            ("/nfs/a/b", "/nfs"), ("/nfs", "/nfs"), ("/nfs2/a", "/nfs2"),
            ("/nfs/in ner/x", "/nfs/in ner"),
            ("/images/a", "/images"), ("/a", ""), ("/dev/sda", "/dev/sda"),
            ("/dev/shm/a", "/dev/shm"), ("relative", ""),
        ])
    func places(path: String, place: String) {
        let mounts = ["/", "/dev", "/dev/shm", "/nfs", "/nfs/in ner"]
        #expect(StoragePlace.of(path, mounts: mounts) == .storage(place))
    }

    @Test("mount points are read as the kernel writes them")
    func mountPoints() {
        let text = """
            22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
            40 22 0:35 / /mnt/with\\040blank\\134 rw - nfs4 host:/x rw

            """
        #expect(StoragePlace.mountPoints(in: text) == ["/", "/mnt/with blank\\"])
    }
}
