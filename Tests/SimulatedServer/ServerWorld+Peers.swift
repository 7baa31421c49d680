import NBDProtocol
import ServerInterface
import Simulation
import System
import WireClient

@testable import NBDServer

/// Peers: they join, speak, listen and leave.
extension ServerWorld {
    func join(_ disk: ServedDisk, _ part: JobPart?, _ job: ServedJob?) {
        guard peers.count < 8 else { return }
        let scope = job?.scope ?? liveScope
        guard shared.counts.admit(scope, nil) else { return }
        let socket = SimulatedSocket(Int32(sockets.count))
        sockets.append(socket)
        let manner = draw.chance(70) ? Peer.Manner.brisk : Peer.Manner.allCases[draw.below(4)]
        let mode = WireMode.allCases[draw.below(3)]
        peers.append(Peer(socket, disk, part, job, manner, mode))
        let rings = shared.layout.rings(for: scope.duty)
        let ring = rings.lowerBound + draw.below(rings.count)
        note("\(manner) peer \(socket.handle.number) of disk \(disk.number), \(mode)")
        shared.mailboxes[ring].post(
            .adopt(
                ConnectionSeed(
                    socket: socket.handle, scope: scope, isUnix: true, peer: nil,
                    security: ConnectionSecurity(
                        mode: .plaintext, localPeer: nil, rights: .everything),
                    negotiated: nil, input: [], output: Handshake.greeting)))
    }

    /// Some of what the peer has to say goes out.
    func talk(_ peer: Peer) {
        guard !peer.unsent.isEmpty, !peer.socket.isAtEnd else { return }
        let room = SimulatedSocket.roomBytes - peer.socket.input.count
        var count = min(room, peer.unsent.count)
        if peer.manner == .byteByByte { count = min(count, 1 + draw.below(7)) }
        if draw.chance(20), count > 1 { count = 1 + draw.below(count) }
        peer.socket.input += peer.unsent.prefix(count)
        peer.unsent.removeFirst(count)
    }

    /// The peer takes what the server has sent.
    func listen(_ peer: Peer) {
        let socket = peer.socket
        if peer.manner == .deaf, peer.transmission != nil, !isFinishing { return }
        if socket.output.isEmpty {
            if socket.isClosed || socket.isShut { lose(peer) }
            return
        }
        var count = socket.output.count
        if draw.chance(20) { count = 1 + draw.below(count) }
        let bytes = Array(socket.output.prefix(count))
        socket.output.removeFirst(count)
        do throws(WireViolation) {
            if peer.transmission == nil {
                try negotiate(peer, bytes)
            } else {
                peer.transmission?.receive(bytes)
            }
            while let reply = try peer.transmission?.next() { take(reply, peer) }
        } catch {
            if !peer.hasRaved { fail("the protocol is broken: \(error)") }
            leave(peer)
        }
    }

    private func negotiate(_ peer: Peer, _ bytes: [UInt8]) throws(WireViolation) {
        let answer = try peer.handshake.receive(bytes)
        peer.unsent += answer.send
        guard let agreement = answer.agreement else { return }
        peer.transmission = WireTransmission(agreement, received: peer.handshake.rest)
    }

    func leave(_ peer: Peer) {
        note("peer \(peer.socket.handle.number) leaves")
        peer.socket.isClosedByPeer = true
        peers.removeAll { $0 === peer }
    }

    /// The server has hung up.
    private func lose(_ peer: Peer) {
        let isExcused =
            peer.hasRaved || peer.manner == .hostile || isFinishing || peer.job?.isEnding == true
            || peer.part?.export.brokenReason != nil || peer.manner == .deaf
            || (peer.transmission == nil)
        if !isExcused, !peer.disk.hasFailed, peer.job?.hasFailed != true {
            fail("peer \(peer.socket.handle.number) is hung up on")
        }
        peers.removeAll { $0 === peer }
    }

    // MARK: Requests

    func ask(_ peer: Peer) {
        guard peer.transmission != nil, peer.requests.count < 12, peer.unsent.count < 1 << 20,
            !peer.socket.isAtEnd
        else { return }
        if peer.manner == .hostile, draw.chance(20) { return rave(peer) }
        let bytes = range(of: peer.disk)
        if peer.isGuest, !draw.chance(20) { return change(peer, bytes) }
        if draw.chance(15), peer.transmission?.agreement.mode != .simple {
            return send(peer, WireCommand.blockStatus, bytes)
        }
        send(peer, WireCommand.read, bytes)
    }

    func range(of disk: ServedDisk) -> Range<UInt64> {
        let size = disk.source.shape.sizeBytes
        let sectors = Int(size / 512)
        let first = draw.below(sectors)
        let count = 1 + draw.below(draw.chance(30) ? 100 : 20)
        return UInt64(first) * 512..<UInt64(min(first + count, sectors)) * 512
    }

