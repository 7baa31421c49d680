import Testing

@testable import NBDServer
@testable import ServerInterface

/// Begins whose caller has second thoughts.
@Suite struct GivenUpBeginTests {
    @Test("a begin that is given up before its instant has made everything and leaves nothing")
    func givenUp() async throws {
        let fixture = try await ServerFixture()
        let scratch = ScratchConfiguration(
            kind: .file, path: fixture.path("scratch"), reuseExternal: false)
        let configuration = JobConfiguration(
            id: "job",
            disks: [
                JobDiskConfiguration(
                    disk: fixture.disk, target: "vda", exportName: "vda", scratch: scratch)
            ], endpoint: .unix(path: fixture.path("job.sock"), mode: 0o600))
        let seen = Tally()
        let error = await #expect(throws: ServerFault.self) {
            try await fixture.server.beginJob(configuration) {
                if fixture.exists("scratch"), fixture.exists("job.sock") { seen.add() }
                return false
            }
        }
        #expect(error == .givenUp)
        #expect(seen.value == 1)
        #expect(!fixture.exists("scratch") && !fixture.exists("job.sock"))
        // The disk, and all names, are free.
        _ = try await fixture.begin()
        _ = try await fixture.server.endJob(id: "job")
        await fixture.close()
    }
}
