import IORing

/// Changes by threads, where the kernel's workers could take one file's along when another's hangs.
extension KernelIO {
    /// The kind of the tag of the poll for their wake-ups, which `Operation` does not use.
    private static let wakeKind: UInt64 = 0xF2

    /// Where all disks lie on one file system they hang together anyway.
    var threadsMakeChanges: Bool { !shared.places.areOne }

    mutating func enter(_ file: FileHandle, takesWrites: Bool) {
        changes.enter(file.number, takesWrites: takesWrites)
    }

    mutating func leave(_ file: FileHandle) { changes.leave(file.number) }

    /// Whether completions may have to do with threads.
    var usesChangeThreads: Bool { listensToChanges || changes.inFlight > 0 }

    /// Has their wake-ups end a wait of the ring's.
    @inline(never)
    mutating func listenToChanges() {
        guard !listensToChanges else { return }
        listensToChanges = true
        ring.preparePoll(changes.raw, writable: false, tag: Self.wakeKind << 56)
    }

    /// Takes wake-ups out of the completions, and puts in what the threads have done.
    @inline(never)
    mutating func drainChanges(into completions: inout [Completion]) {
        if let place = completions.firstIndex(where: { $0.tag >> 56 == Self.wakeKind }) {
            completions.remove(at: place)
            listensToChanges = false
            changes.consume()
        }
        changes.drain(into: &completions)
    }
}
