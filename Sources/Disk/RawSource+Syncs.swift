import Synchronization
package import SystemLayer

/// What is durable of a source, and what it has lost.
extension RawSource {
    /// Makes every completed write durable, by the guest's descriptor: the last sync of a disk.
    ///
    /// Throws when that cannot be said: see `makeDurable`.
    package func sync() throws(SystemFault) {
        if let remote { return try sync(remote, isHeard: true) }
        try sync(raw, isHeard: true)
    }

    /// Makes everything durable that was written; throws when the source has lost a write since it
    /// was opened, no matter who was told of it.
    ///
    /// By a descriptor of its own: the kernel tells each of an error once, and a guest's flush must
    /// not miss its own. May wait as long as the storage does. A fault that `saysNothing` has lost
    /// nothing.
    package func makeDurable() throws(SystemFault) {
        if let remote, !isReadOnly { return try sync(remote, isHeard: false) }
        if let syncRaw { return try sync(syncRaw, isHeard: false) }
        try checkLosses()
    }

    private func sync(_ descriptor: Int32, isHeard: Bool) throws(SystemFault) {
        try sync(isHeard: isHeard) { () throws(SystemFault) in try FileCalls.sync(descriptor) }
    }

    private func sync(_ remote: any RemoteSource, isHeard: Bool) throws(SystemFault) {
        try sync(isHeard: isHeard) { () throws(SystemFault) in try remote.makeDurable() }
    }

    private func sync(
        isHeard: Bool, _ body: () throws(SystemFault) -> Void
    ) throws(SystemFault) {
        if ownSyncs.add(1, ordering: .relaxed).newValue == 1 {
            ownSyncSince.store(MonotonicClock.now(), ordering: .relaxed)
        }
        defer { ownSyncs.subtract(1, ordering: .relaxed) }
        do throws(SystemFault) {
            try body()
        } catch {
            noteFailedSync(error, isHeard: isHeard)
            throw error
        }
        try checkLosses()
    }

    /// Whether a sync of the server's own has been under way since then; a time of the clock in
    /// nanoseconds.
    package func ownSyncIsUnderWay(since limit: UInt64) -> Bool {
        // Relaxed: asked again soon, and nobody reads anything by it.
        ownSyncs.load(ordering: .relaxed) > 0 && ownSyncSince.load(ordering: .relaxed) < limit
    }

    /// Why the next process cannot rely on what the source holds, should this one end now.
    package var doubt: SourceDoubt? {
        get { SourceDoubt(rawValue: doubtWord.load(ordering: .relaxed)) }
        set { doubtWord.store(newValue?.rawValue ?? 0, ordering: .relaxed) }
    }

    private func checkLosses() throws(SystemFault) {
        let found = losses()
        if found.count > 0 { throw SystemFault(call: "fdatasync", errno: found.errno) }
    }

    /// Keeps that a sync has failed: a device's cache, or a file system's server, may have lost
    /// what it had taken, and says so once, to the first one that syncs.
    ///
    /// `isHeard`: the guest was told. A fault that `saysNothing`, or that tells of writes which the
    /// witness knows to be lost, is nothing new.
    package func noteFailedSync(_ fault: SystemFault, isHeard: Bool) {
        guard !fault.saysNothing, witness.errors().count == 0 else { return }
        keepFailedSync(fault.errno, isHeard: isHeard)
    }

    /// Writes had succeeded and were lost afterwards, or may have been: the content has changed
    /// without a change.
    package var hasLostWrites: Bool { losses().count > 0 }
}

/// What only the process that has a source knows of it, and what speaks against going on with a job
/// on it.
package enum SourceDoubt: UInt8, Sendable, Hashable {
    /// A sync has been under way for long, and what it fails with is told to this process alone.
    case hungSync = 1
    /// Writes were lost.
    case lostWrites = 2
}
