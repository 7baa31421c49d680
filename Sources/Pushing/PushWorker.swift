import Foundation
import Glibc
import ServerInterface
import Synchronization
import SystemLayer

/// A process that writes the target of one disk of a push job.
///
/// The server starts it, talks to it over its standard input and output, a JSON value in each line,
/// and ends it. It ends by itself when its input does: then there is no server any more. What the
/// storage of the target does to it, it does to nobody else.
package enum PushWorker {
    /// The word by which the server starts it.
    package static let command = "push-worker"
    /// How often it says how far it is, in milliseconds.
    private static let reportMilliseconds: UInt32 = 200

    /// Does all that it is told; returns the exit status.
    package static func run() -> Int32 {
        SystemFacts.ignoreSignalsOfCalls()
        // A service manager tells every process of a service what is meant for the server, which
        // decides what becomes of its jobs; what is started from here ignores them, too.
        for number in [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2] { _ = signal(number, SIG_IGN) }
        // Machines come first; what is started from here inherits it.
        WorkerThread.giveWay()
        guard case .prepare(let order) = readCommand() else { return 64 }
        let progress = PushProgress(bytesPerSecond: order.bytesPerSecond)
        let guarding = RoomGuard(progress) { say(.failed($0.text)) }
        do throws(PushFailure) {
            // From the start: a target that hangs must not keep the process when the server is
            // gone.
            let begin = try listen(progress, guarding)
            let prepared = try PreparedTarget(order)
            guarding.prepared(prepared)
            if let fileSystem = prepared.file.room.fileSystem {
                say(.place(fileSystem: fileSystem))
            }
            say(.ready)
            let source = begin.wait()
            let target = try prepared.begin()
            guarding.begun(target)
            try start("nbdpull-room") { guarding.watch() }
            try reportProgress(progress)
            try write(target, from: source, order, progress)
            guard guarding.keep() else { throw PushFailure("its room was given back") }
            say(.done)
            return 0
        } catch {
            guarding.fail(error)
            return 1
        }
    }

    private static func write(
        _ target: PushTarget, from source: PushSource, _ order: PushOrder, _ progress: PushProgress
    ) throws(PushFailure) {
        let copy = PushCopy(source: source, order: order, target: target, progress: progress)
        try copy.run()
        // Holes may have come and gone since it was measured.
        progress.total.store(progress.bytes.load(ordering: .relaxed), ordering: .relaxed)
        // No news of the copy may come behind this one, which gives the flush its time.
        isFlushing.withLock { $0 = true }
        say(progress)
        say(.flushing)
        try target.finish()
        isFlushing.withLock { $0 = false }
        guard order.verifies else { return }
        say(progress)
        try target.readBack { readers throws(PushFailure) in try copy.verify(readers) }
    }

    private static func say(_ progress: PushProgress) {
        let bytes = progress.bytes.load(ordering: .relaxed)
        let total = progress.total.load(ordering: .relaxed)
        say(.progress(bytes: bytes, total: max(bytes, total)))
    }

    // News only: a copy that hangs says nothing.
    private static func reportProgress(_ progress: PushProgress) throws(PushFailure) {
        try start("nbdpull-report") {
            var last: UInt64 = 0
            while true {
                usleep(reportMilliseconds * 1000)
                let beats = progress.beats.load(ordering: .relaxed)
                isFlushing.withLock { if !$0, beats != last { say(progress) } }
                last = beats
            }
        }
    }

    /// Where the copy is to read, as soon as that has been said.
    private final class Beginning: Sendable {
        private let source = Mutex<PushSource?>(nil)
        private let said = Latch(count: 1)

        func set(_ value: PushSource) {
            let isFirst = source.withLock { source in
                defer { source = value }
                return source == nil
            }
            if isFirst { said.arrive() }
        }

        func wait() -> PushSource {
            _ = said.wait(milliseconds: -1)
            // It was set before anybody arrived.
            return source.withLock { $0 } ?? PushSource(socketPath: "", exportName: "", bitmap: nil)
        }
    }

    private static func listen(
        _ progress: PushProgress, _ guarding: RoomGuard
    ) throws(PushFailure) -> Beginning {
        let begin = Beginning()
        try start("nbdpull-listen") {
            while true {
                switch readCommand() {
                case .limit(let bytes): progress.setLimit(bytes)
                case .copy(let source): begin.set(source)
                case .room(let room): guarding.set(room)
                case .giveRoom:
                    guarding.fail(
                        PushFailure(
                            "'\(guarding.path)': it gave way to a machine whose disk is on the "
                                + "same file system, which was full"))
                case .prepare, nil: break
                }
            }
        }
        return begin
    }

    private static func start(
        _ name: String, _ body: @escaping @Sendable () -> Void
    ) throws(PushFailure) {
        do throws(SystemFault) {
            try WorkerThread.start(name: name, body: body)
        } catch {
            throw PushFailure("no thread: \(error.call): \(error.errorText)")
        }
    }

    /// The next command; without a server the process ends at once.
    private static func readCommand() -> PushCommand? {
        guard let line = readLine(strippingNewline: true) else { _exit(3) }
        return try? JSONDecoder().decode(PushCommand.self, from: Data(line.utf8))
    }

    private static let output = Mutex(())
    private static let isFlushing = Mutex(false)

    private static func say(_ report: PushReport) {
        guard var data = try? JSONEncoder().encode(report) else { return }
        data.append(UInt8(ascii: "\n"))
        output.withLock { _ in
            do {
                try FileHandle.standardOutput.write(contentsOf: data)
            } catch {
                _exit(3)
            }
        }
    }
}
