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

    @Test("whoever is to take over sees first that it can go on; the text says what is in the way")
    func canGoOn() throws {
        let fixture = try ControlFixture()
        let path = fixture.stateDirectory
        let state = try StateDirectory(path: path)
        func refusal(given: Set<String> = []) -> String {
            do throws(ControlError) {
                try StateDirectory.checkCanGoOn(path, given: given)
                return ""
            } catch {
                return error.message
            }
        }
        #expect(refusal() == "")
        var job = StoredJob(id: "j", domain: "vm1", begun: Date(), scratch: [], socketPath: nil)
        job.resume = Lenient(nil)
        try state.save(job)
        #expect(refusal(given: ["vm1"]).contains("begun by a version"))
        job.resume = nil
        try state.save(job)
        #expect(refusal() == "", "a job that cannot go on anyway is in nobody's way")
        let newer = path + "/domains/x.state"
        try "nbdpull-state 9 domain 0 0\n".write(toFile: newer, atomically: true, encoding: .utf8)
        #expect(refusal().contains("written by a newer version"))
        state.release()
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
