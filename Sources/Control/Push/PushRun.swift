package import ServerInterface

/// Starts workers; tests put something in its place.
package protocol PushStarting: Sendable {
    /// Starts one worker; `hear` gets what it says, in order, and `failed` when it ends without
    /// having said `done`. It waits for nothing.
    func start(
        _ order: PushOrder, _ hear: @escaping @Sendable (PushReport) -> Void
    ) throws(ControlError) -> any PushRun
}

/// A worker that writes one target.
package protocol PushRun: Sendable {
    func tell(_ command: PushCommand)
    /// Ends it, and waits for nothing.
    func stop()
}