    private func change(_ peer: Peer, _ bytes: Range<UInt64>) {
        let isDurable = draw.chance(15)
        switch draw.below(10) {
        case 0...6:
            lastStamp += 1
            send(peer, WireCommand.write, bytes, stamp: lastStamp, isDurable: isDurable)
        case 7: send(peer, WireCommand.writeZeroes, bytes, isDurable: isDurable)
        case 8: send(peer, WireCommand.trim, bytes, isDurable: isDurable)
        default: send(peer, WireCommand.flush, 0..<0)
        }
    }

    func send(
        _ peer: Peer, _ command: UInt16, _ bytes: Range<UInt64>, stamp: Stamp = 0,
        isDurable: Bool = false
    ) {
        peer.lastCookie += 1
        var request = PeerRequest(
            command: command, bytes: bytes, stamp: stamp, isDurable: isDurable)
        if command == WireCommand.flush { request.answeredBefore = peer.disk.answered }
        peer.requests[peer.lastCookie] = request
        guard let mode = peer.transmission?.agreement.mode else { return }
        let flags = isDurable ? WireFlag.fua : 0
        let wire: WireRequest
        if command == WireCommand.write {
            let count = Int((bytes.upperBound - bytes.lowerBound) / 512)
            wire = .write(
                Sectors.bytes(of: [Stamp](repeating: stamp, count: count)), at: bytes.lowerBound,
                flags: flags, cookie: peer.lastCookie, mode: mode)
        } else {
            wire = WireRequest(
                command, flags: flags, cookie: peer.lastCookie, offset: bytes.lowerBound,
                length: bytes.upperBound - bytes.lowerBound)
        }
        note("peer \(peer.socket.handle.number): command \(command) \(bytes) stamp \(stamp)")
        peer.unsent += peer.transmission?.send(wire) ?? []
    }

    /// Something that is no request.
    private func rave(_ peer: Peer) {
        peer.hasRaved = true
        peer.unsent += (0..<1 + draw.below(60)).map { _ in UInt8(draw.below(256)) }
    }

    // MARK: Replies

    private func take(_ reply: WireReply, _ peer: Peer) {
        guard let request = peer.requests.removeValue(forKey: reply.cookie) else { return }
        note("peer \(peer.socket.handle.number): reply to \(request.command), \(reply.error)")
        guard reply.error == 0 else { return takeError(reply, request, peer) }
        let disk = peer.disk
        switch request.command {
        case WireCommand.write:
            for (index, version) in disk.written[request.stamp] ?? [] {
                disk.answered[index] = max(disk.answered[index], version)
                if request.isDurable {
                    disk.source.floors[index] = max(disk.source.floors[index], version)
                }
            }
        case WireCommand.flush:
            for (index, version) in request.answeredBefore.enumerated() {
                disk.source.floors[index] = max(disk.source.floors[index], version)
            }
        case WireCommand.read: check(reply.data, request.bytes, peer)
        case WireCommand.blockStatus: check(reply.extents, request.bytes, peer)
        default: break
        }
    }

    private func takeError(_ reply: WireReply, _ request: PeerRequest, _ peer: Peer) {
        if peer.disk.hasFailed {
            peer.disk.answered = peer.disk.source.kept(peer.disk.answered)
            return
        }
        if let part = peer.part {
            let isExcused =
                part.export.brokenReason != nil || peer.job?.isEnding == true
                || peer.job?.hasFailed == true || part.scratch.hasLost
            if !isExcused {
                fail("P5: a whole job's read fails with \(reply.error): \(reply.text)")
            }
            return
        }
        if !peer.hasRaved {
            fail("P2: command \(request.command) fails with \(reply.error): \(reply.text)")
        }
    }

    private func check(_ data: [UInt8], _ bytes: Range<UInt64>, _ peer: Peer) {
        let stamps = Sectors.stamps(data)
        let indices = peer.disk.source.shape.indices(bytes)
        guard let part = peer.part else {
            if !peer.disk.hasFailed, stamps.contains(.garbage) {
                fail("P5: a guest reads half of a write")
            }
            return
        }
        guard !peer.disk.hasFailed || peer.disk.source.lostCount == 0 else { return }
        let expected = Array(part.instant[indices])
        guard stamps != expected else { return }
        let place = zip(stamps, expected).enumerated().first { $0.element.0 != $0.element.1 }
        fail(
            "P1: job \(peer.job?.number ?? 0): sector \(indices.lowerBound + (place?.offset ?? 0)) is"
                + " read as \(place?.element.0 ?? 0), the instant has \(place?.element.1 ?? 0)")
    }

    /// What is called a hole reads as zeros.
    private func check(
        _ extents: [UInt32: [WireExtent]], _ bytes: Range<UInt64>, _ peer: Peer
    ) {
        guard let part = peer.part else { return }
        for (_, list) in extents {
            var position = bytes.lowerBound
            for extent in list {
                let end = min(position + extent.length, peer.disk.source.shape.sizeBytes)
                if extent.flags & 2 != 0, position < end {
                    let indices = peer.disk.source.shape.indices(position..<end)
                    if part.instant[indices].contains(where: { $0 != 0 }) {
                        fail("P1: a hole of job \(peer.job?.number ?? 0) holds data")
                    }
                }
                position = end
            }
        }
    }
}
