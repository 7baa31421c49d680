import Disk
import Foundation
import Glibc

/// The text at the start of a device, or of a file of `--reuse-external`, whose backup failed, and
/// all that is left in a file that was made for it.
///
/// It is written only over what a worker of the job has had, and only while nobody else has it: by
/// the time a job fails, its device may have been given to somebody else. A call may hang.
enum TargetMark {
    /// How it has gone.
    enum Outcome: Sendable, Hashable {
        /// Nothing is left to be done.
        case done
        /// Somebody else's by now: it is not touched, now or later.
        case givenUp(String)
        /// It may be tried again.
        case failed(String)

        /// One line for people, nil when nothing is wrong.
        var problem: String? {
            switch self {
            case .done: nil
            case .givenUp(let text), .failed(let text): text
            }
        }
    }

    private enum Attempt {
        case done
        case isAnother
        case inUse(String)
        case refused(String)
    }

    /// What has such a text at its start is no backup.
    static let text = "nbdpull: this is no backup, the job that wrote it failed\n"
    private static let byteCount = 512
    /// Workers that have been killed, and their programs, let go of a target in a moment.
    private static let busyMilliseconds = 3_000
    private static let lookMilliseconds = 50

    /// Marks a target that was there before the job.
    static func write(to target: StoredJob.Target) -> Outcome {
        guard target.isBegun == true else { return .done }
        let name = "'\(target.path)' is not marked as failed"
        // After a restart of the machine a device of that name may be another one.
        guard let identity = target.identity, target.bootID == SystemCalls.bootID else {
            return .givenUp("\(name): it is another by now")
        }
        let outcome = onceFree {
            guard let found = SystemCalls.reached(target.path) else {
                return .refused("it is not there")
            }
            guard found.identity == identity else { return .isAnother }
            return attempt(
                target.path, identity, O_RDWR | O_NONBLOCK | (found.isBlock ? O_EXCL : 0), mark)
        }
        switch outcome {
        case .done: return .done
        case .isAnother: return .givenUp("\(name): it is another by now")
        case .refused(let detail): return .failed("\(name): \(detail)")
        case .inUse(let detail): return .givenUp("\(name): it is in use: \(detail)")
        }
    }

    /// Leaves nothing but the text of a file that was made for the backup, so that it takes no
    /// room; nil, or what is in the way now.
    static func empty(_ path: String, _ identity: SystemCalls.FileIdentity) -> String? {
        let outcome = onceFree {
            attempt(path, identity, O_RDWR | O_NONBLOCK | O_NOFOLLOW) {
                (file: borrowing SystemCalls.Descriptor) throws(SystemCalls.Failure) in
                try SystemCalls.empty(file)
                // Its name says the same: a text without room is none.
                try? mark(file)
            }
        }
        switch outcome {
        case .done, .isAnother: return nil
        case .refused(let detail), .inUse(let detail): return detail
        }
    }

    private static func mark(
        _ file: borrowing SystemCalls.Descriptor
    ) throws(SystemCalls.Failure) {
        var bytes = Array(text.utf8)
        bytes += [UInt8](repeating: 0, count: byteCount - bytes.count)
        try SystemCalls.writeDurably(bytes, to: file)
    }

    // Workers that have been killed are not waited for longer than a moment.
    private static func onceFree(_ body: () -> Attempt) -> Attempt {
        var waited = 0
        while true {
            let outcome = body()
            guard case .inUse = outcome, waited < busyMilliseconds else { return outcome }
            usleep(UInt32(lookMilliseconds) * 1000)
            waited += lookMilliseconds
        }
    }

    // O_EXCL asks of a device that nobody else has it, be it as a file system.
    private static func attempt(
        _ path: String, _ identity: SystemCalls.FileIdentity, _ flags: Int32,
        _ body: (borrowing SystemCalls.Descriptor) throws(SystemCalls.Failure) -> Void
    ) -> Attempt {
        do throws(SystemCalls.Failure) {
            let file = try SystemCalls.open(path, flags: flags)
            guard try SystemCalls.reached(file).identity == identity else { return .isAnother }
            do throws(SourceFault) {
                try SourceLock.acquire(file.raw, forWriting: true)
            } catch {
                if case .inUse(let detail, _) = error { return .inUse(detail) }
                guard SourceLock.isMissing(error) else { return .refused("\(error)") }
            }
            try body(file)
            return .done
        } catch {
            guard error.isBusy else { return .refused(error.text) }
            return .inUse("another program, or a file system on it, has it")
        }
    }
}
