import Disk
import Foundation
import Glibc

/// The text at the start of a device, or of a file of `--reuse-external`, whose backup failed.
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

    private static let text = "nbdpull: this is no backup, the job that wrote it failed\n"
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
        var waited = 0
        while true {
            guard let found = SystemCalls.reached(target.path) else {
                return .failed("\(name): it is not there")
            }
            guard found.identity == identity else {
                return .givenUp("\(name): it is another by now")
            }
            switch attempt(target.path, identity, isBlock: found.isBlock) {
            case .done: return .done
            case .isAnother: return .givenUp("\(name): it is another by now")
            case .refused(let detail): return .failed("\(name): \(detail)")
            case .inUse(let detail):
                guard waited < busyMilliseconds else {
                    return .givenUp("\(name): it is in use: \(detail)")
                }
                usleep(UInt32(lookMilliseconds) * 1000)
                waited += lookMilliseconds
            }
        }
    }

    private static func attempt(
        _ path: String, _ identity: SystemCalls.FileIdentity, isBlock: Bool
    ) -> Attempt {
        do throws(SystemCalls.Failure) {
            // Of a device it asks for nobody else to have it, be it as a file system.
            let file = try SystemCalls.open(
                path, flags: O_RDWR | O_NONBLOCK | (isBlock ? O_EXCL : 0))
            guard try SystemCalls.reached(file).identity == identity else { return .isAnother }
            do throws(SourceFault) {
                try SourceLock.acquire(file.raw, forWriting: true)
            } catch {
                if case .inUse(let detail, _) = error { return .inUse(detail) }
                guard SourceLock.isMissing(error) else { return .refused("\(error)") }
            }
            var bytes = Array(text.utf8)
            bytes += [UInt8](repeating: 0, count: byteCount - bytes.count)
            try SystemCalls.writeDurably(bytes, to: file)
            return .done
        } catch {
            guard error.isBusy else { return .refused(error.text) }
            return .inUse("another program, or a file system on it, has it")
        }
    }
}
