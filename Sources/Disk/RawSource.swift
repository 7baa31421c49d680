import Synchronization
package import SystemLayer

/// Why a source cannot be opened.
package enum SourceFault: Error, Sendable, Hashable {
    /// A system call failed.
    case system(SystemFault)
    /// The path names something else than the configuration says.
    case wrongType(expected: FileType, found: FileType)
    /// Somebody uses the source, `node` where that can be told, in a way that excludes us.
    case inUse(detail: String, node: FileNode?)
    /// A block device whose size is no multiple of the blocks that `cache='none'` needs.
    case sizeNotAligned(sizeBytes: UInt64, alignment: Int)
    /// A block device of no bytes, such as a drive without a medium; an empty file is a disk.
    case empty
    /// A file of the kernel's own, such as those in `/proc`: it holds no disk.
    case kernelInterface
    /// A file that the server keeps its own state in.
    case ownState
    /// More bytes than `RawSource.sizeBytesMax`.
    case tooLarge(sizeBytes: UInt64)
    /// `cache='none'` is served for devices with blocks of up to 4 KiB.
    case alignmentTooLarge(Int)
}

/// What is known of a source without opening it.
package struct SourceFacts: Sendable {
    package var path: String
    package var type = FileType.regular
    package var sizeBytes: UInt64
    package var isReadOnly = false
    /// Over 1 where the page cache is bypassed.
    package var alignment = 1
    package var readsNeverWait = false
    package var paysForLargeFolios = false
    package var isFar = false
    /// What the source is called where it is read and written, and where its tail is written.
    package var raw: Int32
    package var tailRaw: Int32
    package var node: FileNode?
    package var witness: WriteErrorWitness
    /// What holds the bytes, if no file does.
    package var remote: (any RemoteSource)?

    package init(path: String, sizeBytes: UInt64, raw: Int32, witness: WriteErrorWitness) {
        self.path = path
        self.sizeBytes = sizeBytes
        self.raw = raw
        tailRaw = raw
        self.witness = witness
    }
}

