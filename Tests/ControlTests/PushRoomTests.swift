import Control
import Foundation
import ServerInterface
import Synchronization
import Testing

/// Pushes give room back: to machines that need it at once, and to everybody when they have failed.
@Suite struct PushRoomTests {
    /// A push of two disks whose first target lies on file system 7.
    private static func begin(
        _ fixture: ControlFixture, _ pusher: ScriptedPusher
    ) async throws -> (manager: JobManager, id: String) {
        let manager = try await PushJobTests.manager(fixture, pusher)
        let begun = try await manager.begin(
            domain: "vm1", BeginRequest(backupXML: PushJobTests.xml(fixture)))
        #expect(try await eventually { pusher.copying == 2 })
        pusher.all[0].hear(.place(fileSystem: 7))
        return (manager, begun.id)
    }

    private static func holder(_ fixture: ControlFixture) throws -> RoomHolder {
        let holders = fixture.engine.look { $0.holders }
        #expect(holders.map(\.fileSystem) == [7] && holders.map(\.target) == ["vda"])
        return try #require(holders.first)
    }

    private static func gives(_ run: ScriptedPusher.Run) -> Int {
        run.told.withLock { $0.count { $0 == .giveRoom } }
    }

    @Test("P2: a machine that needs a target's room is answered when the worker has emptied it")
    func given() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let (manager, id) = try await Self.begin(fixture, pusher)
        let holder = try Self.holder(fixture)
        let answers = Mutex(0)
        for _ in 0..<3 { holder.give { answers.withLock { $0 += 1 } } }
        #expect(Self.gives(pusher.all[0]) == 1 && Self.gives(pusher.all[1]) == 0)
        #expect(answers.withLock { $0 } == 0)
        pusher.all[0].hear(.failed("it gave way"))
        #expect(answers.withLock { $0 } == 3)
        let ended = try await PushJobTests.ended(manager, id)
        #expect(ended.outcome == "failed")
        #expect(ended.errorMessage?.contains("it gave way") == true, "\(ended)")
        // Nothing is left to be given.
        #expect(fixture.engine.look { $0.holders.isEmpty })
        holder.give { answers.withLock { $0 += 1 } }
        #expect(answers.withLock { $0 } == 4)
    }

    @Test("P2: of a push that is ended, a machine is answered when its targets are empty")
    func ended() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let (manager, _) = try await Self.begin(fixture, pusher)
        let partial = "\(fixture.root)/t.a.partial"
        try String(repeating: "x", count: 1 << 20).write(
            toFile: partial, atomically: false, encoding: .utf8)
        let holder = try Self.holder(fixture)
        let size = Mutex<Int?>(nil)
        let failed = "\(fixture.root)/t.a.failed"
        holder.give {
            size.withLock {
                $0 = (try? FileManager.default.attributesOfItem(atPath: failed)[.size]) as? Int
            }
        }
        try await manager.end(domain: "vm1", job: nil, cause: .abort)
        #expect(size.withLock { $0 } == 512)
    }

    @Test("P2: workers are told when a machine's disk comes to their file system, or goes")
    func told() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let (manager, _) = try await Self.begin(fixture, pusher)
        pusher.all[1].hear(.place(fileSystem: 8))
        func rooms(_ index: Int) -> [Set<UInt64>] {
            pusher.all[index].told.withLock { told in
                told.compactMap { if case .room(let room) = $0 { room.fileSystems } else { nil } }
            }
        }
        fixture.engine.change { $0.room.fileSystems = [7, 9] }
        #expect(try await eventually { rooms(0) == [[7]] })
        fixture.engine.change { $0.room.fileSystems = [9] }
        #expect(try await eventually { rooms(0) == [[7], []] })
        #expect(rooms(1).isEmpty)
        try await manager.end(domain: "vm1", job: nil, cause: .abort)
    }

    @Test("a push that has failed leaves no content, but a text that says so")
    func emptied() async throws {
        let fixture = try ControlFixture()
        let pusher = ScriptedPusher()
        let (manager, id) = try await Self.begin(fixture, pusher)
        for name in ["t.a", "t.b"] {
            let file = try #require(FileHandle(forWritingAtPath: "\(fixture.root)/\(name).partial"))
            try file.write(contentsOf: Data(repeating: 7, count: 1 << 20))
            try file.close()
        }
        pusher.all[0].hear(.done)
        pusher.all[1].hear(.failed("no room"))
        _ = try await PushJobTests.ended(manager, id)
        for name in ["t.a", "t.b"] {
            let left = FileManager.default.contents(atPath: "\(fixture.root)/\(name).failed")
            #expect(left?.count == 512)
            let text = String(decoding: left ?? Data(), as: UTF8.self)
            #expect(text.hasPrefix("nbdpull: this is no backup"))
        }
    }
}
