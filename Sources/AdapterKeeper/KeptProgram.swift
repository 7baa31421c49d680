import CLinux
import Foundation
import Glibc
import ServerInterface
import SystemLayer

/// One adapter, from the order to its end.
struct KeptProgram {
    /// News of it.
    enum News {
        case nothing, ready, waits
        case ended(String)
    }

    private enum State {
        /// A program that another server has started still has the image.
        case waitsForLock
        case starts(Process)
        case runs(Process)
        /// It was told to end; by then, on the monotonic clock, in nanoseconds, it is killed.
        case stops(Process, killAt: UInt64)
        /// It has ended in order, and one before it has not: what that one left is mended.
        case repairs(Process, killAt: UInt64)
        case failed(String)
    }

    private struct Process {
        let number: Int32
        /// Readable when it has ended.
        let descriptor: Int32
        /// What it prints.
        let output: Int32
    }

    private let order: AdapterOrder
    private let orphanPatience: UInt64
    private var state = State.waitsForLock
    private var lockEnd: UInt64
    private var hasSaidThatItWaits = false
    /// A program that had the image open was killed, and what it left is there.
    private var isUnclean = false
    /// The same, and no server was left that could write again what it had not made durable.
    private(set) var mayHaveLost = false
    /// The server has told what may be lost.
    private var isHeard = false
    /// Its server has ended.
    private var isOrphan = false
    /// A server that lives has told it to end.
    private var isStopped = false
    /// It was told to end, and has closed the image.
    private var hasEndedWell = false
    /// It has ended by itself, and not by a signal.
    private var hasRefused = false
    /// What an earlier one left is mended when this one has ended.
    private var mends = true

    /// A program that was told to end writes what it has first.
    private static let stopNanoseconds: UInt64 = 10_000_000_000
    /// One whose server is gone writes what that had not made durable, and nobody else can.
    static let orphanNanoseconds: UInt64 = 30_000_000_000
    /// Nobody waits longer for the image to be mended; the next program's end goes on with it.
    private static let repairNanoseconds: UInt64 = 20_000_000_000
    /// Whoever has the lock was told to end by its own keeper, and is killed before this is over.
    private static let lockNanoseconds =
        max(stopNanoseconds + repairNanoseconds, orphanNanoseconds) + 5_000_000_000
    /// What the lock's file holds, in bytes: an image that was not closed in order, and one whose
    /// program was killed with changes that a machine had been told are written.
    private static let marks = (unclean: off_t(1), lost: off_t(2))
    private static let outputBytesMax = 4096
    /// A program that goes on talking is not listened to.
    private static let outputRoomBytes = 64 << 10

    /// `orphanNanoseconds`: how long it may take to end when its server has gone.
    init(_ order: AdapterOrder, orphanNanoseconds: UInt64 = Self.orphanNanoseconds) {
        self.order = order
        orphanPatience = orphanNanoseconds
        lockEnd = MonotonicClock.now() + Self.lockNanoseconds
    }

    private var process: Process? {
        switch state {
        case .starts(let process), .runs(let process), .stops(let process, _),
            .repairs(let process, _):
            process
        case .waitsForLock, .failed: nil
        }
    }

    var descriptor: Int32 { process?.descriptor ?? -1 }
    /// The process; 0: there is none.
    var number: Int32 { process?.number ?? 0 }

    /// It waits for something that nothing tells.
    var isWatched: Bool {
        switch state {
        case .waitsForLock, .starts, .stops, .repairs, .failed: true
        case .runs(let process): process.descriptor < 0
        }
    }

    var isReady: Bool {
        if case .runs = state { true } else { false }
    }

    /// Its server has ended: the program does, and whoever starts the next one waits for it.
    mutating func orphan() {
        isOrphan = true
        mends = false
        if case .stops(let process, _) = state {
            state = .stops(process, killAt: MonotonicClock.now() + orphanPatience)
        }
        stop()
    }

    /// The server has told what may be lost.
    mutating func hear() { isHeard = true }

    /// It is to end, and the next server waits for it.
    mutating func leave() {
        mends = false
        stop()
    }

    mutating func stop() {
        if !isOrphan { isStopped = true }
        guard let process else {
            state = .failed("")
            return
        }
        switch state {
        case .stops, .repairs: return
        case .waitsForLock, .starts, .runs, .failed: break
        }
        let patience = isOrphan ? orphanPatience : Self.stopNanoseconds
        state = .stops(process, killAt: MonotonicClock.now() + patience)
        // Not the signal by which service managers end all processes at once: that one it does not
        // hear.
        _ = kill(process.number, SIGINT)
    }

