package import Tracking

/// What a guest write must do about the jobs of its disk.
package enum Admission: Sendable, Hashable {
    /// Nothing that it touches is still needed: submit it now.
    case go
    /// It waits for copies; its `.pass` follows exactly once.
    case waits
}

/// Why a job broke.
package enum BreakCause: Sendable, Hashable {
    /// Old content could not be read from the source (positive errno).
    case sourceRead(errno: Int32)
    /// Old content could not be written to scratch (positive errno).
    case scratchWrite(errno: Int32)
    /// Every slot of the scratch is taken.
    case scratchFull
    /// A guest write has waited longer than the job allows.
    case copyTimeout(milliseconds: UInt64)
    /// Preserved content could not be read back (positive errno).
    case scratchRead(errno: Int32)
    /// Preserved content had been written, and the kernel could not bring it to the device later
    /// (positive errno).
    case scratchLost(errno: Int32)
    /// The machine's own writes could not be brought to the source later (positive errno), so what
    /// is read there may be something else.
    case sourceLost(errno: Int32)
    /// Scratch lies on the file system of a machine's disk, which needs the room.
    case spaceForGuest
}

/// What copy-before-write asks its driver to do; every action is carried out in order.
package enum CopyAction: Sendable, Hashable {
    /// Read clusters from the source into the copy's buffer; answer with `readFinished`.
    case readSource(copy: CopyIndex, clusters: Range<Int>)
    /// Write clusters from the copy's buffer to neighbouring slots; answer with
    /// `scratchWriteFinished`.
    case writeScratch(ScratchWrite)
    /// The copy is over: nothing will be read into its buffer or written from it on behalf of
    /// the gate.
    ///
    /// Its number is free for the next copy.
    case copyDone(copy: CopyIndex)
    /// The guest write may be submitted now.
    case pass(ChangeID)
    /// The job is broken: its ledger is closed already.
    ///
    /// Its writes to scratch that are in flight may be given up and answered at once.
    case jobBroken(job: JobIndex, cause: BreakCause)
    /// Nothing of the job is in flight any more; its slot may be used again.
    case jobDetached(job: JobIndex)
}

/// One write of preserved clusters to a job's scratch.
package struct ScratchWrite: Sendable, Hashable {
    package let copy: CopyIndex
    package let job: JobIndex
    /// First cluster, counted from the copy's first.
    package let position: Int
    package let count: Int
    /// Slot of the first cluster.
    package let slot: UInt32

    package init(copy: CopyIndex, job: JobIndex, position: Int, count: Int, slot: UInt32) {
        self.copy = copy
        self.job = job
        self.position = position
        self.count = count
        self.slot = slot
    }
}
