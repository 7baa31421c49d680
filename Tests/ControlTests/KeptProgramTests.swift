import Foundation
import ServerInterface
import Testing
import UnitSupport

@testable import AdapterKeeper

@Suite("A program that has an image open")
struct KeptProgramTests {
    private static let deaf = "trap '' INT; : > $0; exec sleep 60"
    private static let tidy = "trap 'rm $0; exit 0' INT; : > $0; while :; do sleep 0.02; done"

    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func started(
        _ script: String, orphan: UInt64 = KeptProgram.orphanNanoseconds, server: String = "",
        repair: [String] = []
    ) throws -> KeptProgram {
        var program = KeptProgram(
            AdapterOrder(
                id: 1, program: "/bin/sh", arguments: ["-c", script, directory.path("ready")],
                sharingArguments: [], socket: directory.path("socket"), sharedSocket: "",
                readyFile: directory.path("ready"), lockFile: directory.path("lock"),
                unflushedFile: server.isEmpty ? "" : directory.path(server), repair: repair),
            orphanNanoseconds: orphan)
        try #require(news(of: &program) { if case .ready = $0 { true } else { false } })
        return program
    }

    private func news(
        of program: inout KeptProgram, _ isWanted: (KeptProgram.News) -> Bool
    ) -> Bool {
        for _ in 0..<1000 {
            if isWanted(program.look()) { return true }
            usleep(10_000)
        }
        return false
    }

    private func ended(_ program: inout KeptProgram) -> Bool {
        news(of: &program) { if case .ended = $0 { true } else { false } }
    }

    private func kill(_ program: inout KeptProgram) throws {
        Foundation.kill(program.number, SIGKILL)
        try #require(ended(&program))
    }

    /// What a server says of its changes.
    private func say(_ server: String, _ atStake: AtStake) throws {
        try Data([atStake.rawValue]).write(to: directory.url.appending(path: server))
    }

    private var markBytes: Int? {
        (try? Data(contentsOf: directory.url.appending(path: "lock")))?.count
    }

    @Test("killed when its server has gone, what it may have lost is told until the next has ended")
    func orphan() throws {
        var program = try started(Self.deaf, orphan: 50_000_000)
        #expect(!program.mayHaveLost)
        program.orphan()
        try #require(ended(&program))
        #expect(markBytes == 2)

        // A server that is killed before it has kept that is followed by one that hears it, too.
        program = try started(Self.deaf)
        #expect(program.mayHaveLost)
        program.orphan()
        try kill(&program)

        program = try started(Self.tidy)
        #expect(program.mayHaveLost)
        program.hear()
        program.stop()
        try #require(ended(&program))
        program = try started(Self.tidy)
        #expect(!program.mayHaveLost)
        program.orphan()
        try #require(ended(&program))
    }

    @Test("killed or closed in order, nothing is lost that a server could not write again")
    func orderly() throws {
        var program = try started(Self.deaf)
        try kill(&program)
        #expect(markBytes == 1)
        program = try started(Self.tidy, orphan: 10_000_000_000)
        #expect(!program.mayHaveLost)
        program.orphan()
        try #require(ended(&program))
        #expect(markBytes == 1)
    }

    @Test("what an earlier server had not made durable is lost with a program that was killed")
    func unflushed() throws {
        // Killed with its server: everything was durable.
        var program = try started(Self.tidy, server: "first")
        try say("first", .nothing)
        try kill(&program)
        program = try started(Self.tidy, server: "second")
        #expect(!program.mayHaveLost)
        #expect(!FileManager.default.fileExists(atPath: directory.path("first")))

        // Not everything; the same server writes it again.
        try say("second", .whatProgramHas)
        try kill(&program)
        program = try started(Self.tidy, server: "second")
        #expect(!program.mayHaveLost)

        // The next one cannot, and whoever follows hears it as well.
        try kill(&program)
        program = try started(Self.deaf, server: "third")
        #expect(program.mayHaveLost)
        try kill(&program)
        program = try started(Self.tidy, server: "fourth")
        #expect(program.mayHaveLost)
        // Its server dies before it has told anybody.
        program.orphan()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "fourth")
        #expect(program.mayHaveLost)
        // The same where it lets go of the image before it has.
        program.stop()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "fourth")
        #expect(program.mayHaveLost)
        program.hear()
        program.stop()
        program.orphan()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "fourth")
        #expect(!program.mayHaveLost)

        // It ends in order, and writes what it has.
        try say("fourth", .whatProgramHas)
        program.orphan()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "fifth")
        #expect(!program.mayHaveLost)

        // The same where nobody saw that it did.
        try say("fifth", .whatProgramHas)
        Foundation.kill(program.number, SIGINT)
        try #require(ended(&program))
        program = try started(Self.deaf, orphan: 50_000_000, server: "sixth")
        #expect(!program.mayHaveLost)

        // It has to be killed when its server has gone, and everything was durable.
        try say("sixth", .nothing)
        program.orphan()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "seventh")
        #expect(!program.mayHaveLost)
        program.stop()
        try #require(ended(&program))
    }

    @Test("what a program had that is gone is lost with the server that had it, too")
    func replayed() throws {
        var program = try started(Self.tidy, server: "first")
        // The server's words when it has seen the end, and before all is written again.
        try say("first", .whatNobodyHas)
        try kill(&program)
        program = try started(Self.tidy, server: "first")
        #expect(!program.mayHaveLost)
        program.orphan()
        try #require(ended(&program))
        program = try started(Self.tidy, server: "second")
        #expect(program.mayHaveLost)
        program.stop()
        try #require(ended(&program))
    }

    @Test("what a killed program has left is mended, but not while the next server waits")
    func leaves() throws {
        let repair = ["/bin/sh", "-c", ": > $0", directory.path("mended")]
        func isMended() -> Bool {
            FileManager.default.fileExists(atPath: directory.path("mended"))
        }
        var program = try started(Self.tidy, repair: repair)
        try kill(&program)
        program = try started(Self.tidy, repair: repair)
        program.leave()
        program.stop()
        try #require(ended(&program))
        #expect(!isMended() && markBytes == 1)
        program = try started(Self.tidy, repair: repair)
        program.stop()
        try #require(ended(&program))
        #expect(isMended() && markBytes == 0)
    }
}
