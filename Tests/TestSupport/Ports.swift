import Foundation
import Synchronization

/// TCP ports for servers that a test starts.
package enum Ports {
    private static let given = Mutex(Set<Int>())

    /// A port on which nothing listens right now, and that no other call in this process was given.
    ///
    /// It lies below the range from which the kernel takes ports for connections: one of those can
    /// hold any port above for a minute after its end.
    package static func free() -> Int {
        let taken = Set(
            (Files.read("/proc/net/tcp") + Files.read("/proc/net/tcp6")).split(separator: "\n")
                .compactMap { line -> Int? in
                    let fields = line.split(separator: " ")
                    guard fields.count > 1, let port = fields[1].split(separator: ":").last else {
                        return nil
                    }
                    return Int(port, radix: 16)
                })
        return given.withLock { given in
            while true {
                let candidate = Int.random(in: 20_000..<32_000)
                if !taken.contains(candidate), given.insert(candidate).inserted { return candidate }
            }
        }
    }
}
