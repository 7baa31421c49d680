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

    /// Marks what a failed backup has written, so that nobody takes it for a good one, and empties
    /// it where the job had made it: the room is for others.
    static func spoil(_ target: StoredJob.Target) -> TargetMark.Outcome {
        guard target.isNew else { return TargetMark.write(to: target) }
        guard let identity = target.identity else { return .done }
        var problem: String?
        var isEmptied = false
        do throws(SystemCalls.Failure) {
            let partial = target.path + partialSuffix
            if try SystemCalls.existing(partial)?.identity == identity {
                problem = TargetMark.empty(partial, identity)
                isEmptied = true
                try setAside(partial, identity, as: target.path + failedSuffix)
            }
            // It may have had its name already when something else went wrong. While it has that,
            // it is whole.
            if try SystemCalls.existing(target.path)?.identity == identity {
                try setAside(target.path, identity, as: target.path + failedSuffix)
            }
            // By now, or since an earlier attempt.
            if let failed = try named(identity, like: target.path + failedSuffix) {
                if !isEmptied { problem = TargetMark.empty(failed, identity) }
                try SystemCalls.syncDirectory(
                    (target.path as NSString).deletingLastPathComponent)
            }
        } catch {
            return .failed("'\(target.path)' cannot be marked as failed: \(error.text)")
        }
        guard let problem else { return .done }
        return .failed("'\(target.path)' is marked as failed, and still takes room: \(problem)")
    }

    // Nothing is replaced: what has that name may be anything, the last failed backup for instance.
    private static func setAside(
        _ path: String, _ identity: SystemCalls.FileIdentity, as failed: String
    ) throws(SystemCalls.Failure) {
        // Two names of one file, of which one was given and the other not yet taken.
        if try named(identity, like: failed) != nil {
            _ = try SystemCalls.unlink(path)
            return
        }
        for number in 0..<failedMax {
            do throws(SystemCalls.Failure) {
                return try SystemCalls.renameToNew(path, failedName(failed, number))
            } catch {
                guard error.alreadyExists, number + 1 < failedMax else { throw error }
            }
        }
    }

    // The first name of a failed backup that leads to this file, if any does.
    private static func named(
        _ identity: SystemCalls.FileIdentity, like failed: String
    ) throws(SystemCalls.Failure) -> String? {
        for number in 0..<failedMax {
            let name = failedName(failed, number)
            if try SystemCalls.existing(name)?.identity == identity { return name }
        }
        return nil
    }

    private static func failedName(_ failed: String, _ number: Int) -> String {
        number == 0 ? failed : failed + ".\(number)"
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
