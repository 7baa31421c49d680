/// What control needs from the server below it: the seam where tests put a fake.
///
/// Every call is a control-plane call: it may take milliseconds and is never made per request.
package protocol BackupEngine: DiskMoving {
    /// Opens and locks the source and publishes its live export.
    func attachDisk(_ configuration: DiskConfiguration) async throws(ServerFault) -> DiskID
    /// Whoever asks for one of these live exports waits from now on until it is attached, or cannot
    /// be, or is not among them any more.
    func expectDisks(_ exports: Set<String>)
    /// Withdraws the live export, disconnects its clients after their requests in flight, closes
    /// the source.
    func detachDisk(_ disk: DiskID) async throws(ServerFault)
    /// The same, unless a client is connected to the live export: `diskInUse` then, and nothing has
    /// changed.
    func detachDiskIfUnused(_ disk: DiskID) async throws(ServerFault)
    /// Makes a disk larger while it is served, or takes the size that its source has by now;
    /// returns its size in bytes. Clients see it when they connect anew; what is new counts as
    /// changed.
    func growDisk(_ disk: DiskID, sizeBytes: UInt64?) async throws(ServerFault) -> UInt64
    func diskStatus(_ disk: DiskID) async throws(ServerFault) -> DiskStatus
    /// What a disk looks like, in cells. Parts that cannot be told within a moment are left out.
    func diskMap(_ disk: DiskID) async throws(ServerFault) -> DiskMap
    /// Validates everything, creates scratch, binds the listener, then fixes one instant for all
    /// disks and serves the backup exports. A fault leaves nothing behind: no file, no socket, no
    /// job. `beforeInstant` is run when everything is made that may take long; where it returns
    /// false there is no instant, and `givenUp` is thrown.
    func beginJob(
        _ configuration: JobConfiguration, beforeInstant: @escaping @Sendable () async -> Bool
    ) async throws(ServerFault) -> JobStarted
    /// Takes note of jobs that the last server has left running, before the first disk is attached:
    /// a disk is shown to machines only when what its jobs preserve is there again. What other jobs
    /// have left in memory is removed.
    func expectJobs(_ jobs: [JobResumption]) async
    /// Serves such a job as it was served before, once its disks are attached. Throws when it
    /// cannot be gone on with.
    func resumeJob(id: String) async throws(ServerFault) -> JobStarted
    /// Gives up a job that was expected, or resumed: nothing is left of it.
    func forgetJob(id: String) async
    func jobReport(id: String) async throws(ServerFault) -> JobReport
    /// Withdraws the exports, disconnects the clients, stops copying, removes scratch; returns the
    /// last figures.
    func endJob(id: String) async throws(ServerFault) -> JobReport
    /// Makes a checkpoint on several disks at one instant; all of them or none.
    func createCheckpoint(_ configuration: CheckpointConfiguration) async throws(ServerFault)
    /// Takes a checkpoint out of a disk's chain; what it recorded goes to the one before, so no
    /// other checkpoint's answer changes. A disk without that checkpoint is left as it is.
    func deleteCheckpoint(_ name: String, disk: DiskID) async throws(ServerFault)
    /// Everything written since a checkpoint, up to now; at most `extentLimit` extents are listed.
    func dirtyReport(
        since checkpoint: String, disk: DiskID, extentLimit: Int
    ) async throws(ServerFault) -> DirtyReport
    /// Where machines' disks take their room now.
    var machineRoom: MachineRoom { get }
    /// Has a file give its room back when a machine finds its file system full; in place of what
    /// was known of that target.
    func holdRoom(_ holder: RoomHolder)
    /// Forgets the files of a job.
    func dropRoom(ofJob id: String)
    /// Forgets what is kept elsewhere for a tracking directory that has been removed for good.
    func forgetTracking(directory: String)
    /// Connections that were closed at once, because a limit of connections was reached.
    var refusedConnections: UInt64 { get }
    /// Adds a listener for the live exports.
    func listenLive(
        _ endpoint: ListenEndpoint, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint
    /// Serves live exports on a socket that listens already; returns where it is bound.
    func adoptLive(
        descriptor: Int32, security: ListenerSecurity
    ) async throws(ServerFault) -> ListenEndpoint
    /// How the server before this one crashed; nil: it did not, or cannot have said so.
    var lastCrash: CrashReport? { get }
    /// Of an engine that was made to take another's place: the other has let go of everything, and
    /// this one is the server from now on.
    func hasTakenOver()
    /// Reads credentials and access rules again; connections keep theirs. On a fault nothing has
    /// changed.
    func reloadSecurity() async throws(ServerFault)
    /// Receives the server's events; set once, before the first disk is attached.
    func setEventHandler(_ handler: @escaping @Sendable (ServerEvent) -> Void)
    /// Begins nothing from now on, and answers those who wait for a storage to begin something;
    /// what has begun can still be ended.
    func refuseNewCalls() async
    /// Stops accepting, finishes requests in flight, flushes and closes every source.
    func shutdown() async
    /// Leaves everything to the next server, in this process or another, as a kill at a quiet
    /// moment would: every request that was accepted is answered, connections are closed, and
    /// disks, scratch and ledgers are let go of. Listening sockets are closed and their files stay.
    /// Throws `cannotLeave` when something is in the way, and goes on serving then; after it has
    /// returned the engine is of no use.
    func leave() async throws(ServerFault)
}

extension BackupEngine {
    /// The same with nothing to be done before the instant.
    package func beginJob(
        _ configuration: JobConfiguration
    ) async throws(ServerFault) -> JobStarted {
        try await beginJob(configuration, beforeInstant: { true })
    }

    /// An engine that never waits for a storage has nobody to answer.
    package func refuseNewCalls() async {}
    /// Nobody waits for disks that are there at once.
    package func expectDisks(_ exports: Set<String>) {}
    /// Nor has one without files anything to forget, or to tell of the one before it.
    package var lastCrash: CrashReport? { nil }
    package func hasTakenOver() {}
    package func leave() async throws(ServerFault) {
        throw .cannotLeave(detail: "this engine leaves nothing to others")
    }
    package func forgetTracking(directory: String) {}
    /// Nor do machines run out of room.
    package var machineRoom: MachineRoom { MachineRoom() }
    package func holdRoom(_ holder: RoomHolder) {}
    package func dropRoom(ofJob id: String) {}

    /// An engine without connections refuses none.
    package var refusedConnections: UInt64 { 0 }
    /// Of an engine without files there is nothing to see.
    package func diskMap(_ disk: DiskID) async throws(ServerFault) -> DiskMap {
        DiskMap(sizeBytes: try await diskStatus(disk).sizeBytes)
    }

    /// Jobs of an engine that keeps nothing in memory end with it.
    package func expectJobs(_ jobs: [JobResumption]) async {}
    package func forgetJob(id: String) async {}
    package func resumeJob(id: String) async throws(ServerFault) -> JobStarted {
        throw .unknownJob(id: id)
    }
}
