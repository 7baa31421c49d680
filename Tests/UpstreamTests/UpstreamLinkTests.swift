import Foundation
import Glibc
import ServerInterface
import Synchronization
import SystemLayer
import Testing

@testable import Upstream

/// What an asker was told.
private final class Told: Sendable {
    private let list = Mutex<[Int32]>([])
    var results: [Int32] { list.withLock { $0 } }
    func note(_ result: Int32) { list.withLock { $0.append(result) } }
}

/// What is told to the library that speaks NBD, and what it makes of that.
@Suite struct UpstreamLinkTests {
    @Test("P6: memory is not shared with a program where that would take descriptors from others")
    func fewDescriptors() throws {
        let server = try StandInServer()
        guard case .unix(let path) = server.address.place else { return }
        let fault = #expect(throws: UpstreamFault.self) {
            _ = try SharedQueue(
                path, until: MonotonicClock.now() + 300_000_000, descriptorsEnd: 3)
        }
        #expect(fault?.detail.contains("LimitNOFILE") == true, "\(String(describing: fault))")
    }
}
