import Control

/// Where every event goes besides the event log.
struct EventSinks: Sendable {
    /// How long the end of the server waits for programs that tell of its last events, in seconds.
    private static let farewellSeconds = 5.0

    let log: EventLogger
    let program: EventProgram?

    /// Never waits.
    func take(_ event: ControlEvent) {
        log.write(event)
        program?.offer(event)
    }

    /// The server is stopping: nothing happens any more.
    func finish() { program?.finish(seconds: Self.farewellSeconds) }
}
