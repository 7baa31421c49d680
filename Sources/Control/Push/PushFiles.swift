import Foundation
import ServerInterface

/// What a push job does to the files that it was given, before and after the workers; each call is
/// made on a thread that may hang.
enum PushFiles {
    /// A file that is being written has the target's name and this: what has the name itself is
    /// whole.
    static let partialSuffix = ".partial"
    /// What a backup that failed has left.
    static let failedSuffix = ".failed"
    /// Why a call came to nothing.
    struct Problem: Error, Sendable, Hashable {
        enum Kind: Sendable, Hashable { case exists, other }
        var kind = Kind.other
        let text: String
    }

    /// Makes the empty file that is written, 0600; the target itself must not exist.
    static func create(_ path: String) -> Result<SystemCalls.FileIdentity, Problem> {
        guard SystemCalls.identity(of: path) == nil else {
            return .failure(Problem(kind: .exists, text: path))
        }
        do throws(SystemCalls.Failure) {
            return .success(try SystemCalls.createNew(path + partialSuffix))
        } catch {
            guard !error.alreadyExists else {
                return .failure(Problem(kind: .exists, text: path + partialSuffix))
            }
            return .failure(Problem(text: error.text))
        }
    }

    /// Removes a file that was made for a job that did not begin.
    static func remove(_ target: StoredJob.Target) {
        guard target.isNew, let identity = target.identity else { return }
        let path = target.path + partialSuffix
        guard SystemCalls.identity(of: path)?.identity == identity else { return }
        _ = try? SystemCalls.unlink(path)
    }

    /// Gives the finished file its name, durably; the problem if that is taken by now.
    static func publish(_ target: StoredJob.Target) -> String? {
        guard target.isNew else { return nil }
        let partial = target.path + partialSuffix
        guard SystemCalls.identity(of: partial)?.identity == target.identity else {
            return "'\(partial)' is no longer the file that was written"
        }
        do throws(SystemCalls.Failure) {
            try SystemCalls.renameToNew(partial, target.path)
            try SystemCalls.syncDirectory((target.path as NSString).deletingLastPathComponent)
            return nil
        } catch {
            return "'\(target.path)': \(error.text)"
        }
    }

    /// Marks what a failed backup has written, so that nobody takes it for a good one.
    static func spoil(_ target: StoredJob.Target) -> TargetMark.Outcome {
        guard target.isNew else { return TargetMark.write(to: target) }
        guard let identity = target.identity else { return .done }
        do throws(SystemCalls.Failure) {
            // It may have had its name already when something else went wrong.
            for path in [target.path + partialSuffix, target.path]
            where SystemCalls.identity(of: path)?.identity == identity {
                try setAside(path, as: target.path + failedSuffix)
                try SystemCalls.syncDirectory(
                    (target.path as NSString).deletingLastPathComponent)
            }
            return .done
        } catch {
            return .failed("'\(target.path)' cannot be marked as failed: \(error.text)")
        }
    }

    // Nothing is replaced: what has that name may be anything, the last failed backup for instance.
    private static func setAside(_ path: String, as failed: String) throws(SystemCalls.Failure) {
        let identity = SystemCalls.identity(of: path)?.identity
        for number in 0..<failedMax {
            let name = number == 0 ? failed : failed + ".\(number)"
            // Two names of one file, of which one was given and the other not yet taken.
            if let identity, SystemCalls.identity(of: name)?.identity == identity {
                _ = try SystemCalls.unlink(path)
                return
            }
            do throws(SystemCalls.Failure) {
                return try SystemCalls.renameToNew(path, name)
            } catch {
                guard error.alreadyExists, number + 1 < failedMax else { throw error }
            }
        }
    }

    /// Failed backups of one target that are kept.
    private static let failedMax = 100

    /// Takes back a name that was given: the file is written again.
    static func unpublish(_ target: StoredJob.Target) {
        guard target.isNew, let identity = target.identity,
            SystemCalls.identity(of: target.path)?.identity == identity
        else { return }
        // It may have both names: the process ended between giving one and taking the other.
        if SystemCalls.identity(of: target.path + partialSuffix)?.identity == identity {
            _ = try? SystemCalls.unlink(target.path)
            return
        }
        _ = try? SystemCalls.renameToNew(target.path, target.path + partialSuffix)
    }
}
