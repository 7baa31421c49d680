import Disk
import Foundation
import Glibc
import SystemLayer
import Testing
import UnitSupport

/// Pipes under names where files are expected: whoever opens one waits for its writer.
@Suite struct PipeTests {
    @Test(
        "a pipe that nobody writes to is opened at once, and is no source", .timeLimit(.minutes(1)))
    func opened() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("pipe")
        try #require(unsafe mkfifo(path, 0o600) == 0)
        for readOnly in [false, true] {
            let wrong = SourceFault.wrongType(expected: .regular, found: .other)
            #expect(throws: wrong) {
                try RawSource(path: path, expected: .regular, readOnly: readOnly, direct: false)
            }
        }
        // So do files of keys and rules, which are read as empty.
        #expect(try StateFiles.read(path, limit: 100) == [])
    }
}