/// An open raw file or block device that holds a disk's bytes from offset zero.
///
/// Shared by the disk's home ring and every reader of its backup exports; closed when the last of
/// them lets go.
package final class RawSource: Sendable {
    package let path: String
    package let type: FileType
    /// Bytes of the disk.
    ///
    /// Grows when `grow(to:)` says so, and only then.
    package var sizeBytes: UInt64 { size.load(ordering: .acquiring) }
    private let size: Atomic<UInt64>
    package let isReadOnly: Bool
    /// Whether the page cache is bypassed.
    package let isDirect: Bool
    /// Whether even what the page cache has may be asked for elsewhere first, as on NFS.
    package let isFar: Bool
    /// Where the part of a file begins that O_DIRECT cannot write without growing it: the last
    /// page, when the size is no multiple of the alignment.
    ///
    /// It is written with `tailRaw`, through the page cache, and nothing of its page with `raw`, so
    /// that no page of the cache ever holds older bytes of what was written directly. A multiple of
    /// the alignment, or the size where there is no such part.
    package let tailStart: UInt64
    /// Its size is no multiple of the alignment.
    package let hasTail: Bool
    /// The descriptor by which bytes from `tailStart` on are written, valid while this object
    /// lives.
    package let tailRaw: Int32
    private let tailDescriptor: OwnedDescriptor?
    /// Offsets, lengths and memory of every read and write are multiples of this.
    ///
    /// 1 through the page cache.
    package let alignment: Int
    /// A plain read never waits for a device (the file lies in memory).
    package let readsNeverWait: Bool
    /// Small writes are dear where the page cache holds the source in large folios.
    package let paysForLargeFolios: Bool
    /// What holes can be asked by.
    let holes: FileCalls.HoleKnowledge
    /// The file or device, by whatever name it was opened.
    package let node: FileNode?
    /// Is told when the kernel could not bring writes to the source after they had returned.
    package let witness: WriteErrorWitness
    /// The errno of writes that were lost while nobody had the source, or nil.
    package let earlierLoss: Int32?
    private let descriptor: OwnedDescriptor?
    /// For the server's own syncs; opened once, so that a sync never fails for want of a
    /// descriptor.
    ///
    /// The kernel tells each open file of an error once: what the guest's descriptor has to be told
    /// stays there.
    private let syncDescriptor: OwnedDescriptor?
    /// Its number, valid while this object lives; nil where there is none.
    let syncRaw: Int32?
    private let failedSyncs = Atomic<Int>(0)
    /// The last failed sync's errno, and that of one that no guest was told of; 0: none.
    private let syncErrno = Atomic<Int32>(0)
    private let unheardErrno = Atomic<Int32>(0)
    /// Syncs of the server's own that are under way, and since when there is one.
    let ownSyncs = Atomic<Int>(0)
    let ownSyncSince = Atomic<UInt64>(0)
    let doubtWord = Atomic<UInt8>(0)
    /// A change of the source, or anything of a far one, has been under way for long: whoever may not
    /// wait asks nothing that could wait behind it.
    package var isStalled: Bool {
        // Relaxed: asked again soon, and nobody reads anything by it.
        get { stalled.load(ordering: .relaxed) }
        set { stalled.store(newValue, ordering: .relaxed) }
    }
    private let stalled = Atomic<Bool>(false)
    /// Held while the file's length or the disk's size changes: neither is cut short by a call that
    /// was decided on before the other.
    private let length = Mutex<Void>(())

    /// The descriptor's number, valid while this object lives.
    package let raw: Int32
    /// What holds the bytes, if no file does: then the numbers above are a ring's own.
    package let remote: (any RemoteSource)?

    /// Largest size that is served: half the address space of NBD's signed users, in bytes.
    package static let sizeBytesMax: UInt64 = 1 << 62

    /// Opens and locks a source.
    ///
    /// The locks are qemu's (see `SourceLock`), so that no qemu and no other nbdpull writes the
    /// same file, and a block device that is mounted or otherwise held by the kernel is refused for
    /// writing.
    package init(
        path: String, expected: FileType, readOnly: Bool, direct: Bool,
        reserved: ReservedPaths = ReservedPaths()
    ) throws(SourceFault) {
        var options: FileCalls.OpenOptions = []
        if !readOnly { options.insert(.write) }
        if direct { options.insert(.direct) }
        if expected == .blockDevice, !readOnly { options.insert(.exclusiveDevice) }
        let descriptor = try Self.open(path, options)
        let facts = try Self.facts(descriptor.raw)
        guard facts.type == expected else {
            throw .wrongType(expected: expected, found: facts.type)
        }
        try reserved.check(descriptor.raw)
        if facts.sizeBytes == 0, facts.type == .blockDevice { throw .empty }
        guard facts.sizeBytes <= Self.sizeBytesMax else {
            throw .tooLarge(sizeBytes: facts.sizeBytes)
        }
        try SourceLock.acquire(descriptor.raw, forWriting: !readOnly)
        FileCalls.leaveAccessTime(descriptor.raw)
        let alignment =
            direct ? FileCalls.directAlignment(descriptor.raw, type: facts.type) : 1
        guard alignment <= Self.alignmentMax else { throw .alignmentTooLarge(alignment) }
        let isAligned = facts.sizeBytes.isMultiple(of: UInt64(alignment))
        guard isAligned || facts.type == .regular else {
            throw .sizeNotAligned(sizeBytes: facts.sizeBytes, alignment: alignment)
        }
        if readOnly {
            syncRaw = nil
            syncDescriptor = nil
        } else {
            let own = try Self.reopen(descriptor.raw, [])
            syncRaw = own.raw
            syncDescriptor = consume own
        }
        let page = UInt64(max(FileCalls.pageBytes, alignment))
        tailStart = isAligned ? facts.sizeBytes : facts.sizeBytes / page * page
        hasTail = !isAligned
        if isAligned || readOnly {
            tailRaw = descriptor.raw
            tailDescriptor = nil
        } else {
            let tail = try Self.reopen(descriptor.raw, [.write])
            tailRaw = tail.raw
            tailDescriptor = consume tail
        }
        // Last: what the kernel tells now it tells nobody again.
        let witness = try Self.sourced { [raw = descriptor.raw] () throws(SystemFault) in
            try WriteErrorWitness(of: raw)
        }
        self.witness = witness
        let node = FileCalls.node(descriptor.raw)
        earlierLoss = EarlierLosses.keep(witness.earlier, of: node)
        unheardErrno.store(earlierLoss ?? 0, ordering: .relaxed)
        self.path = path
        self.node = node
        type = facts.type
        size = Atomic(facts.sizeBytes)
        isReadOnly = readOnly
        isDirect = direct
        self.alignment = alignment
        readsNeverWait = !direct && FileCalls.isMemoryBacked(descriptor.raw)
        paysForLargeFolios =
            !direct && !readOnly
            && FileCalls.paysForLargeFolios(descriptor.raw, type: facts.type)
        isFar = facts.type == .regular && FileCalls.isFar(descriptor.raw)
        holes = facts.type == .regular ? FileCalls.holeKnowledge(descriptor.raw) : .none
        raw = descriptor.raw
        remote = nil
        self.descriptor = consume descriptor
    }

    /// A source of which no descriptor is open, known by its facts; what is asked of it here is
    /// asked of a simulated world elsewhere.
    package init(_ facts: SourceFacts) {
        path = facts.path
        type = facts.type
        size = Atomic(facts.sizeBytes)
        isReadOnly = facts.isReadOnly
        isDirect = facts.alignment > 1
        alignment = facts.alignment
        tailStart = facts.sizeBytes / UInt64(facts.alignment) * UInt64(facts.alignment)
        hasTail = !facts.sizeBytes.isMultiple(of: UInt64(facts.alignment))
        raw = facts.raw
        tailRaw = facts.tailRaw
        tailDescriptor = nil
        descriptor = nil
        syncRaw = nil
        syncDescriptor = nil
        readsNeverWait = facts.readsNeverWait
        paysForLargeFolios = facts.paysForLargeFolios
        isFar = facts.isFar
        holes = .none
        node = facts.node
        witness = facts.witness
        remote = facts.remote
        earlierLoss = facts.witness.earlier
        unheardErrno.store(facts.witness.earlier ?? 0, ordering: .relaxed)
    }

    deinit { remote?.release() }

    /// What tells the source from others, for what is kept about it: empty where nothing can.
    package var identity: String { node?.text ?? (remote == nil ? "" : path) }

    /// Opens a path; a system error becomes a source fault.
    package static func open(
        _ path: String, _ options: FileCalls.OpenOptions
    ) throws(SourceFault) -> OwnedDescriptor {
        try sourced { () throws(SystemFault) in try FileCalls.open(path, options) }
    }

    /// Opens the very file once more, whatever has its name by now.
    private static func reopen(
        _ descriptor: Int32, _ options: FileCalls.OpenOptions
    ) throws(SourceFault) -> OwnedDescriptor {
        try sourced { () throws(SystemFault) in try FileCalls.reopen(descriptor, options) }
    }

    /// Type and size of an open file; a system error becomes a source fault.
    package static func facts(
        _ descriptor: Int32
    ) throws(SourceFault) -> (type: FileType, sizeBytes: UInt64) {
        try sourced { () throws(SystemFault) in try FileCalls.facts(descriptor) }
    }

    /// What a system call gives; its error as a source fault.
    private static func sourced<Value: ~Copyable>(
        _ body: () throws(SystemFault) -> Value
    ) throws(SourceFault) -> Value {
        do throws(SystemFault) {
            return try body()
        } catch {
            throw .system(error)
        }
    }

    /// The bytes that the file or device has by now, whatever is served of it.
    package func measure() throws(SourceFault) -> UInt64 {
        remote == nil ? try Self.facts(raw).sizeBytes : sizeBytes
    }

    /// What a call has added to a regular file.
    package struct Extension: Sendable, Hashable {
        /// The file's length before and since, in bytes.
        package let from: UInt64
        package let to: UInt64
    }

    /// Makes a regular file this long; nil, and nothing done, when it is longer already.
    package func extend(to bytes: UInt64) throws(SystemFault) -> Extension? {
        try length.withLock { _ throws(SystemFault) in
            let present = try FileCalls.facts(raw).sizeBytes
            guard bytes >= max(present, sizeBytes) else { return nil }
            if bytes > present { try FileCalls.setSize(raw, bytes: bytes) }
            return Extension(from: present, to: bytes)
        }
    }

    /// Makes the file as long as it was before an extension, unless the disk has grown into it or
    /// the file has another length by now.
    package func takeBack(_ added: Extension) throws(SystemFault) {
        try length.withLock { _ throws(SystemFault) in
            guard added.from < added.to, sizeBytes <= added.from,
                try FileCalls.facts(raw).sizeBytes == added.to
            else { return }
            try FileCalls.setSize(raw, bytes: added.from)
        }
    }

    /// From now on the disk has so many bytes; never fewer than before.
    ///
    /// Connections that are there go on with what they were told.
    package func grow(to bytes: UInt64) {
        length.withLock { _ in
            precondition(bytes >= sizeBytes && bytes <= Self.sizeBytesMax, "a disk only grows")
            size.store(bytes, ordering: .releasing)
        }
    }

    /// How often the source was found to have lost writes that had succeeded, or may have, since it
    /// was opened, and the errno; never waits for the storage.
    package func losses() -> (count: Int, errno: Int32) {
        let found = witness.errors()
        let failed = failedSyncs.load(ordering: .acquiring)
        guard failed > 0 else { return found }
        return (found.count + failed, syncErrno.load(ordering: .relaxed))
    }

    /// The errno of a loss that a guest cannot have been told of by its own flushes, or nil.
    package var unheardLoss: Int32? {
        let found = witness.errors()
        if found.count > 0 { return found.errno }
        let errno = unheardErrno.load(ordering: .acquiring)
        return errno == 0 ? nil : errno
    }

    func keepFailedSync(_ errno: Int32, isHeard: Bool) {
        if !isHeard { unheardErrno.store(errno, ordering: .releasing) }
        syncErrno.store(errno, ordering: .relaxed)
        failedSyncs.add(1, ordering: .acquiringAndReleasing)
    }

    /// Writes were lost of which the machine has not heard: its flushes fail.
    ///
    /// Nothing is said of what is recorded of the disk.
    package func expectLossToBeHeard() {
        if unheardErrno.load(ordering: .relaxed) == 0 {
            unheardErrno.store(Errno.io, ordering: .releasing)
        }
    }

    /// `earlierLoss` has been acted on: whoever opens the source next is not told of it again.
    package func heedEarlierLoss() {
        EarlierLosses.forget(node)
        remote?.heedLoss()
    }

    /// What lies at `position`: data or a hole, and where that ends (at most `end`).
    ///
    /// Where the file system cannot tell, everything is data, and where the source is stalled unless
    /// the caller may wait. So is what lies behind the end of a file that somebody has cut short: its
    /// bytes are lost, which is for a read to say, and no zeros. May read file system metadata, so
    /// callers bound how many lookups they make in one go. `endsHole` says that a hole was found in
    /// front of `position`, which spares a lookup.
    package func allocation(
        at position: UInt64, end: UInt64, endsHole: Bool = false, mayWait: Bool = true
    ) -> (isData: Bool, end: UInt64) {
        precondition(position < end)
        guard holes != .none, mayWait || !isStalled else { return (true, end) }
        do throws(SystemFault) {
            if endsHole, let hole = try FileCalls.seek(raw, from: position, data: false),
                hole > position
            {
                return (true, min(hole, end))
            }
            // A guest may punch the data away between the two lookups; then they are made again.
            for _ in 0..<Self.lookupsMax {
                guard let data = try FileCalls.seek(raw, from: position, data: true) else {
                    let fileEnd = try FileCalls.facts(raw).sizeBytes
                    return fileEnd > position ? (false, min(fileEnd, end)) : (true, end)
                }
                if data > position { return (false, min(data, end)) }
                let hole = try FileCalls.seek(raw, from: position, data: false) ?? end
                if hole > position { return (true, min(hole, end)) }
            }
            // It changes faster than it can be asked about: data is always a true answer.
            return (true, min(position / Self.blockBytes * Self.blockBytes + Self.blockBytes, end))
        } catch {
            return (true, end)
        }
    }

    /// The buffers' own alignment, in bytes.
    private static let alignmentMax = 4096
    /// Lookups made for one answer when the file changes meanwhile.
    private static let lookupsMax = 4
    /// The least that is answered about when it changes faster still, in bytes.
    private static let blockBytes: UInt64 = 4096
}
