import Foundation
import TestSupport
import Testing

extension InteropSuite {
    /// A backup leaves the page cache to the guest.
    @Suite struct PageCacheTests {
        private func cachedBytes(_ path: String) throws -> Int {
            let text = try Command.run("fincore", ["-b", "-n", "-o", "RES", path]).output()
            return try #require(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        }

        private func evict(_ path: String) throws {
            let arguments = ["of=" + path, "oflag=nocache", "conv=notrunc,fdatasync", "count=0"]
            try Command.run("dd", arguments).output()
        }

        @Test("what a pull brings into memory does not stay, what was there does")
        func leavesNoTrace() throws {
            let fixture = try LiveFixture(bytes: 128 << 20)
            let path = fixture.path("vda")
            try evict(path)
            let cold = try cachedBytes(path)
            guard cold < 1 << 20 else {
                print("left out: nothing can be evicted from the temporary directory's file system")
                return try fixture.server.stop()
            }
            let copy = fixture.directory.file("copy")
            let job = try fixture.begin()
            for connections in ["1", "4"] {
                let arguments = ["--connections", connections, try job.uri("vda"), copy]
                try Command.run("nbdcopy", arguments).output()
                #expect(try Bytes.ofFile(copy) == (try fixture.content("vda")))
                let left = try cachedBytes(path)
                print("\(left >> 20) of 128 MiB are cached after a cold pull")
                // Connections that share a window may leave it.
                #expect(left < 32 << 20, "\(left >> 20) MiB, by \(connections) connections")
                try evict(path)
            }
            // What the last cold pull had read may still be let go of, on a busy machine after this
            // reads it again; that happens once.
            var (warm, left) = (0, 0)
            for _ in 1...3 {
                _ = try Bytes.ofFile(path)
                warm = try cachedBytes(path)
                #expect(warm > 120 << 20)
                try Command.run("nbdcopy", [try job.uri("vda"), copy]).output()
                left = try cachedBytes(path)
                if left >= warm - (1 << 20) { break }
                print("\(warm) bytes were cached before a warm pull, \(left) after it")
            }
            #expect(left >= warm - (1 << 20))
            try fixture.server.stop()
        }
    }
}
