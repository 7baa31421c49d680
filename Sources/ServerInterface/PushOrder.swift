/// The format of a push backup's target.
package enum PushFormat: String, Sendable, Hashable, Codable, CaseIterable {
    case raw
    case qcow2
}

/// What a worker has to know of one disk's target before the backup begins.
package struct PushOrder: Sendable, Hashable, Codable {
    /// Absolute path of what is written.
    package var path: String
    package var kind: SourceKind
    package var format: PushFormat
    /// True for an empty file that the server has made; otherwise what is there already is written
    /// over.
    package var isNew: Bool
    /// True: an image of that format, which is kept as it is (`--reuse-external`).
    package var keepsImage: Bool
    /// Clusters are compressed (qcow2).
    package var compresses: Bool
    /// The result is read back and compared.
    package var verifies: Bool
    /// Size of the disk in bytes.
    package var sizeBytes: UInt64
    /// Connections to each side, at least one.
    package var connections: Int
    /// Where the program that writes the format listens: an absolute path that is free.
    package var socketPath: String
    /// Bytes a second; nil: as fast as it goes.
    package var bytesPerSecond: UInt64?
    /// `st_dev` and `st_ino` of the file that was checked; nil: any.
    package var device: UInt64?
    package var inode: UInt64?
    /// The whole disk is copied, and holds data nearly everywhere.
    package var isDense: Bool
    package var room: MachineRoom

    package init(
        path: String, kind: SourceKind, format: PushFormat, isNew: Bool, keepsImage: Bool,
        sizeBytes: UInt64, socketPath: String
    ) {
        self.path = path
        self.kind = kind
        self.format = format
        self.isNew = isNew
        self.keepsImage = keepsImage
        self.sizeBytes = sizeBytes
        self.socketPath = socketPath
        compresses = false
        verifies = false
        connections = 1
        isDense = false
        room = MachineRoom()
    }
}

/// Where a worker reads, once the instant is fixed.
package struct PushSource: Sendable, Hashable, Codable {
    /// The unix socket of the job's exports.
    package var socketPath: String
    package var exportName: String
    /// The bitmap of what changed; nil: the whole disk is copied.
    package var bitmap: String?

    package init(socketPath: String, exportName: String, bitmap: String?) {
        self.socketPath = socketPath
        self.exportName = exportName
        self.bitmap = bitmap
    }
}

/// What the server tells a worker.
package enum PushCommand: Sendable, Hashable, Codable {
    case prepare(PushOrder)
    case copy(PushSource)
    /// A new limit in bytes a second.
    case limit(UInt64)
    /// Disks have come or gone.
    case room(MachineRoom)
    /// A machine needs the target's room: it fails, and a new file is emptied at once.
    case giveRoom
}

/// What a worker tells the server.
package enum PushReport: Sendable, Hashable, Codable {
    /// The file system of the target, before it is ready.
    case place(fileSystem: UInt64)
    /// The target can be written.
    case ready
    /// Bytes of the backup's content that have been written, of so many. Comes only when there is
    /// news.
    case progress(bytes: UInt64, total: UInt64)
    /// Everything has been written and is being made durable, which may take long.
    case flushing
    /// The target is whole and durable.
    case done
    /// A new file is empty then.
    case failed(String)
}
