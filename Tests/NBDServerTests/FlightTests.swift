import Foundation
import NBDProtocol
import SystemLayer
import Testing
import UnitSupport

@testable import NBDServer
@testable import ServerInterface

/// What threads note of what they do, as the next process reads it after a crash.
@Suite struct FlightTests {
    private func recorder(_ path: String) throws -> FlightRecorder {
        try FlightRecorder(path: path, facts: ["build 1"], notesCrashes: false)
    }

    private func doing(_ path: String) throws -> LeftFlight.Doing {
        try #require(LeftFlight.read(path)).doings.first ?? noDoing()
    }

    private func noDoing() throws -> LeftFlight.Doing {
        throw SystemFault(call: "nothing is noted", errno: 0)
    }

    @Test("a crash outside of a request is told of its own connection, not of another's request")
    func turns() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("flight")
        let tests = try RingLoopTests(flight: recorder(path))
        tests.shared.flight.name(tests.live.id.number, "disk vda")
        var loop = try tests.loop()
        let guest = tests.guest(&loop)
        tests.request(3, 1, 0, 0, guest)
        tests.settle(&loop)
        #expect(try doing(path).export == "disk vda")
        // Somebody who has no export sends what is none: nothing of it is the disk's.
        let peer = SocketHandle(77)
        tests.world.sockets[peer.number] = StubWorld.Socket()
        #expect(tests.shared.counts.admit(tests.scope, nil))
        tests.shared.mailboxes[0].post(
            .adopt(
                ConnectionSeed(
                    socket: peer, scope: tests.scope, isUnix: true, peer: nil,
                    security: ConnectionSecurity(
                        mode: .plaintext, localPeer: nil, rights: .everything),
                    negotiated: nil, input: [], output: Handshake.greeting)))
        tests.send([0, 0], peer)
        tests.settle(&loop)
        let last = try doing(path)
        #expect(last.export == nil, "\(last)")
        #expect([.handshake, .turn, .accepting].contains(last.activity), "\(last)")
        // A guest's header that is not whole: the disk is its own.
        tests.send([0x25], guest)
        tests.settle(&loop)
        let half = try doing(path)
        #expect(half.activity == .turn && half.export == "disk vda", "\(half)")
    }

    @Test("what a newcomer notes is the next server's to read when it has taken over, not before")
    func moved() throws {
        let directory = try TemporaryDirectory()
        let (old, next) = (directory.path("flight"), directory.path("flight.next"))
        let running = try recorder(old)
        running.claim().note(.tick)
        let newcomer = try recorder(next)
        newcomer.claim().note(.message)
        #expect(try doing(old).activity == .tick)
        try newcomer.move(to: old)
        #expect(try doing(old).activity == .message)
        #expect(!FileManager.default.fileExists(atPath: next))
        newcomer.end()
        #expect(!FileManager.default.fileExists(atPath: old))
        // One that nobody reads has no name to change.
        try FlightRecorder().move(to: old)
        #expect(!FileManager.default.fileExists(atPath: old))
    }

    @Test("how a newcomer crashed that never took over is told once, as that, and by nobody again")
    func newcomers() throws {
        let directory = try TemporaryDirectory()
        let next = directory.path("flight.next")
        let newcomer = try recorder(next)
        newcomer.claim().note(.message)
        // One that was killed says nothing, and its file goes as well.
        #expect(LastCrash.takeNewcomers(directory.path("")) == nil)
        #expect(!FileManager.default.fileExists(atPath: next))
        try recorder(next).claim().note(.message)
        try Self.crash(next)
        let told = try #require(LastCrash.takeNewcomers(directory.path("")))
        #expect(told.isNewcomers && told.signal == 6)
        #expect(!FileManager.default.fileExists(atPath: next))
        #expect(LastCrash.takeNewcomers(directory.path("")) == nil)
    }

    /// What the handler notes: the crash, with its signal.
    private static func crash(_ path: String) throws {
        let file = try FileCalls.open(path, [.write])
        try FileCalls.write(file.raw, [1, 0, 0, 0, 6, 0, 0, 0], at: 2048)
    }

    @Test("a long name is known by its beginning, whole characters of it, and finds its disk again")
    func longNames() throws {
        typealias Subject = CrashReport.Subject
        #expect(Subject.beginning(of: "vm1/vda") == "vm1/vda")
        for letter in ["a", "\u{E4}", "\u{20AC}", "\u{1F600}", "e\u{301}"] {
            let name = String(repeating: letter, count: 60) + "x/vda"
            let kept = Subject.beginning(of: name)
            #expect(kept.utf8.count <= Subject.nameBytesMax, "\(letter)")
            #expect(Subject.mayBe(kept, name), "\(letter)")
            #expect(!Subject.mayBe(kept, "x" + name), "\(letter)")
            // What a slot of the recorder has of it is more than is kept.
            let directory = try TemporaryDirectory()
            let path = directory.path("flight")
            let recorder = try recorder(path)
            try recorder.during(.openingDisk, name) {
                let text = try self.doing(path).text
                #expect(Subject.beginning(of: text) == kept, "\(letter): \(text)")
            }
        }
        #expect(!Subject.mayBe("vm1/vda", "vm1/vdaa"))
    }
}
