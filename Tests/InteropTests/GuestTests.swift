import Testing

extension InteropSuite {
    /// A real Linux guest on a live export.
    @Suite struct GuestTests {
        @Test("P1: a guest uses its disk, and a job from its midst is a consistent file system")
        func guestWithBackup() throws { try GuestMachine.backUpMidst() }
    }
}
