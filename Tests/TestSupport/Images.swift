import Foundation

/// Makes the images that tests serve.
package enum Images {
    /// A file that is one hole.
    package static func sparse(_ path: String, bytes: Int) throws {
        try Files.write("", to: path)
        guard let file = FileHandle(forWritingAtPath: path) else {
            throw TestFailure("cannot open \(path) for writing")
        }
        try file.truncate(atOffset: UInt64(bytes))
        try file.close()
    }

    /// A file of random bytes that follow from the seed.
    @discardableResult
    package static func random(_ path: String, bytes: Int, seed: UInt64) throws -> [UInt8] {
        var generator = SeededGenerator(seed: seed)
        let content = generator.bytes(bytes)
        try Data(content).write(to: URL(fileURLWithPath: path))
        return content
    }

    /// A file in which every second piece of 64 KiB is a hole and the others hold random bytes.
    @discardableResult
    package static func mixed(_ path: String, bytes: Int, seed: UInt64) throws -> [UInt8] {
        var generator = SeededGenerator(seed: seed)
        var content = [UInt8](repeating: 0, count: bytes)
        try sparse(path, bytes: bytes)
        guard let file = FileHandle(forWritingAtPath: path) else {
            throw TestFailure("cannot open \(path) for writing")
        }
        for start in stride(from: 0, to: bytes, by: 2 << 16) {
            let piece = generator.bytes(min(1 << 16, bytes - start))
            Bytes.copy(piece, at: 0, to: &content, at: start, count: piece.count)
            try file.seek(toOffset: UInt64(start))
            try file.write(contentsOf: Data(piece))
        }
        try file.close()
        return content
    }

    /// Bytes that a file really occupies.
    package static func allocatedBytes(_ path: String) throws -> Int {
        let text = try Command.run("stat", ["-c", "%b", path]).output()
        let blocks = Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        return blocks * 512
    }

    /// Fails with the first difference unless the two files hold the same bytes.
    package static func expectEqual(_ left: String, _ right: String) throws {
        try Command.run("cmp", [left, right], timeout: 120).output()
    }
}
