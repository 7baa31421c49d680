/// The configuration of a server.
package struct ServerConfiguration: Sendable {
    /// Rings (threads) that serve machines, and as many that serve backup clients; nil takes the
    /// number of cores, at most 4.
    package var rings: Int?
    /// Jobs can begin; without them there are no rings for backup clients.
    package var servesJobs: Bool
    /// Connections of all listeners together.
    package var maxConnections: Int
    /// Connections to the exports of one job; nil leaves a quarter of all to others.
    package var maxConnectionsPerJob: Int?
    /// Connections of one TCP peer, an IPv4 address or an IPv6 /64; nil takes half of all.
    ///
    /// Who may open a unix socket is decided by its permissions.
    package var maxConnectionsPerPeer: Int?
    /// A backup client that neither takes nor sends a byte for so long, although it is its turn, is
    /// disconnected, in seconds; 0 for never.
    package var stallSeconds: Int
    /// A backup client that asks nothing for so long is disconnected, in seconds; 0 for never.
    package var idleSeconds: Int
    /// A call waits so long for a path or a host name that does not answer, in seconds.
    package var storageSeconds = Self.defaultStorageSeconds
    /// Requests wait so long for an upstream that has gone, in seconds; then they fail.
    package var upstreamPatienceSeconds = Self.defaultUpstreamPatienceSeconds
    /// Memory in which old content is on its way to scratch, for all disks together, in bytes; a
    /// disk with a job may have one copy in flight besides.
    package var copyMemoryBytes: Int
    /// Memory of guests that vhost-user front-ends may share, all together, in bytes.
    package var guestMemoryBytes = Self.defaultGuestMemoryBytes
    /// Room that scratch leaves on a file system which holds a machine's disk as well.
    package var scratchReserve: ScratchReserve
    /// Who may open unix sockets besides this server's own user.
    package var socketAccess: SocketAccess

    /// Where listeners are found that an earlier server had, and told of for the next one.
    package var sockets = SocketKeep()

    /// What opens images that are not raw, and storage with a protocol of its own; nil: nothing.
    package var adapters: (any AdapterStarting)?

    /// Descriptors that other parts of the process may come to use.
    package var otherDescriptors = 0

    /// TLS credentials and access rules.
    package var security: SecurityConfiguration
    /// Where it is said who holds a disk, if memory that outlives the process (`/dev/shm`) cannot
    /// be had; nil: nowhere.
    package var witnessDirectory: String?
    /// The state directory: the jobs of one server are kept apart from those of others by it; nil:
    /// none of them outlives its process.
    package var stateDirectory: String?
    /// The program's version, for reports.
    package var build = ""
    /// Another server runs whose place this one is to take; `hasTakenOver` says that it has.
    package var takesOver = false
    /// Files and directories of the server's own, which are refused as sources and as scratch.
    package var ownPaths: [String] = []
    /// A guest write that waits for the write-intent log for longer ends the disk's change
    /// tracking, in seconds.
    package var trackingTimeoutSeconds: Int

    package init(
        rings: Int? = nil, servesJobs: Bool = true, maxConnections: Int = 100,
        maxConnectionsPerJob: Int? = nil,
        maxConnectionsPerPeer: Int? = nil, stallSeconds: Int = Self.defaultStallSeconds,
        idleSeconds: Int = 0,
        copyMemoryBytes: Int = Self.defaultCopyMemoryBytes,
        scratchReserve: ScratchReserve = .share(percent: Self.defaultReservePercent),
        socketAccess: SocketAccess = SocketAccess(),
        security: SecurityConfiguration = SecurityConfiguration(), witnessDirectory: String? = nil,
        trackingTimeoutSeconds: Int = Self.defaultTrackingTimeoutSeconds
    ) {
        self.security = security
        self.witnessDirectory = witnessDirectory
        self.trackingTimeoutSeconds = trackingTimeoutSeconds
        self.rings = rings
        self.servesJobs = servesJobs
        self.maxConnections = maxConnections
        self.maxConnectionsPerJob = maxConnectionsPerJob
        self.maxConnectionsPerPeer = maxConnectionsPerPeer
        self.stallSeconds = stallSeconds
        self.idleSeconds = idleSeconds
        self.copyMemoryBytes = copyMemoryBytes
        self.scratchReserve = scratchReserve
        self.socketAccess = socketAccess
    }

    /// Rings that are started at most by default: one disk's pull does not get faster with more.
    package static let defaultRingsMax = 4
    /// A backup client may wait for a slow target of its own for so long, in seconds.
    package static let defaultStallSeconds = 600
    /// A storage that fails over to another path takes less, in seconds.
    package static let defaultStorageSeconds = 30
    /// A host that restarts its storage's server takes less, in seconds.
    package static let defaultUpstreamPatienceSeconds = 60
    /// The same as `storageSeconds`, in milliseconds.
    package var storageMilliseconds: Int32 { Int32(clamping: storageSeconds * 1000) }

    /// Copies of 16 disks at full depth, or of thousands at less.
    package static let defaultCopyMemoryBytes = 256 << 20
    /// A copy moves 1 MiB at most.
    package static let copyMemoryBytesRange = 1 << 20...1 << 40
    /// Half of a process's addresses: mapped memory takes addresses, and memory only where it is
    /// used.
    package static let defaultGuestMemoryBytes: UInt64 = 1 << 46
    package static let guestMemoryBytesRange: ClosedRange<UInt64> = 1 << 20...1 << 46
    /// Share of a file system that scratch leaves to machines' disks, in percent.
    package static let defaultReservePercent: UInt64 = 5

    /// Storage that takes longer for one small write is as good as gone, in seconds.
    package static let defaultTrackingTimeoutSeconds = 30

    /// A server for fewer connections is for one peer.
    private static let sharedFrom = 16
    /// Connections of one job, and of one TCP peer.
    ///
    /// One job must not keep guests and other jobs out, nor one peer the others of its job.
    package var maxPerJob: Int {
        maxConnectionsPerJob ?? share(maxConnections - maxConnections / 4)
    }
    package var maxPerPeer: Int { maxConnectionsPerPeer ?? share(maxConnections / 2) }
    private func share(_ part: Int) -> Int {
        maxConnections < Self.sharedFrom ? maxConnections : part
    }
}

/// Room that scratch leaves to the machines' disks of a file system.
package enum ScratchReserve: Sendable, Hashable, Codable {
    case bytes(UInt64)
    /// A share of the whole file system, but at most 4 GiB.
    case share(percent: UInt64)

    private static let shareBytesMax: UInt64 = 4 << 30

    /// Bytes that are kept free of a file system of this size.
    package func bytes(of totalBytes: UInt64) -> UInt64 {
        switch self {
        case .bytes(let bytes): bytes
        case .share(let percent):
            min(totalBytes / 100 * min(percent, 100), Self.shareBytesMax)
        }
    }
}

/// Permissions of the unix sockets that NBD is served on.
package struct SocketAccess: Sendable, Hashable {
    /// Permission bits; nil takes what the endpoint says, 0600.
    package var mode: UInt32?
    /// Group of the socket files; nil leaves the server's own.
    package var group: UInt32?

    package init(mode: UInt32? = nil, group: UInt32? = nil) {
        self.mode = mode
        self.group = group
    }
}
