import Control
import Foundation
import Testing

/// Directories in which somebody else could replace files.
@Suite struct DirectoryTrustTests {
    private typealias Facts = DirectoryTrust.Facts

    @Test("a state directory that others could change is refused, with what to do")
    func refused() {
        let fine: [(UInt32, UInt32)] = [
            (1000, 0o40700), (1000, 0o40755), (0, 0o40770), (1000, 0o42775), (0, 0o41777),
        ]
        for (owner, mode) in fine {
            let said = DirectoryTrust.refusal(Facts(owner: owner, mode: mode), user: 1000)
            #expect(said == nil, "\(said ?? "")")
        }
        let foreign = DirectoryTrust.refusal(Facts(owner: 1001, mode: 0o40700), user: 1000)
        #expect(foreign?.contains("uid 1001") == true && foreign?.contains("chown") == true)
        let roots = DirectoryTrust.refusal(Facts(owner: 1001, mode: 0o40700), user: 0)
        #expect(roots != nil)
        let open = DirectoryTrust.refusal(Facts(owner: 1000, mode: 0o40777), user: 1000)
        #expect(open?.contains("mode 0777") == true && open?.contains("chmod 0700") == true)
    }

    @Test("what is used all the same is told")
    func warned() {
        func warning(_ owner: UInt32, _ mode: UInt32) -> String? {
            DirectoryTrust.warning(
                "/d", what: "the run directory", Facts(owner: owner, mode: mode), user: 1000)
        }
        #expect(warning(1000, 0o40750) == nil && warning(0, 0o40755) == nil)
        #expect(warning(1000, 0o40777)?.contains("'/d' can be written to by every user") == true)
        #expect(warning(1000, 0o41777) != nil)
        #expect(warning(1000, 0o40775)?.contains("by its group") == true)
        #expect(warning(7, 0o40700)?.contains("another user (uid 7)") == true)
    }

    @Test("the state directory itself is looked at, before its lock is taken")
    func stateDirectory() throws {
        let fixture = try ControlFixture()
        let path = fixture.stateDirectory
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        func set(_ mode: Int) throws {
            try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
        }
        try set(0o777)
        let error = #expect(throws: ControlError.self) { try StateDirectory(path: path) }
        #expect(error?.code == "state-directory-unusable", "\(error?.message ?? "")")
        #expect(error?.message.contains("chmod 0700") == true)
        #expect(throws: ControlError.self) { try StateDirectory.checkCanGoOn(path) }
        #expect(!FileManager.default.fileExists(atPath: path + "/lock"))
        try set(0o1777)
        try StateDirectory(path: path).release()
        try set(0o700)
        try StateDirectory(path: path).release()
    }
}
