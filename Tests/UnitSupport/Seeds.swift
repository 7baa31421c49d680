import Foundation

/// Seeds of a run: some fixed ones, or the one in `NBDPULL_SEED`.
package enum Seeds {
    package static let all: [UInt64] = {
        let given = ProcessInfo.processInfo.environment["NBDPULL_SEED"]
        if let seed = given.flatMap({ UInt64($0) }) { return [seed] }
        return Array(1...8)
    }()
}
