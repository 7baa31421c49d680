import CLinux
import Foundation
import Glibc
import IORing
import SharedMemory
import Synchronization
import SystemLayer
import Testing

/// Memory and descriptors of front-ends, taken and given back.
@Suite struct GuestMemoryTests {
    /// Threads that are asked for and do not run.
    private final class Threads: Sendable {
        let bodies = Mutex<[@Sendable () -> Void]>([])
        let areThere = Atomic<Bool>(true)
        func start(_: String, _ body: @escaping @Sendable () -> Void) -> Bool {
            guard areThere.load(ordering: .relaxed) else { return false }
            bodies.withLock { $0.append(body) }
            return true
        }
        var count: Int { bodies.withLock { $0.count } }
        func runFirst() {
            let body = bodies.withLock { $0.removeFirst() }
            body()
        }
    }

    /// What a descriptor is of; nil when it is closed.
    ///
    /// Another test may get the number at once.
    private static func identity(_ descriptor: Int32) -> String? {
        let link = try? FileManager.default.destinationOfSymbolicLink(
            atPath: "/proc/self/fd/\(descriptor)")
        let facts = try? String(contentsOfFile: "/proc/self/fdinfo/\(descriptor)", encoding: .utf8)
        guard let link, let facts else { return nil }
        return link + (facts.split(separator: "\n").first { $0.hasPrefix("eventfd-id") } ?? "")
    }
    private static func pipeEnds() -> [Int32] {
        var ends: [Int32] = [-1, -1]
        // SAFETY: the kernel fills the two numbers.
        unsafe _ = pipe(&ends)
        return ends
    }
    private static func memory(_ bytes: Int) throws -> OwnedDescriptor {
        let file = OwnedDescriptor(
            // SAFETY: the name is a constant.
            adopting: try SystemFault.check("memfd_create") { unsafe nbdpull_memory_file("test") })
        ftruncate(file.raw, off_t(bytes))
        return file
    }

    // MARK: Closing

    @Test(
        "P6: what front-ends have sent is closed on one thread, events at once, and waits when it hangs"
    )
    func closes() {
        let threads = Threads()
        let closer = SlowCloser(startThread: threads.start)
        let ends = Self.pipeEnds()
        let event = eventfd(0, Int32(EFD_CLOEXEC))
        let (isEvent, areEnds) = (Self.identity(event), ends.map(Self.identity))
        #expect(isEvent != nil && !areEnds.contains(nil))
        closer.close([event] + ends)
        #expect(Self.identity(event) != isEvent && ends.map(Self.identity) == areEnds)
        #expect(closer.waiting == 2)
        // The thread hangs: others wait behind it, and there is no second one.
        let later = Self.pipeEnds()
        let areLater = later.map(Self.identity)
        closer.close(later)
        #expect(threads.count == 1 && closer.waiting == 4)
        threads.runFirst()
        #expect(closer.waiting == 0)
        for (end, identity) in zip(ends + later, areEnds + areLater) {
            #expect(Self.identity(end) != identity)
        }
    }

    @Test("P6: without a thread a descriptor stays open until the next one comes")
    func noThread() {
        let threads = Threads()
        threads.areThere.store(false, ordering: .relaxed)
        let closer = SlowCloser(startThread: threads.start)
        let ends = Self.pipeEnds()
        let areEnds = ends.map(Self.identity)
        closer.close([ends[0]])
        #expect(Self.identity(ends[0]) == areEnds[0] && closer.waiting == 1)
        threads.areThere.store(true, ordering: .relaxed)
        closer.close([ends[1]])
        threads.runFirst()
        #expect(closer.waiting == 0)
        for (end, identity) in zip(ends, areEnds) { #expect(Self.identity(end) != identity) }
    }

    @Test("P6: descriptors that cannot be closed are bounded, and it is said once")
    func bounded() {
        let threads = Threads()
        let closer = SlowCloser(startThread: threads.start)
        let ends = Self.pipeEnds()
        while !closer.isFull {
            closer.close((0..<64).map { _ in dup(ends[0]) })
            guard closer.waiting < 4 * SlowCloser.waitingMax else { break }
        }
        #expect(closer.waiting <= SlowCloser.waitingMax + 64)
        #expect(closer.saysFull() && !closer.saysFull())
        threads.runFirst()
        #expect(!closer.isFull && closer.saysFull())
        for end in ends { close(end) }
    }

    @Test(
        "P6: descriptors of a message that is not received stay with the socket, and are closed with it"
    )
    func queued() throws {
        var pair: [Int32] = [-1, -1]
        // SAFETY: the kernel fills the two numbers.
        unsafe _ = socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair)
        let ends = Self.pipeEnds()
        // Twice as many as a message may have.
        let sent = [Int32](repeating: ends[1], count: 16)
        // SAFETY: both arrays outlive the call, which has their counts.
        let count = unsafe nbdpull_send_passing(pair[0], [1, 2, 3], 3, sent, 16)
        #expect(count == 3)
        close(ends[1])
        var bytes: [UInt8] = []
        var descriptors: [Int32] = []
        let got = DescriptorSocket.receive(pair[1], 3, into: &bytes, descriptors: &descriptors)
        #expect(got == -Int(EPROTO) && bytes.isEmpty)
        // They are the caller's to close, where it likes.
        #expect(descriptors.count == 16 && descriptors.allSatisfy { Self.identity($0) != nil })
        for descriptor in descriptors + pair + [ends[0]] { close(descriptor) }
    }

