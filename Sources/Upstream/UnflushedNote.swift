import SystemLayer

/// Says, in memory that outlives the process, whether an upstream has answered changes that it has
/// not made durable.
///
/// When the server and the program behind the upstream die together, nobody else knows that.
final class UnflushedNote: Sendable {
    private let file: OwnedDescriptor

    // The bytes are at hand, for a ring writes them.
    private static let none: [UInt8] = [UInt8(ascii: "0")]
    private static let some: [UInt8] = [UInt8(ascii: "1")]

    /// Makes the file; nil when there is no memory for it.
    init?(_ path: String) {
        guard let end = path.lastIndex(of: "/") else { return nil }
        let directory = String(path[..<end])
        try? StateFiles.makeDirectory(directory)
        // A ring writes to it: that must not wait for a disk.
        guard StateFiles.isMemory(directory), StateFiles.isPrivate(directory) else { return nil }
        do throws(SystemFault) {
            file = try FileCalls.open(path, [.write, .createNew])
            // From now on it needs no more room.
            try FileCalls.write(file.raw, Self.none, at: 0)
        } catch {
            return nil
        }
    }

    /// Called by one ring, before anybody hears of the answers.
    func set(_ isUnflushed: Bool) {
        try? FileCalls.write(file.raw, isUnflushed ? Self.some : Self.none, at: 0)
    }
}
