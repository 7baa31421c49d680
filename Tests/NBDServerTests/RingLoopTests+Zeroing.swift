import Core
import NBDProtocol
import PointInTime
import Testing

@testable import NBDServer

/// Guests that zero their disk while jobs begin.
extension RingLoopTests {
    private static let pageBytes = StubWorld.pageBytes

    private func range(_ pages: Range<Int>) -> Range<Int> {
        pages.lowerBound * Self.pageBytes..<pages.upperBound * Self.pageBytes
    }

    /// How many bytes of a range are zeros.
    private func zeros(_ range: Range<Int>) -> Int {
        world.files[Self.source, default: []][range].count { $0 == 0 }
    }

    // The step that ends with the hole is the first, and the head of the request comes behind it: a
    // job that began between the head and the rest would see half of the request.
    @Test("P1: a job that begins during a zeroing has whole clusters of it, or none, beside holes")
    func wholeClusters() throws {
        let directory = try OwnDirectory()
        var loop = try emptyLoop()
        world.holes[Self.source] = []
        #expect(world.punch(range(1..<2), in: FileHandle(Self.source)))
        try addTracked(live, &loop, directory)
        settle(&loop)
        let socket = guest(&loop)

        let (start, end) = (512, 2 * ClusterGeometry.clusterBytes)
        let head = start..<Self.pageBytes
        let rest = 2 * Self.pageBytes..<ClusterGeometry.clusterBytes
        world.hung = [Self.source]
        request(6, 81, start, end - start, socket)
        settle(&loop)
        try #require(world.pending.contains { isHead($0.operation) })
        try #require(!rest.isEmpty && zeros(head) == 0 && zeros(rest) == 0)

        var instant = Instant()
        instant.exports = [try job()]
        var call = InstantCall(instant, shared, now: world.now)
        #expect(call.step(now: world.now) == nil)
        settle(&loop)
        world.hung = []
        var outcome: InstantCall.Outcome?
        for _ in 0..<10 where outcome == nil {
            settle(&loop)
            outcome = call.step(now: world.now)
        }
        #expect(outcome?.result == .fixed)
        // What was not done by the instant waits for its old content to be in scratch.
        #expect(zeros(head) == head.count)
        #expect(zeros(rest) == rest.count)
        let next = zeros(ClusterGeometry.clusterBytes..<end)
        #expect(next == 0 || next == ClusterGeometry.clusterBytes)
    }

    private func isHead(_ operation: StubWorld.Prepared) -> Bool {
        if case .write(_, _, position: 512) = operation { true } else { false }
    }
}
