import Foundation
import ServerInterface
import Testing
import UnitSupport

@testable import AdapterKeeper

@Suite("A program that has an image open")
struct KeptProgramTests {
    private static let deaf = "trap '' INT; : > $0; exec sleep 60"
    private static let tidy = "trap 'exit 0' INT; : > $0; while :; do sleep 0.02; done"

    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func started(
        _ script: String, orphan: UInt64 = KeptProgram.orphanNanoseconds
    ) throws -> KeptProgram {
        var program = KeptProgram(
            AdapterOrder(
                id: 1, program: "/bin/sh", arguments: ["-c", script, directory.path("ready")],
                sharingArguments: [], socket: directory.path("socket"), sharedSocket: "",
                readyFile: directory.path("ready"), lockFile: directory.path("lock"), repair: []),
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
        kill(program.number, SIGKILL)
        try #require(ended(&program))

        program = try started(Self.tidy)
        #expect(program.mayHaveLost)
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
        kill(program.number, SIGKILL)
        try #require(ended(&program))
        #expect(markBytes == 1)
        program = try started(Self.tidy, orphan: 10_000_000_000)
        #expect(!program.mayHaveLost)
        program.orphan()
        try #require(ended(&program))
        #expect(markBytes == 1)
    }
}
