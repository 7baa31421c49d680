import Core
import Disk
import IORing
import NBDProtocol
import ScratchFiles
import Synchronization
import SystemLayer
import Tables

/// Reads that hand page-cache pages to the socket instead of copying them.
///
/// Only where the pages cannot change before the peer has them: a source that nobody may write, and
/// scratch of our own making, whose slots are written once unless clients may release them.
extension RingLoop where IO: ~Copyable {
    /// Settles what a peer is sent without a copy; again now and then, as other clients come and
    /// go.
    mutating func chooseStrategy(_ slot: ConnectionIndex) {
        let isUnix = connections[slot].isUnix
        let isSecured = connections[slot].isSecured
        switch connections[slot].transmission.target {
        case .live(let export):
            let clients = export.clientCount.load(ordering: .relaxed)
            connections[slot].transmission.path?.sourceByReference =
                ReadStrategy(isUnix: isUnix, isSecured: isSecured, clients: clients)
                .sendsByReference(
                    isDirect: export.source.isDirect || export.source.isFar,
                    neverChanges: export.source.isReadOnly)
        case .backup(let export):
            let strategy = ReadStrategy(
                isUnix: isUnix, isSecured: isSecured,
                clients: export.clientCount.load(ordering: .relaxed))
            // To take pages of what is far may be asked for there first, although all are here.
            connections[slot].transmission.path?.sourceByReference = strategy.sendsByReference(
                isDirect: export.source.isDirect || export.source.isFar,
                neverChanges: export.source.isReadOnly)
            // A slot that a client may release is written again.
            connections[slot].transmission.path?.scratchByReference = strategy.sendsByReference(
                isDirect: export.scratch.isFar,
                neverChanges: export.scratch.slotsNeverChange && !export.mayRelease)
        case nil: break
        }
    }

    /// Answers one piece of a read by reference; false: it is to be read into memory.
    mutating func sendByReference(
        _ slot: ConnectionIndex, _ request: RequestIndex, _ offset: UInt64, _ count: UInt64
    ) -> Bool {
        // After an error no data follows: the reply ends with the error.
        guard requests[request].failure == nil,
            count >= Limits.referenceReadBytes, count <= UInt64(PipePool.pipeBytes),
            connections[slot].transmission.path?.sendsByReference ?? false
        else { return false }
        var read = PointInTimeRead(offset..<(offset + count))
        guard let place = stablePages(slot, &read),
            let pages = io.takePages(
                of: place.file, filePosition: place.position, count: Int(count))
        else { return false }
        guard finish(&read, slot, Int(count)), let buffer = allocate(pages: 1, for: slot) else {
            io.endPages(pages, unsent: Int(count))
            return false
        }
        requests[request].issued += count
        let isLast =
            requests[request].piecesInFlight == 0
            && requests[request].issued == requests[request].valid.length
        let header = writeDataHeader(
            request, offset: offset, count: count, isLast: isLast, at: buffer.offset)
        connections[slot].outbox.replies.append(
            OutputSegment(
                start: buffer.offset, end: buffer.offset + header, filePages: pages,
                filePageBytes: Int(count), buffer: buffer, isOpen: false))
        noteRead(slot, offset, Int(count))
        if requests[request].issued == requests[request].valid.length {
            connections[slot].transmission.current = nil
        }
        if isLast { endReadRequest(slot, request) }
        return true
    }

    /// The file and the place in it where the wanted bytes lie in pages that stay as they are.
    private mutating func stablePages(
        _ slot: ConnectionIndex, _ read: inout PointInTimeRead
    ) -> (file: FileHandle, position: UInt64)? {
        guard let path = connections[slot].transmission.path else { return nil }
        switch read.next(path.ledger) {
        case .source(let count) where path.sourceByReference && count == read.left:
            // A page that somebody else is reading just now keeps who takes it waiting.
            guard shared.layout.duty(of: index) == .backups || shared.places.areOne else {
                return nil
            }
            return (path.source, read.position)
        case .scratch(let position, let count) where path.scratchByReference && count == read.left:
            return path.preserved.map { ($0.scratch, position) }
        case .source, .scratch, .zeros, .askScratch, .done, .closed, .released: return nil
        }
    }

    /// Ends a read whose pages were taken; false when they are not all of it, or not the instant's.
    private mutating func finish(
        _ read: inout PointInTimeRead, _ slot: ConnectionIndex, _ count: Int
    ) -> Bool {
        let ledger = connections[slot].transmission.path?.ledger
        read.got(count, ledger)
        while true {
            switch read.next(ledger) {
            case .askScratch:
                askScratch(slot)
                read.asked()
            case .done: return true
            case .source, .scratch, .zeros, .closed, .released: return false
            }
        }
    }

    /// Writes the header in front of a piece's data; returns its size.
    mutating func writeDataHeader(
        _ request: RequestIndex, offset: UInt64, count: UInt64, isLast: Bool, at place: Int
    ) -> Int {
        guard needsDataHeader(request) else { return 0 }
        requests[request].headerSent = true
        let valid = requests[request].valid
        let replies = connections[requests[request].connection].transmission.replies
        // Of a reply that may not be cut the header tells all that will follow, so that nothing but
        // hanging up is left when a later piece fails.
        let isWhole = requests[request].isExclusive
        var span = arena.mutableBytes(place, count: replies.dataHeaderBytes)
        return replies.data(
            valid.echo, place: isWhole ? valid.offset : offset,
            dataBytes: UInt32(isWhole ? valid.length : count), done: isWhole || isLast, into: &span,
            at: 0)
    }

    /// Whether a header precedes the request's next piece: every chunk has one, else only the
    /// first.
    mutating func needsDataHeader(_ request: RequestIndex) -> Bool {
        let usesChunks = connections[requests[request].connection].transmission.replies.mode
            .usesChunks
        return !requests[request].headerSent || (usesChunks && !requests[request].isExclusive)
    }
}
