import Foundation

/// A thread of a server, as the kernel sees it at one moment.
package struct ServerThread: Sendable, Hashable {
    /// The kernel's number of it.
    package let id: Int
    package let name: String
    /// From -20, first, to 19, last.
    package let niceness: Int
    /// Processor time so far, in nanoseconds.
    package let processorNanoseconds: UInt64

    /// Reads a thread's directory of `/proc`; one that has ended has no name.
    init(_ path: String) {
        id = (path.split(separator: "/").last).flatMap { Int($0) } ?? 0
        name = Files.read(path + "/comm").trimmingCharacters(in: .newlines)
        let fields = Files.read(path + "/stat").drop { $0 != ")" }.split(separator: " ")
        niceness = fields.count > 17 ? Int(fields[17]) ?? 0 : 0
        let times = Files.read(path + "/schedstat").split(separator: " ")
        processorNanoseconds = times.first.flatMap { UInt64($0) } ?? 0
    }
}