    mutating func look() -> News {
        switch state {
        case .waitsForLock:
            begin()
            guard case .waitsForLock = state, !hasSaidThatItWaits else { return .nothing }
            hasSaidThatItWaits = true
            return .waits
        case .failed(let text): return .ended(text)
        case .starts(let process):
            if let end = endText(process) {
                // One that was refused the image has left nothing in it.
                hasEndedWell = hasRefused && !isUnclean
                _ = beginRepair()
                return .ended(end)
            }
            // SAFETY: the string lives for the call.
            guard unsafe access(order.readyFile, F_OK) == 0 else { return .nothing }
            state = .runs(process)
            return .ready
        case .runs(let process): return endText(process).map { .ended($0) } ?? .nothing
        case .stops(let process, let killAt):
            if let end = endText(process) { return beginRepair() ? .nothing : .ended(end) }
            if MonotonicClock.now() >= killAt {
                // Where it is known that nothing was to be lost there is nothing to tell.
                if isOrphan, Self.atStake(order.unflushedFile) != .nothing { markLost() }
                _ = kill(process.number, SIGKILL)
            }
            return .nothing
        case .repairs(let process, let killAt):
            if let end = endText(process) { return .ended(end) }
            if MonotonicClock.now() >= killAt { _ = kill(process.number, SIGKILL) }
            return .nothing
        }
    }

    /// Files that are the program's own.
    private var files: [String] {
        [order.socket, order.sharedSocket, order.readyFile].filter { !$0.isEmpty }
    }

    // MARK: Starting

    private mutating func begin() {
        // SAFETY (all of this): strings and lists live for the calls; the list ends in nil.
        let lock = unsafe open(
            order.lockFile, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard lock >= 0 else { return fail("open '\(order.lockFile)'") }
        defer { close(lock) }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            guard MonotonicClock.now() >= lockEnd else { return }
            state = .failed(
                "the program that an earlier server had started for it still runs and does not end"
                    + " ('\(order.lockFile)' is locked)")
            return
        }
        let mark = lseek(lock, 0, SEEK_END)
        isUnclean = isUnclean || mark >= Self.marks.unclean
        mayHaveLost = mark >= Self.marks.lost || hasLostUnflushed
        isUnclean = isUnclean || mayHaveLost
        // Until it has ended in order. Where this cannot be written, nothing is mended.
        let now = mayHaveLost ? Self.marks.lost : Self.marks.unclean
        if mark < now { _ = ftruncate(lock, now) }
        pointToUnflushed()
        for file in files { unsafe unlink(file) }
        if let process = spawn(
            [order.program] + order.arguments + order.sharingArguments, lock)
        {
            state = .starts(process)
        }
    }

    // MARK: What is not durable

    /// Where it is kept which file an image's server writes to.
    private var pointer: String { order.lockFile + ".unflushed" }
    private var pointedTo: String { (try? String(contentsOfFile: pointer, encoding: .utf8)) ?? "" }

    /// Whether an earlier server has died, and nobody has what was not durable.
    ///
    /// A program that ends in order removes the file that says it is ready; one that is killed does
    /// not. That of this server itself may be killed: its changes are written again.
    private var hasLostUnflushed: Bool {
        let old = pointedTo
        guard old != order.unflushedFile else { return false }
        // SAFETY: the string lives for the call.
        let wasKilled = unsafe access(order.readyFile, F_OK) == 0
        return switch Self.atStake(old) {
        case .whatNobodyHas: true
        case .whatProgramHas: wasKilled
        case .nothing, nil: false
        }
    }

    /// From now on this server's file counts.
    private func pointToUnflushed() {
        let old = pointedTo
        guard old != order.unflushedFile,
            (try? Data(order.unflushedFile.utf8).write(
                to: URL(filePath: pointer), options: .atomic)) != nil
        else { return }
        // SAFETY: the string lives for the call.
        if !old.isEmpty { unsafe unlink(old) }
    }

    /// What a server has said last; nil: it has said nothing.
    private static func atStake(_ file: String) -> AtStake? {
        (try? Data(contentsOf: URL(filePath: file)))?.first.flatMap(AtStake.init)
    }

