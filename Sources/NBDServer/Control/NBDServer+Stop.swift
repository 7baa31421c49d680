import BoundedCalls
import Synchronization
import SystemLayer

/// The server stops, in bounded time whatever hangs.
extension NBDServer {
    /// Begins nothing from now on: callers that wait for a storage to begin something are answered.
    ///
    /// What has begun can still be ended.
    package func refuseNewCalls() async {
        state.withLock { $0.isStopping = true }
        storage.stop()
    }

    /// Stops accepting, finishes requests in flight, flushes and closes every source.
    ///
    /// What does not answer is left as it is when its limit is over: it keeps nothing else from
    /// being closed in order. The server is of no use after.
    package func shutdown() async {
        await refuseNewCalls()
        await callsAtWorkEnd()
        let (jobs, disks, listeners) = state.withLock { state in
            (Array(state.jobs.keys), Array(state.disks.keys), state.liveListeners)
        }
        await all(listeners, within: Limits.closingMilliseconds) { await self.close($0) }
        await all(jobs, within: Limits.stopDrainMilliseconds + Limits.removalMilliseconds) {
            _ = await self.end(jobID: $0)
        }
        await all(disks, within: Limits.stopDisksMilliseconds) {
            _ = await self.detach($0, .stopping)
        }
        await stopRings()
        shared.flight.end()
        // A newcomer that waits, or a job's file that could not be removed, keeps it.
        if let jobMemory { try? FileCalls.removeDirectory(jobMemory) }
    }

    /// Waits for calls that were past what may hang when the stop came.
    private func callsAtWorkEnd() async {
        let deadline = MonotonicClock.now() + UInt64(Limits.stopCallsMilliseconds) * 1_000_000
        while MonotonicClock.now() < deadline {
            if state.withLock({ $0.beginning.isEmpty && $0.attaching.isEmpty }) { return }
            try? await Task.sleep(for: .milliseconds(5))
        }
    }

    /// Does the same to all at once, and waits as long as the limit allows.
    private func all<Each: Sendable>(
        _ items: [Each], within milliseconds: Int32,
        _ body: @escaping @Sendable (Each) async -> Void
    ) async {
        let tasks = items.map { item in Task { await body(item) } }
        _ = await Patience.wait(for: tasks, milliseconds: milliseconds)
    }

    func stopRings() async {
        guard await StopCall(shared).runLater() else { return }
        // They have nothing left to do but to give their memory back.
        for thread in threads {
            _ = await thread.ended.isReached(within: Limits.closingMilliseconds)
        }
    }
}
