import Control
import Foundation
import ServerInterface
import Testing

/// The format of the whole state directory.
@Suite struct StateFormatTests {
    @Test("a directory of a newer format is refused with what to do, and left as it is")
    func newer() throws {
        let fixture = try ControlFixture()
        let file = fixture.stateDirectory + "/format"
        try StateDirectory(path: fixture.stateDirectory).release()
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "nbdpull-state-directory 1\n")
        let newer = "nbdpull-state-directory 2\n"
        try newer.write(to: URL(fileURLWithPath: file), atomically: true, encoding: .utf8)
        let error = #expect(throws: ControlError.self) {
            try StateDirectory(path: fixture.stateDirectory)
        }
        #expect(error?.message.contains("start the newer version again") == true)
        #expect(try String(contentsOfFile: file, encoding: .utf8) == newer)
    }

    @Test(
        "a format that cannot be read is written anew",
        arguments: ["", "x", "nbdpull-state-directory y"])
    func damaged(_ text: String) throws {
        let fixture = try ControlFixture()
        let file = fixture.stateDirectory + "/format"
        try StateDirectory(path: fixture.stateDirectory).release()
        try text.write(to: URL(fileURLWithPath: file), atomically: true, encoding: .utf8)
        try StateDirectory(path: fixture.stateDirectory).release()
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "nbdpull-state-directory 1\n")
    }
}
