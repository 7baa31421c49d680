import Testing
import TestSupport

extension PointInTimeSuite {
    /// The tests' own machinery, tried on a reference server.
    @Suite struct StressWriterTests {
        @Test("the writer's oracle is what a reference server stores")
        func oracleMatchesReference() throws {
            let seed = RunSettings.seed
            print("seed \(seed)")
            let directory = try TemporaryDirectory()
            let paths = [directory.file("a"), directory.file("b")]
            let contents = try paths.map { path throws in
                try Images.random(path, bytes: 16 << 20, seed: seed)
            }
            let servers = try paths.map { path throws in try ReferenceServer(path) }
            let writer = try StressWriter(
                uris: servers.map(\.uri), contents: contents, plan: StressPlan(seed: seed))
            try writer.run(seconds: RunSettings.stressSeconds(default: 1))
            try writer.drain()
            #expect(writer.finishedCount > 100)
            for (index, path) in paths.enumerated() {
                #expect(writer.oracle[index] == (try Bytes.ofFile(path)))
            }
        }

        @Test("a window accepts a copy from within and refuses earlier and later ones")
        func windowJudges() throws {
            let seed = RunSettings.seed
            print("seed \(seed)")
            let directory = try TemporaryDirectory()
            let path = directory.file("a")
            let content = try Images.random(path, bytes: 8 << 20, seed: seed)
            let server = try ReferenceServer(path)
            let writer = try StressWriter(
                uris: [server.uri], contents: [content], plan: StressPlan(seed: seed))
            try writer.run(seconds: 0.2)
            try writer.drain()
            let early = writer.oracle[0]
            try writer.run(seconds: 0.1)
            let window = writer.openWindow()
            try writer.run(seconds: 0.1)
            try writer.drain()
            let inside = writer.oracle[0]
            try writer.run(seconds: 0.1)
            try writer.closeWindow(window)
            try writer.run(seconds: 0.2)
            try writer.drain()
            try window.verify(disk: 0, image: inside, name: "inside")
            try window.verifyOneInstant()
            #expect(throws: TestFailure.self) {
                try window.verify(disk: 0, image: early, name: "early")
            }
            #expect(throws: TestFailure.self) {
                try window.verify(disk: 0, image: writer.oracle[0], name: "late")
            }
        }

        @Test("a window refuses disks from two instants")
        func windowRefusesTwoInstants() throws {
            let seed = RunSettings.seed
            print("seed \(seed)")
            let directory = try TemporaryDirectory()
            let paths = [directory.file("a"), directory.file("b")]
            let contents = try paths.map { path throws in
                try Images.random(path, bytes: 8 << 20, seed: seed)
            }
            let servers = try paths.map { path throws in try ReferenceServer(path) }
            let writer = try StressWriter(
                uris: servers.map(\.uri), contents: contents, plan: StressPlan(seed: seed))
            let window = writer.openWindow()
            try writer.run(seconds: 0.1)
            try writer.drain()
            let early = writer.oracle
            try writer.run(seconds: 0.1)
            try writer.drain()
            let late = writer.oracle
            try writer.closeWindow(window)
            try window.verify(disk: 0, image: early[0], name: "early")
            try window.verify(disk: 1, image: early[1], name: "early")
            try window.verifyOneInstant()
            try window.verify(disk: 1, image: late[1], name: "late")
            #expect(throws: TestFailure.self) { try window.verifyOneInstant() }
        }
    }
}