    // MARK: Mapping

    @Test("P6: memory goes with its unmapping, once, whoever still names it")
    func unmapping() throws {
        let budget = MappingBudget(limitBytes: 1 << 20)
        var wish = MappingBudget.Wish()
        wish.wants(8192)
        try budget.take(wish)
        let file = try Self.memory(8192)
        let mapping = try GuestMapping(
            descriptor: file.raw, offset: 0, byteCount: 8192, budget: budget)
        let threads = Threads()
        let closer = SlowCloser(startThread: threads.start)
        closer.unmap([mapping])
        #expect(budget.bytes == 8192)
        threads.runFirst()
        #expect(budget.bytes == 0)
        mapping.unmap()
        #expect(budget.bytes == 0 && mapping.isGone)
    }

    @Test("P6: memory is refused with what is wrong about it, and its budget is given back")
    func refusals() throws {
        let budget = MappingBudget(limitBytes: 1 << 20)
        let file = try Self.memory(4096)
        let ends = Self.pipeEnds()
        let rows: [(Int32, UInt64, Bool, String)] = [
            (ends[0], 4096, false, "no file in memory"),
            (eventfd(0, 0), 4096, false, "no file in memory"),
            // SAFETY: the string outlives the call.
            (unsafe open("/proc/self/exe", O_RDONLY), 4096, false, "no file in memory"),
            (unsafe open("/dev/shm", O_RDONLY | O_DIRECTORY), 4096, false, "no file in memory"),
            (file.raw, 8192, false, "has 4096 bytes, and it would end at byte 8192"),
            (file.raw, 4096, true, "not sealed"),
        ]
        for (descriptor, byteCount, isFixed, text) in rows {
            var wish = MappingBudget.Wish()
            wish.wants(byteCount)
            try budget.take(wish)
            do throws(MappingRefusal) {
                _ = try GuestMapping(
                    descriptor: descriptor, offset: 0, byteCount: byteCount, isFixed: isFixed,
                    budget: budget)
                Issue.record("descriptor \(descriptor) is mapped")
            } catch { #expect(error.text.contains(text), "\(error.text)") }
            #expect(budget.bytes == 0)
            if descriptor != file.raw { close(descriptor) }
        }
        close(ends[1])
    }

    @Test("P6: a front-end gets half of what others have left, so none keeps the next one out")
    func shares() throws {
        let budget = MappingBudget(limitBytes: 64 << 20)
        func take(_ bytes: UInt64, has: UInt64 = 0, stays: Bool = true) throws {
            var wish = MappingBudget.Wish()
            if has > 0 { wish.has(has, stays: stays) }
            wish.wants(bytes)
            try budget.take(wish)
        }
        #expect(throws: MappingRefusal.self) { try take(33 << 20) }
        try take(32 << 20)
        // It has its half; in place of that it may have as much again.
        #expect(throws: MappingRefusal.self) { try take(4096, has: 32 << 20) }
        try take(32 << 20, has: 32 << 20, stays: false)
        budget.give(32 << 20)
        // The next ones get less and less, and always something.
        var share: UInt64 = 16 << 20
        for _ in 0..<4 {
            do throws(MappingRefusal) {
                var wish = MappingBudget.Wish()
                wish.wants(share + 4096)
                try budget.take(wish)
                Issue.record("\(share + 4096) bytes are given")
            } catch {
                #expect(error.text.contains("--vhost-memory") && error.text.contains("\(share)"))
            }
            try take(share)
            share /= 2
        }
        var wish = MappingBudget.Wish()
        for _ in 0..<17_000 { wish.wants(.max) }
        #expect(throws: MappingRefusal.self) { try budget.take(wish) }
    }

    @Test("P6: an entry in the making does not catch the handler for SIGBUS")
    func guardInTheMaking() async {
        await #expect(processExitsWith: .success) {
            let table = nbdpull_guards_install()
            guard let guards = unsafe UnsafeMutableRawPointer(bitPattern: table) else { exit(2) }
            // SAFETY: the table of this process: a count of losses, then entries of a start, an
            // end, and whether they are used. The first has an end and no start yet, as another
            // thread leaves it for a moment.
            unsafe guards.storeBytes(of: UInt.max, toByteOffset: 16, as: UInt.self)
            unsafe guards.storeBytes(of: 1, toByteOffset: 24, as: Int32.self)
            let file = unsafe nbdpull_memory_file("test")
            ftruncate(file, 8192)
            let memory = unsafe mmap(nil, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { exit(3) }
            let start = UInt(bitPattern: memory)
            let number = nbdpull_guard_add(table, start, start + 8192, 4096)
            ftruncate(file, 0)
            let found = unsafe memory.load(fromByteOffset: 4096, as: UInt8.self)
            exit(
                found == 0 && number == 1 && nbdpull_guard_is_gone(table, number) != 0
                    && nbdpull_guard_is_gone(table, 0) == 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }

    @Test("P6: memory that a guest takes back ends no server that notes its crashes")
    func guardBesideNotes() async {
        await #expect(processExitsWith: .success) { exit(survives(notesFirst: true)) }
        await #expect(processExitsWith: .success) { exit(survives(notesFirst: false)) }
    }

    // MARK: Calls

    @Test("P2: a call never waits: its counter is full and blocks, and the ring goes on")
    func fullCounter() throws {
        var ring = try Ring(entries: 8, completionEntries: 64)
        let event = eventfd(0, Int32(EFD_CLOEXEC))
        let call = try CallRing.make(event)
        defer { call.close() }
        // SAFETY (all): eight bytes of a local.
        var most = UInt64.max - 1
        unsafe _ = write(event, &most, 8)
        for _ in 0..<200 {
            ring.prepareCall(call, tag: 1)
            ring.submit(waiting: false)
        }
        var count: UInt64 = 0
        unsafe _ = read(event, &count, 8)
        #expect(count >= .max - 1)
        // Another event takes its place, and each call counts.
        let other = eventfd(0, Int32(EFD_CLOEXEC))
        try call.replace(other)
        close(other)
        let seen = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
        try call.replace(seen)
        for _ in 0..<3 { ring.prepareCall(call, tag: 1) }
        ring.submit(waiting: false)
        unsafe _ = read(seen, &count, 8)
        #expect(count == 3)
        #expect(ring.completionCount == 0)
        #expect(throws: SystemFault.self) { try call.replace(STDIN_FILENO) }
        close(event)
        close(seen)
    }

    @Test("P2: a guest that was called more often at once than there is room is called on")
    func manyCallsAtOnce() throws {
        var ring = try Ring(entries: 512, completionEntries: 1024)
        let event = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
        defer { close(event) }
        let call = try CallRing.make(event)
        defer { call.close() }
        for _ in 0..<300 { ring.prepareCall(call, tag: 1) }
        ring.submit(waiting: false)
        var count: UInt64 = 0
        // SAFETY (both): eight bytes of a local.
        #expect(unsafe read(event, &count, 8) == 8)
        for _ in 0..<3 {
            ring.prepareCall(call, tag: 1)
            ring.submit(waiting: false)
            #expect(unsafe read(event, &count, 8) == 8, "it has not been called")
        }
        #expect(ring.completionCount == 0)
    }
}

/// Loads from a guarded mapping behind the end of its file, in a process that notes crashes; the
/// status to exit with.
private func survives(notesFirst: Bool) -> Int32 {
    let path = "/dev/shm/nbdpull-notes-\(getpid())"
    func note() -> Bool {
        defer { try? FileCalls.remove(path) }
        return (try? FlightRecorder(path: path, facts: [])) != nil
    }
    if notesFirst, !note() { return 2 }
    let table = nbdpull_guards_install()
    if !notesFirst, !note() { return 3 }
    let file = unsafe nbdpull_memory_file("test")
    ftruncate(file, 4096)
    // SAFETY: a mapping of this function's own, which stays.
    let memory = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
    guard table != 0, let memory = unsafe memory, unsafe memory != MAP_FAILED else { return 4 }
    let start = UInt(bitPattern: memory)
    let number = nbdpull_guard_add(table, start, start + 4096, 4096)
    ftruncate(file, 0)
    let found = unsafe memory.load(fromByteOffset: 0, as: UInt8.self)
    return found == 0 && nbdpull_guard_is_gone(table, number) != 0 ? EXIT_SUCCESS : EXIT_FAILURE
}
