import Glibc
import Testing

@testable import IORing

@Suite struct PipePoolTests {
    /// Makes pipes, or refuses to, and counts.
    private final class Maker {
        var refuses = false
        var asked = 0
        func make() -> (reading: Int32, writing: Int32)? {
            asked += 1
            var ends: [Int32] = [0, 0]
            guard !refuses, unsafe pipe(&ends) == 0 else { return nil }
            return (ends[0], ends[1])
        }
    }

    @Test("P6: a pipe that could not be made again is made when it can")
    func discarded() {
        let maker = Maker()
        var pool = PipePool(limit: 2, make: maker.make)
        let first = pool.take()
        let second = pool.take()
        #expect(first == 0 && second == 1 && pool.take() == nil)
        maker.refuses = true
        pool.discard(0)
        pool.discard(1)
        #expect(pool.take() == nil)
        maker.refuses = false
        var taken: [Int] = []
        for _ in 0...(2 * PipePool.takesAfterRefusal) {
            if let pipe = pool.take() { taken.append(pipe) }
        }
        #expect(taken.sorted() == [0, 1])
        for pipe in taken { pool.giveBack(pipe) }
    }

    @Test("P6: a refused pipe is not asked for with every request")
    func refused() {
        let maker = Maker()
        maker.refuses = true
        var pool = PipePool(limit: 64, make: maker.make)
        for _ in 0..<(4 * PipePool.takesAfterRefusal) { #expect(pool.take() == nil) }
        #expect((2...5).contains(maker.asked))
        maker.refuses = false
        var isFound = false
        for _ in 0...PipePool.takesAfterRefusal where !isFound { isFound = pool.take() != nil }
        #expect(isFound)
    }
}
