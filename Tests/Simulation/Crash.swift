import Glibc
import Synchronization

/// Names the seed when production code traps.
package enum Crash {
    private static let seed = Atomic<UInt64>(0)
    private static let isInstalled = Atomic<Bool>(false)

    /// The history that runs from now on.
    package static func note(_ seed: UInt64) {
        self.seed.store(seed, ordering: .relaxed)
        guard !isInstalled.exchange(true, ordering: .relaxed) else { return }
        for number in [SIGILL, SIGTRAP, SIGSEGV, SIGBUS] {
            _ = signal(number) { _ in Crash.report() }
        }
    }

    private static func report() {
        var digits: (UInt64, UInt64, UInt64) = (0, 0, 0)
        var left = seed.load(ordering: .relaxed)
        let text: StaticString = "\nproduction code trapped; seed "
        // SAFETY: bytes of the stack and of a literal.
        unsafe withUnsafeMutableBytes(of: &digits) { bytes in
            var position = bytes.count - 1
            unsafe bytes[position] = 10
            repeat {
                position -= 1
                unsafe bytes[position] = UInt8(48 + left % 10)
                left /= 10
            } while left > 0 && position > 0
            unsafe _ = write(2, text.utf8Start, text.utf8CodeUnitCount)
            let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[position...])
            unsafe _ = write(2, rest.baseAddress, rest.count)
        }
        _exit(99)
    }
}
