import Foundation

/// Seeds of the tracking tests: some fixed ones, or the one in `NBDPULL_SEED`.
enum TrackingSeeds {
    static let all: [UInt64] = {
        let given = ProcessInfo.processInfo.environment["NBDPULL_SEED"]
        if let seed = given.flatMap({ UInt64($0) }) { return [seed] }
        return Array(1...12)
    }()
}
