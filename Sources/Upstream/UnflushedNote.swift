import ServerInterface
import SystemLayer

/// Says, in memory that outlives the process, what would be lost with it.
///
/// When the server and the program behind an upstream die together, nobody else knows that.
final class UnflushedNote: Sendable {
    private let file: OwnedDescriptor

    /// The bytes are at hand, for a ring writes them.
    private static let bytes = Dictionary(
        uniqueKeysWithValues: AtStake.allCases.map { ($0, [$0.rawValue]) })

    /// Makes the file; nil when there is no memory for it.
    init?(_ path: String) {
        guard let end = path.lastIndex(of: "/") else { return nil }
        let directory = String(path[..<end])
        try? StateFiles.makeDirectory(directory)
        // A ring writes to it, which on a disk may take as long as that likes.
        guard StateFiles.isMemory(directory), StateFiles.isPrivate(directory) else { return nil }
        do throws(SystemFault) {
            file = try FileCalls.open(path, [.write, .createNew])
        } catch {
            return nil
        }
        // From now on it needs no more room.
        set(.nothing)
    }

    /// Called by one ring, before anybody hears of the answers.
    func set(_ atStake: AtStake) {
        try? FileCalls.write(file.raw, Self.bytes[atStake] ?? [], at: 0)
    }
}
