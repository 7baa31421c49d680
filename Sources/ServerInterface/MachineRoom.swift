/// Where machines' disks take their room, and what is left free for them there.
package struct MachineRoom: Sendable, Hashable, Codable {
    /// File systems that hold a disk that is written, as `FileCalls.fileSystem` numbers them.
    package var fileSystems: Set<UInt64>
    package var reserve: ScratchReserve

    package init(
        fileSystems: Set<UInt64> = [],
        reserve: ScratchReserve = .share(percent: ServerConfiguration.defaultReservePercent)
    ) {
        self.fileSystems = fileSystems
        self.reserve = reserve
    }

    /// Bytes that a file system of this size keeps free; nil where there is no disk.
    package func keptBytes(on fileSystem: UInt64, totalBytes: UInt64) -> UInt64? {
        fileSystems.contains(fileSystem) ? reserve.bytes(of: totalBytes) : nil
    }
}

/// A file other than scratch that takes room beside machines' disks, and can give it back.
package struct RoomHolder: Sendable {
    package let job: String
    /// Tells it from others of its job.
    package let target: String
    package let fileSystem: UInt64
    /// Gives the room back; calls its argument once it has, or when there is nothing to give.
    package let give: @Sendable (@escaping @Sendable () -> Void) -> Void

    package init(
        job: String, target: String, fileSystem: UInt64,
        give: @escaping @Sendable (@escaping @Sendable () -> Void) -> Void
    ) {
        self.job = job
        self.target = target
        self.fileSystem = fileSystem
        self.give = give
    }
}