    private mutating func spawn(_ command: [String], _ lock: Int32) -> Process? {
        // SAFETY: strings and lists live for the calls; the list ends in nil.
        let output = unsafe nbdpull_memory_file("nbdpull-adapter")
        guard output >= 0 else {
            fail("memfd_create")
            return nil
        }
        ftruncate(output, off_t(Self.outputRoomBytes))
        nbdpull_seal_size(output)
        var words: [UnsafeMutablePointer<CChar>?] = unsafe command.map { unsafe strdup($0) }
        unsafe words.append(nil)
        defer { unsafe words.forEach { unsafe free($0) } }
        let number = unsafe nbdpull_spawn_adapter(command[0], words, output, lock)
        guard number > 0 else {
            fail("fork")
            close(output)
            return nil
        }
        return Process(number: number, descriptor: nbdpull_open_process(number), output: output)
    }

    /// The program has ended: starts mending if something is to be mended; false when all is over.
    private mutating func beginRepair() -> Bool {
        // SAFETY: the string lives for the call.
        let lock = unsafe open(order.lockFile, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        guard lock >= 0 else { return false }
        defer { close(lock) }
        // Somebody else may have the image by now, whose end mends it as well.
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else { return false }
        // That it was ready is left of one that was killed, for whoever starts the next.
        for file in files
        where hasEndedWell || order.unflushedFile.isEmpty || file != order.readyFile {
            unsafe unlink(file)
        }
        guard hasEndedWell else { return false }
        guard isUnclean else {
            ftruncate(lock, 0)
            return false
        }
        // Until a server has told what may be lost, and lives to have it end, the next one hears it.
        let isToBeTold = mayHaveLost && !(isHeard && isStopped)
        ftruncate(lock, isToBeTold ? Self.marks.lost : Self.marks.unclean)
        guard !isToBeTold, mends, !order.repair.isEmpty, let process = spawn(order.repair, lock)
        else {
            return false
        }
        state = .repairs(process, killAt: MonotonicClock.now() + Self.repairNanoseconds)
        return true
    }

    private mutating func fail(_ call: String) {
        // SAFETY: the C library's text is copied at once.
        state = .failed("\(call): \(unsafe String(cString: strerror(errno)))")
    }

    // MARK: Ending

    /// How it has ended; nil: it runs.
    private mutating func endText(_ process: Process) -> String? {
        var status: Int32 = 0
        // SAFETY: the callee fills the local during the call.
        guard unsafe nbdpull_has_ended(process.number, &status) == 1 else { return nil }
        let said = printed(process.output)
        close(process.output)
        if process.descriptor >= 0 { close(process.descriptor) }
        hasRefused = (1...128).contains(status)
        let end =
            status > 128 ? "it was killed by signal \(status - 128)" : "it ended with \(status)"
        switch state {
        case .stops:
            hasEndedWell = status == 0
            if status == 0 { return "" }
            // What it has said may be of something else.
            return said.isEmpty ? end : "\(end); \(said)"
        case .repairs:
            if status == 0 { clearMark() }
            return ""
        case .waitsForLock, .starts, .runs, .failed: break
        }
        return said.isEmpty ? end : said
    }

    /// The next server hears of it; the lock is the program's.
    private func markLost() {
        // SAFETY: the string lives for the call.
        let file = unsafe open(order.lockFile, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        guard file >= 0 else { return }
        defer { close(file) }
        _ = ftruncate(file, Self.marks.lost)
        fsync(file)
    }

    private func clearMark() {
        // SAFETY: the string lives for the call.
        let lock = unsafe open(order.lockFile, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        guard lock >= 0 else { return }
        defer { close(lock) }
        if flock(lock, LOCK_EX | LOCK_NB) == 0 { ftruncate(lock, 0) }
    }

    /// The end of what it has printed.
    private func printed(_ output: Int32) -> String {
        // The program has written by the same open file.
        let length = max(lseek(output, 0, SEEK_CUR), 0)
        var bytes = [UInt8](repeating: 0, count: min(Int(length), Self.outputBytesMax))
        // SAFETY: base address and count describe the live array.
        let count = unsafe bytes.withUnsafeMutableBytes {
            unsafe pread(output, $0.baseAddress, $0.count, length - $0.count)
        }
        return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
            .trimmingCharacters(in: .whitespacesAndNewlines)
            .replacingOccurrences(of: "\n", with: "; ")
    }
}
