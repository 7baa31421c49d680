import CLinux
import Foundation
import Glibc
import ServerInterface
import SystemLayer

/// One adapter, from the order to its end.
struct KeptProgram {
    /// News of it.
    enum News {
        case nothing, ready
        case ended(String)
    }

    private enum State {
        /// A program that another server has started still has the image.
        case waitsForLock
        case starts(Process)
        case runs(Process)
        /// It was told to end; by then, on the monotonic clock, in nanoseconds, it is killed.
        case stops(Process, killAt: UInt64)
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
    private var state = State.waitsForLock
    private var lockEnd: UInt64

    /// A program that was told to end writes what it has first.
    private static let stopNanoseconds: UInt64 = 10_000_000_000
    /// Whoever has the lock was told to end by its own keeper, and is killed before this is over.
    private static let lockNanoseconds: UInt64 = stopNanoseconds + 5_000_000_000
    private static let outputBytesMax = 4096

    init(_ order: AdapterOrder) {
        self.order = order
        lockEnd = MonotonicClock.now() + Self.lockNanoseconds
    }

    private var process: Process? {
        switch state {
        case .starts(let process), .runs(let process), .stops(let process, _): process
        case .waitsForLock, .failed: nil
        }
    }

    var descriptor: Int32 { process?.descriptor ?? -1 }

    /// It waits for something that nothing tells.
    var isWatched: Bool {
        switch state {
        case .waitsForLock, .starts, .stops, .failed: true
        case .runs(let process): process.descriptor < 0
        }
    }

    mutating func stop() {
        guard let process else {
            state = .failed("")
            return
        }
        if case .stops = state { return }
        state = .stops(process, killAt: MonotonicClock.now() + Self.stopNanoseconds)
        // Not the signal by which service managers end all processes at once: that one it does not
        // hear.
        _ = kill(process.number, SIGINT)
    }

    mutating func look() -> News {
        switch state {
        case .waitsForLock:
            begin()
            return .nothing
        case .failed(let text): return .ended(text)
        case .starts(let process):
            if let end = endText(process) { return .ended(end) }
            // SAFETY: the string lives for the call.
            guard unsafe access(order.readyFile, F_OK) == 0 else { return .nothing }
            state = .runs(process)
            return .ready
        case .runs(let process): return endText(process).map { .ended($0) } ?? .nothing
        case .stops(let process, let killAt):
            if let end = endText(process) { return .ended(end) }
            if MonotonicClock.now() >= killAt { _ = kill(process.number, SIGKILL) }
            return .nothing
        }
    }

    // MARK: Starting

    private mutating func begin() {
        // SAFETY (all of this): strings and lists live for the calls; the list ends in nil.
        let lock = unsafe open(order.lockFile, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else { return fail("open '\(order.lockFile)'") }
        defer { close(lock) }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            guard MonotonicClock.now() >= lockEnd else { return }
            state = .failed(
                "the program that an earlier server had started for it still runs and does not end"
                    + " ('\(order.lockFile)' is locked)")
            return
        }
        for file in [order.socket, order.readyFile] { unsafe unlink(file) }
        let output = unsafe nbdpull_memory_file("nbdpull-adapter")
        guard output >= 0 else { return fail("memfd_create") }
        var words: [UnsafeMutablePointer<CChar>?] = unsafe ([order.program] + order.arguments).map {
            unsafe strdup($0)
        }
        unsafe words.append(nil)
        defer { unsafe words.forEach { unsafe free($0) } }
        let number = unsafe nbdpull_spawn_adapter(order.program, words, output, lock)
        guard number > 0 else {
            fail("fork")
            close(output)
            return
        }
        state = .starts(
            Process(number: number, descriptor: nbdpull_open_process(number), output: output))
    }

    private mutating func fail(_ call: String) {
        // SAFETY: the C library's text is copied at once.
        state = .failed("\(call): \(unsafe String(cString: strerror(errno)))")
    }

    // MARK: Ending

    /// How it has ended; nil: it runs.
    private func endText(_ process: Process) -> String? {
        var status: Int32 = 0
        // SAFETY: the callee fills the local during the call.
        guard unsafe nbdpull_has_ended(process.number, &status) == 1 else { return nil }
        let said = printed(process.output)
        close(process.output)
        if process.descriptor >= 0 { close(process.descriptor) }
        // SAFETY: the string lives for the call.
        for file in [order.socket, order.readyFile] { unsafe unlink(file) }
        if case .stops = state, status == 0 { return "" }
        let end =
            status > 128 ? "it was killed by signal \(status - 128)" : "it ended with \(status)"
        return said.isEmpty ? end : said
    }

    /// The end of what it has printed.
    private func printed(_ output: Int32) -> String {
        let length = max(lseek(output, 0, SEEK_END), 0)
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
