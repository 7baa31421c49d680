import Core
import IORing
import PointInTime
import SystemLayer
import Tables

/// A run of the arena that holds old content.
struct CopyBuffer {
    let offset: Int
    let pages: Int
    /// The disk whose own buffer it is; others count in the server's budget, if they count.
    var owner: DiskIndex?
    var isCharged: Bool
    /// Its copy, and a write that was given up while the kernel carried it out.
    var users = 1

    var bytes: Int { pages * BufferArena.pageBytes }
}

/// Buffers of copies: from the server's budget, and one for each disk that it always gets.
extension RingLoop where IO: ~Copyable {
    /// Gives a copy its buffer and reads; without memory it waits its turn.
    mutating func startCopy(_ disk: DiskIndex, _ copy: CopyIndex) {
        if disks[disk].waitingCopies.isEmpty, takeBuffer(disk, copy) {
            return readOldContent(disk, copy)
        }
        disks[disk].waitingCopies.append(copy)
        if disks[disk].isHungry { return }
        disks[disk].isHungry = true
        hungryDisks.append(disk)
    }

    private mutating func takeBuffer(_ disk: DiskIndex, _ copy: CopyIndex) -> Bool {
        let count = disks[disk].clusters(of: copy).count
        let pages = count * ClusterGeometry.clusterBytes / BufferArena.pageBytes
        let isOwn = !disks[disk].hasOwnBuffer
        let bytes = pages * BufferArena.pageBytes
        guard isOwn || shared.copyMemory.take(bytes) else { return false }
        guard let offset = arena.allocate(pages: pages) else {
            if !isOwn { giveBack(bytes) }
            return false
        }
        if isOwn { disks[disk].hasOwnBuffer = true }
        disks[disk].copies[copy].buffer = copyBuffers.insert(
            CopyBuffer(
                offset: offset, pages: pages, owner: isOwn ? disk : nil, isCharged: !isOwn))
        return true
    }

    mutating func endCopy(_ disk: DiskIndex, _ copy: CopyIndex) {
        // A copy that was given up while it waited never had one.
        guard let buffer = disks[disk].copies[copy].buffer else { return }
        disks[disk].copies[copy].buffer = nil
        letGo(ofCopyBuffer: buffer)
    }

    /// One of the buffer's users is through with it.
    mutating func letGo(ofCopyBuffer number: CopyBufferIndex) {
        copyBuffers[number].users -= 1
        guard copyBuffers[number].users == 0 else { return }
        discharge(number)
        let buffer = copyBuffers.remove(number)
        arena.free(buffer.offset, pages: buffer.pages)
        copiesMayStart = true
    }

    /// A write that hangs keeps the buffer, for ever perhaps: nobody else is to go without for
    /// that.
    mutating func keepForWriter(_ number: CopyBufferIndex) {
        copyBuffers[number].users += 1
        discharge(number)
        copiesMayStart = true
    }

    private mutating func discharge(_ number: CopyBufferIndex) {
        let buffer = copyBuffers[number]
        if let owner = buffer.owner { disks[owner].hasOwnBuffer = false }
        if buffer.isCharged { giveBack(buffer.bytes) }
        copyBuffers[number].owner = nil
        copyBuffers[number].isCharged = false
    }

    private mutating func giveBack(_ bytes: Int) {
        guard shared.copyMemory.give(bytes) else { return }
        for ring in shared.layout.rings(for: .guests) where ring != index {
            shared.mailboxes[ring].post(.copyMemoryFreed)
        }
    }

    /// Starts copies that wait, a disk after the other, as far as memory goes.
    mutating func startWaitingCopies() {
        guard copiesMayStart else { return }
        copiesMayStart = false
        var left = hungryDisks.count
        while left > 0, let disk = hungryDisks.first {
            hungryDisks.removeFirst()
            guard disks.contains(disk), let copy = disks[disk].waitingCopies.first else {
                if disks.contains(disk) { disks[disk].isHungry = false }
                left -= 1
                continue
            }
            hungryDisks.append(disk)
            guard takeBuffer(disk, copy) else {
                left -= 1
                continue
            }
            left = hungryDisks.count
            disks[disk].waitingCopies.removeFirst()
            readOldContent(disk, copy)
            perform(disk)
        }
    }

    /// Ends the copies that wait for memory and that no whole job wants any more.
    mutating func cancelUnwantedCopies(_ disk: DiskIndex) {
        let waiting = disks[disk].waitingCopies
        guard !waiting.isEmpty else { return }
        disks[disk].waitingCopies.removeAll(keepingCapacity: true)
        for copy in waiting {
            if disks[disk].isWanted(copy) {
                disks[disk].waitingCopies.append(copy)
            } else {
                disks[disk].changes.sourceRead(
                    copy, errno: Errno.canceled, zeroClusters: 0, now: now)
            }
        }
    }
}
