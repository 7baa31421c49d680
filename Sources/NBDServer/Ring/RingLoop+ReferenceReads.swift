import Disk
import IORing
import NBDProtocol
import Scratch
import Synchronization

/// Reads that hand page-cache pages to the socket instead of copying them.
///
/// Only where the pages cannot change before the peer has them: a source that nobody may write, and
/// scratch of our own making, whose slots are written once unless clients may let go of them.
extension RingLoop {
    /// Settles what a peer is sent without a copy; again now and then, as other clients come and go.
    mutating func chooseStrategy(_ slot: ConnectionIndex) {
        let isUnix = connections[slot].isUnix
        let isSecured = connections[slot].isSecured
        switch connections[slot].target {
        case .live(let export):
            let clients = export.clientCount.load(ordering: .relaxed)
            connections[slot].path.sourceByReference =
                ReadStrategy(isUnix: isUnix, isSecured: isSecured, clients: clients)
                .sendsByReference(
                    isDirect: export.source.isDirect, neverChanges: export.source.isReadOnly)
        case .backup(let export):
            let strategy = ReadStrategy(
                isUnix: isUnix, isSecured: isSecured,
                clients: export.clientCount.load(ordering: .relaxed))
            connections[slot].path.sourceByReference = strategy.sendsByReference(
                isDirect: export.source.isDirect, neverChanges: export.source.isReadOnly)
            // A slot that a client may let go of is written again.
            connections[slot].path.scratchByReference = strategy.sendsByReference(
                isDirect: false,
                neverChanges: export.scratch.slotsNeverChange && !export.mayRelease)
        case nil: break
        }
    }

    /// Answers one piece of a read by reference; false: it is to be read into memory.
    mutating func sendByReference(
        _ slot: ConnectionIndex, _ request: RequestIndex, _ offset: UInt64, _ count: UInt64
    ) -> Bool {
        // After an error no data follows: the reply ends with the error.
        guard requests[request].error == nil,
            count >= Limits.referenceReadBytes, count <= UInt64(PipePool.pipeBytes),
            let pages = stablePages(slot, offset, count),
            FileCalls.isResident(
                pages.descriptor, position: pages.position, count: Int(count)),
            let pipe = pipes.take()
        else { return false }
        let filled = pipes.fill(
            pipe, from: pages.descriptor, filePosition: pages.position, count: Int(count))
        if !pages.isSource { askScratch(slot) }
        guard filled == Int(count), !(connections[slot].path.ledger?.isClosed ?? false),
            !pages.isSource
                || stillUnchanged(connections[slot].path, offset, filled) == filled,
            let buffer = allocate(pages: 1, for: slot)
        else {
            pipes.discard(pipe)
            return false
        }
        requests[request].issued += count
        let isLast =
            requests[request].piecesInFlight == 0
            && requests[request].issued == requests[request].valid.length
        let header = writeDataHeader(
            request, offset: offset, count: count, isLast: isLast, at: buffer)
        connections[slot].output.append(
            OutputSegment(
                start: buffer, end: buffer + header, pipe: pipe, pipeBytes: filled,
                buffer: buffer, pages: 1, isOpen: false))
        noteRead(slot, offset, filled)
        if requests[request].issued == requests[request].valid.length {
            connections[slot].current = nil
        }
        if isLast { endReadRequest(slot, request) }
        return true
    }

    /// The file and the place in it where the wanted bytes lie in pages that stay as they are.
    private func stablePages(
        _ slot: ConnectionIndex, _ offset: UInt64, _ count: UInt64
    ) -> (descriptor: Int32, position: UInt64, isSource: Bool)? {
        let path = connections[slot].path
        guard path.sourceByReference || path.scratchByReference else { return nil }
        let step = step(path, offset, offset + count)
        guard step.count == Int(count) else { return nil }
        switch step.place {
        case .source where path.sourceByReference:
            return (path.sourceDescriptor, offset, isSource: true)
        case .slot(let first) where path.scratchByReference:
            return (
                path.scratchDescriptor,
                LedgerView.scratchPosition(of: offset, firstSlot: first), isSource: false
            )
        case .source, .slot, .zero, .released: return nil
        }
    }

    /// Writes what stands in front of a piece's data; returns its size.
    mutating func writeDataHeader(
        _ request: RequestIndex, offset: UInt64, count: UInt64, isLast: Bool, at place: Int
    ) -> Int {
        guard needsDataHeader(request) else { return 0 }
        requests[request].headerSent = true
        let valid = requests[request].valid
        let replies = connections[requests[request].connection].replies
        // Of a reply that may not be cut the header tells all that will follow, so that nothing but
        // hanging up is left when a later piece fails.
        let isWhole = requests[request].isExclusive
        var span = arena.mutableBytes(place, count: replies.dataHeaderBytes)
        return replies.data(
            valid.echo, place: isWhole ? valid.offset : offset,
            dataBytes: UInt32(isWhole ? valid.length : count), done: isWhole || isLast, into: &span,
            at: 0)
    }

    /// Whether a header stands in front of the request's next piece: of every chunk, else only of the
    /// first.
    func needsDataHeader(_ request: RequestIndex) -> Bool {
        let usesChunks = connections[requests[request].connection].replies.mode.usesChunks
        return !requests[request].headerSent || (usesChunks && !requests[request].isExclusive)
    }
}
