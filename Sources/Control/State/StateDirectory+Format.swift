import Foundation
import Glibc

/// What version's ways the whole directory follows, in a file of its own beside the records'
/// versions: a server of an earlier version must not begin with what it would misread or forget.
extension StateDirectory {
    /// Counts up when an earlier version must not use the directory any more.
    static let formatVersion: UInt64 = 1
    private static let formatTitle = "nbdpull-state-directory "

    /// Refuses a directory of a newer format; one without any is of this one from now on.
    static func checkFormat(_ path: String) throws(ControlError) {
        let file = path + "/format"
        try refuseNewerFormat(path)
        if formatVersion(at: file) == formatVersion { return }
        // Where it cannot be written, a later version has nothing to fear but this one's records,
        // and these have versions of their own.
        do throws(SystemCalls.Failure) {
            try SystemCalls.unlink(file + ".new")
            let descriptor = try SystemCalls.open(
                file + ".new", flags: O_WRONLY | O_CREAT | O_EXCL)
            try SystemCalls.writeDurably(
                Array("\(formatTitle)\(formatVersion)\n".utf8), to: descriptor)
            try SystemCalls.rename(file + ".new", to: file)
            try SystemCalls.syncDirectory(path)
        } catch {
            return
        }
    }

    /// Refuses a directory of a newer format; changes nothing.
    static func refuseNewerFormat(_ path: String) throws(ControlError) {
        guard let found = formatVersion(at: path + "/format"), found > formatVersion else { return }
        throw ControlError(
            code: "state-directory-newer", libvirtCode: 55,
            message: "Requested operation is not valid: a newer version has used the state"
                + " directory '\(path)' (format \(found), this one knows up to \(formatVersion)):"
                + " start the newer version again, or give this one another --state-dir",
            httpStatus: 409)
    }

    private static func formatVersion(at file: String) -> UInt64? {
        // Opening a pipe would wait for its writer.
        guard SystemCalls.identity(of: file)?.kind == .regular,
            let handle = FileHandle(forReadingAtPath: file)
        else { return nil }
        defer { try? handle.close() }
        guard let data = try? handle.read(upToCount: 64) else { return nil }
        let line = String(decoding: data, as: UTF8.self).prefix { !$0.isNewline }
        guard line.hasPrefix(formatTitle) else { return nil }
        return UInt64(line.dropFirst(formatTitle.count))
    }
}
