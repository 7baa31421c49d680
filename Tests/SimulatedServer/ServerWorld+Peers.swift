import NBDProtocol
import PointInTime
import ServerInterface
import Simulation
import SystemLayer
import WireClient

/// Peers: they join, speak, and leave.
extension ServerWorld {
    func join(_ disk: ServedDisk, _ part: JobPart?, _ job: ServedJob?) {
        let listener = job.map(\.listener) ?? liveListener
        guard let listener, peers.count < swarm.peerLimit else { return }
        let socket = SimulatedSocket(Int32(sockets.count))
        sockets.append(socket)
        let manner = draw.chance(70) ? Peer.Manner.brisk : Peer.Manner.allCases[draw.below(4)]
        let mode = WireMode.allCases[draw.below(3)]
        let peer = Peer(socket, disk, part, job, manner, mode)
        peers.append(peer)
        backlog[listener.handle.number, default: []].append(socket.handle)
        note("\(manner) \(peer.name) of disk \(disk.number), \(mode)")
    }

    /// Some of what the peer has to say goes out.
    func talk(_ peer: Peer) {
        guard !peer.unsent.isEmpty, !peer.socket.isAtEnd else { return }
        let room = SimulatedSocket.roomBytes - peer.socket.input.count
        var count = max(min(room, peer.unsent.count), 0)
        if peer.manner == .byteByByte, !isFinishing { count = min(count, 1 + draw.below(7)) }
        if draw.chance(20), count > 1 { count = 1 + draw.below(count) }
        peer.socket.input += peer.unsent.prefix(count)
        peer.unsent.removeFirst(count)
    }

    /// The peer takes what the server has sent.
    func listen(_ peer: Peer) {
        let socket = peer.socket
        if peer.manner == .deaf, peer.transmission != nil, !isFinishing { return }
        if socket.output.isEmpty {
            if socket.isEndedByServer { lose(peer) }
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
            while isGoing, let reply = try peer.transmission?.next() { take(reply, peer) }
        } catch {
            if !peer.hasRaved, !isRefusal(peer) { fail("the protocol is broken: \(error)") }
            leave(peer)
        }
    }

    /// An export that has gone is refused.
    private func isRefusal(_ peer: Peer) -> Bool {
        peer.transmission == nil && peer.job.map { !$0.isRunning } ?? false
    }

    private func negotiate(_ peer: Peer, _ bytes: [UInt8]) throws(WireViolation) {
        let answer = try peer.handshake.receive(bytes)
        peer.unsent += answer.send
        guard let agreement = answer.agreement else { return }
        peer.transmission = WireTransmission(agreement, received: peer.handshake.rest)
    }

    func leave(_ peer: Peer) {
        note("\(peer.name) leaves")
        peer.socket.isClosedByPeer = true
        peers.removeAll { $0 === peer }
    }

    /// The server has hung up.
    private func lose(_ peer: Peer) {
        note("\(peer.name) is hung up on")
        let isExcused =
            peer.hasRaved || peer.manner != .brisk || isFinishing || peer.transmission == nil
            || peer.disk.hasFailed || peer.job.map { !$0.isRunning || $0.isBroken } ?? false
            || peer.part?.hasFailed == true || peer.part?.scratch.hasLost == true
        // A client that is seldom looked after stalls.
        if !isExcused, peer.isGuest { fail("P2: \(peer.name) is hung up on") }
        peers.removeAll { $0 === peer }
    }

    // MARK: Requests

    func ask(_ peer: Peer) {
        guard peer.transmission != nil, peer.requests.count < swarm.depth,
            peer.unsent.count < 1 << 19, !peer.socket.isAtEnd
        else { return }
        if peer.manner == .hostile, draw.chance(30) { return misbehave(peer) }
        let bytes = range(upTo: peer.transmission?.agreement.sizeBytes ?? 0)
        if peer.isGuest, !draw.chance(25) { return change(peer, bytes) }
        if peer.job?.mayRelease == true, draw.chance(5) { return release(peer, bytes) }
        if draw.chance(15), peer.transmission?.agreement.mode != .simple {
            return send(peer, WireCommand.blockStatus, bytes)
        }
        send(peer, WireCommand.read, bytes)
    }

    /// Sectors of a disk that has so many bytes, as its client was told.
    func range(upTo size: UInt64) -> Range<UInt64> {
        let sectors = Int(size / 512)
        let first = draw.below(sectors)
        let count = 1 + draw.below([20, 60, 200][draw.below(3)])
        return UInt64(first) * 512..<UInt64(min(first + count, sectors)) * 512
    }

    private func change(_ peer: Peer, _ bytes: Range<UInt64>) {
        let isDurable = draw.chance(15)
        switch draw.below(10) {
        case 0...6:
            lastStamp += 1
            peer.disk.asked[lastStamp] = peer.disk.source.shape.indices(bytes)
            send(peer, WireCommand.write, bytes, stamp: lastStamp, isDurable: isDurable)
        case 7: send(peer, WireCommand.writeZeroes, bytes, isDurable: isDurable)
        case 8: send(peer, WireCommand.trim, bytes, isDurable: isDurable)
        default: send(peer, WireCommand.flush, 0..<0)
        }
    }

    /// A client lets go of whole clusters.
    private func release(_ peer: Peer, _ bytes: Range<UInt64>) {
        let indices = peer.disk.source.shape.indices(bytes)
        peer.part?.released.formUnion(indices)
        send(peer, WireCommand.trim, bytes)
    }

    func send(
        _ peer: Peer, _ command: UInt16, _ bytes: Range<UInt64>, stamp: Stamp = 0,
        isDurable: Bool = false, isAbsurd: Bool = false
    ) {
        guard let mode = peer.transmission?.agreement.mode else { return }
        peer.lastCookie += 1
        var request = PeerRequest(
            command: command, bytes: bytes, stamp: stamp, isDurable: isDurable, isAbsurd: isAbsurd)
        if !isAbsurd { remember(&request, peer.disk) }
        peer.requests[peer.lastCookie] = request
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
        note("\(peer.name) asks \(command) \(bytes) stamp \(stamp)\(isDurable ? " FUA" : "")")
        peer.unsent += peer.transmission?.send(wire) ?? []
    }

    func remember(_ request: inout PeerRequest, _ disk: ServedDisk) {
        request.logStart = disk.log.count
        if request.command == WireCommand.flush { request.answeredBefore = disk.answered }
        guard !request.bytes.isEmpty else { return }
        let indices = disk.source.shape.indices(request.bytes)
        request.before = Array(disk.source.sectors[indices])
        request.versionsBefore = Array(disk.source.versions[indices])
    }

    // MARK: Hostile peers

    private func misbehave(_ peer: Peer) {
        // Larger than a disk ever becomes.
        let size = UInt64(DiskShape.hotClusters) << ClusterGeometry.shift
        switch draw.below(4) {
        case 0:
            // No request at all: nothing can follow.
            peer.hasRaved = true
            peer.unsent += (0..<1 + draw.below(60)).map { _ in UInt8(draw.below(256)) }
        case 1: send(peer, WireCommand.read, size - 512..<size + 4096, isAbsurd: true)
        case 2:
            lastStamp += 1
            send(peer, WireCommand.write, size - 512..<size + 512, stamp: lastStamp, isAbsurd: true)
        default:
            if peer.isGuest {
                send(peer, WireCommand.trim, size..<size + 65536, isAbsurd: true)
            } else {
                lastStamp += 1
                send(peer, WireCommand.write, 0..<512, stamp: lastStamp, isAbsurd: true)
            }
        }
    }
}
