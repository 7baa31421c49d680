import Foundation
import ServerInterface
import SystemLayer
import Testing
import UnitSupport

@testable import NBDServer

@Suite struct ListenRemedyTests {
    /// What is said where nothing can be listened on at a path.
    private func said(_ path: String) -> String {
        do throws(SystemFault) {
            _ = try Listener.unix(path: path, mode: 0o600)
            return ""
        } catch {
            return ListenEndpoint.unix(path: path, mode: 0o600).remedy(error)
        }
    }

    @Test("an error of a socket's path says what to do")
    func paths() throws {
        let directory = try TemporaryDirectory()
        let file = directory.path("file")
        try #require(file.utf8.count < 100)
        try Data().write(to: URL(filePath: file))
        let live = directory.path("live")
        let listener = try Listener.unix(path: live, mode: 0o600)
        #expect(said(file).contains("no socket: remove it"))
        #expect(said(live).contains("another socket listens there"))
        #expect(said(directory.path("no/socket")).contains("folder does not exist"))
        #expect(said(directory.path(String(repeating: "x", count: 108))).contains("107 bytes"))
        listener.close()
    }
}
