import Foundation
import Glibc
import SystemLayer
import Testing
import UnitSupport

/// What tells one content of a file from the next.
@Suite struct FileIdentityTests {
    @Test(
        "P6: whatever time somebody gives a file, it can be told from others",
        arguments: [-1, -9_000_000_000, 99_999_999_999, Int.min / 2, Int.max / 2])
    func times(seconds: Int) throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("file")
        let file = try FileCalls.open(path, [.write, .createNew])
        let before = try FileCalls.identity(file.raw)
        let time = timespec(tv_sec: seconds, tv_nsec: 999_999_999)
        let times = [time, time]
        // A file system that cannot hold the time takes the nearest one.
        _ = unsafe utimensat(AT_FDCWD, path, times, 0)
        let after = try FileCalls.identity(file.raw)
        #expect(after.inode == before.inode)
        #expect(after.changedNanoseconds != before.changedNanoseconds)
    }
}
