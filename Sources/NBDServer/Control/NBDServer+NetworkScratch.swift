import Disk
import NBDProtocol
import PointInTime
import ScratchFiles
import ServerInterface
import Synchronization
import SystemLayer
import Upstream

/// Scratch that is an export of another NBD server, or an image that an adapter has open.
///
/// It is the job's alone, and goes with the job's process: nothing in NBD says whether what is found
/// there later is what was written.
extension NBDServer {
    /// What the making of scratch has to know of its disk; not the disk itself, which a call that
    /// hangs would keep open.
    struct ScratchPlace: Sendable {
        let homeRing: Int
        let geometry: ClusterGeometry

        init(_ live: LiveExport) {
            homeRing = live.homeRing
            geometry = ClusterGeometry(sizeBytes: live.source.sizeBytes)
        }
    }

    /// Why such scratch cannot be had.
    private struct NetworkScratchFault: Error {
        let detail: String
        /// Whoever has it may be about to let it go.
        var isInUse = false
    }

    /// On a thread that may wait: connects, and looks whether the job can have it.
    func openNetworkScratch(
        _ disk: JobDiskConfiguration, of job: JobConfiguration, _ place: ScratchPlace
    ) -> Result<OpenedScratch, ServerFault> {
        do throws(NetworkScratchFault) {
            // That of a job that ended a moment ago may still be held by who read it last.
            let storage = try InUse.outwait(
                nanoseconds: Limits.closedSourceNanoseconds, while: \.isInUse
            ) { () throws(NetworkScratchFault) in try connectScratch(disk, of: job, place) }
            return .success(OpenedScratch(storage: storage, reservedBytes: 0))
        } catch {
            return .failure(.scratchUnusable(path: disk.scratch.path, detail: error.detail))
        }
    }

    private func connectScratch(
        _ disk: JobDiskConfiguration, of job: JobConfiguration, _ place: ScratchPlace
    ) throws(NetworkScratchFault) -> ScratchStorage {
        let path = disk.scratch.path
        if let waiting = waitingJob(withSourceAt: path) {
            throw NetworkScratchFault(
                detail: "it is a disk of backup job \(waiting), which waits for its disks",
                isInUse: true)
        }
        let address = disk.scratch.image == nil ? try Self.address(path) : nil
        let registry = shared.upstreams
        let number: Int32
        switch registry.reserve(
            place: address?.placeText ?? path, images: disk.scratch.image?.allPlaces ?? [],
            name: "scratch of job '\(job.id)'", for: .scratch(job: job.id))
        {
        case .success(let free): number = free
        case .failure(let taken): throw Self.fault(takenBy: taken.by)
        }
        do throws(NetworkScratchFault) {
            let upstream = try connect(number, disk, of: job, place, address)
            registry.add(upstream, home: place.homeRing)
            return Self.storage(upstream, path, place.geometry)
        } catch {
            registry.remove(number)
            throw error
        }
    }

    private func connect(
        _ number: Int32, _ disk: JobDiskConfiguration, of job: JobConfiguration,
        _ place: ScratchPlace, _ address: UpstreamAddress?
    ) throws(NetworkScratchFault) -> UpstreamSource {
        let path = disk.scratch.path
        let adapter = try disk.scratch.image.map { image throws(NetworkScratchFault) in
            try startAdapter(image, for: path)
        }
        do throws(NetworkScratchFault) {
            // A disk is served all the same; scratch can be another one.
            if let problem = adapter?.takeProblem() {
                throw NetworkScratchFault(
                    detail: "\(problem). What somebody else may have open is no scratch")
            }
            guard let address = address ?? adapter?.address else {
                throw NetworkScratchFault(detail: "it has no address")
            }
            let upstream = try Self.upstream(
                number, address, adapter, path, job, shared, home: place.homeRing)
            try check(upstream, disk, place.geometry)
            return upstream
        } catch {
            adapter?.stop()
            throw error
        }
    }

    private static func upstream(
        _ number: Int32, _ address: UpstreamAddress, _ adapter: (any Adapter)?, _ path: String,
        _ job: JobConfiguration, _ shared: ServerShared, home: Int
    ) throws(NetworkScratchFault) -> UpstreamSource {
        let registry = shared.upstreams
        let mailbox = shared.mailboxes[home]
        do throws(UpstreamFault) {
            return try UpstreamSource(
                number: number, address, readOnly: false,
                // A peer that is gone without a word is noticed when a guest's write has waited.
                UpstreamTerms(
                    patienceMilliseconds: job.copyTimeoutMilliseconds,
                    attemptMilliseconds: UInt64(shared.configuration.storageMilliseconds),
                    purpose: .scratch, slotBytes: ClusterGeometry.clusterBytes,
                    descriptorsEnd: shared.spareDescriptorsEnd),
                adapter: adapter, name: path,
                post: { mailbox.post(.upstream($0)) },
                onClose: { registry.letGo(number) }, onEnd: { registry.remove(number) })
        } catch {
            throw NetworkScratchFault(detail: error.detail)
        }
    }

    private func startAdapter(
        _ image: ImageConfiguration, for path: String
    ) throws(NetworkScratchFault) -> any Adapter {
        guard let adapters = shared.configuration.adapters else {
            throw NetworkScratchFault(detail: "images of its kind are not opened here")
        }
        var configuration = DiskConfiguration(
            exportName: path, path: path, kind: .network, readOnly: false, cacheMode: .buffered,
            discardMode: .ignore)
        configuration.image = image
        do throws(AdapterFault) {
            return try adapters.start(
                image, for: configuration,
                milliseconds: shared.configuration.storageMilliseconds)
        } catch {
            throw NetworkScratchFault(detail: error.detail)
        }
    }

    private static func address(_ uri: String) throws(NetworkScratchFault) -> UpstreamAddress {
        do throws(UpstreamAddressFault) {
            return try UpstreamAddress(uri: uri)
        } catch {
            throw NetworkScratchFault(detail: error.detail)
        }
    }

    // MARK: Looking at it

    private func check(
        _ upstream: UpstreamSource, _ disk: JobDiskConfiguration, _ geometry: ClusterGeometry
    ) throws(NetworkScratchFault) {
        if isServedHere(upstream) {
            throw NetworkScratchFault(
                detail: "this very server listens there: what it writes would come back to it")
        }
        if let other = shared.upstreams.note(upstream.number, found: upstream.place) {
            throw Self.fault(takenBy: other)
        }
        let needed = UInt64(geometry.clusterCount) << ClusterGeometry.shift
        guard upstream.facts.sizeBytes >= needed else {
            throw NetworkScratchFault(
                detail: "it has \(upstream.facts.sizeBytes) bytes, and disk '\(disk.target)' needs"
                    + " \(needed): its size in whole clusters of \(ClusterGeometry.clusterBytes)")
        }
    }

    /// Whether one of this server's own sockets is at the other end.
    private func isServedHere(_ upstream: UpstreamSource) -> Bool {
        shared.configuration.sockets.inUse.contains { socket in
            if let path = socket.place.path {
                if case .unix = upstream.address.place {
                    return FileCalls.node(path: path).map { "socket " + $0.text } == upstream.server
                }
                return false
            }
            // At which of this machine's addresses it listens is not looked at.
            guard let port = upstream.localPort else { return false }
            return SocketCalls.port(of: socket.descriptor) == port
        }
    }

    private static func fault(takenBy other: UpstreamRegistry.Entry) -> NetworkScratchFault {
        let detail =
            switch other.use {
            case .scratch(let job): "it is scratch of backup job \(job)"
            case .reading, .writing: "it is the source of disk '\(other.name)'"
            }
        return NetworkScratchFault(detail: detail, isInUse: true)
    }

    private static func storage(
        _ upstream: UpstreamSource, _ path: String, _ geometry: ClusterGeometry
    ) -> ScratchStorage {
        let bytes = UInt64(geometry.clusterCount) << ClusterGeometry.shift
        var facts = ScratchFacts(
            path: path, raw: upstream.number,
            slotLimit: min(UInt32(clamping: geometry.clusterCount), LedgerView.slotsMax),
            readers: [],
            witness: WriteErrorWitness(
                raw: -1,
                asking: { [weak upstream] in upstream?.scratchEnd == nil ? nil : Errno.io }))
        facts.isOurs = false
        facts.freeBytes = bytes
        facts.deviceBytes = bytes
        facts.remote = upstream
        return ScratchStorage(facts)
    }
}

extension BackupExport {
    /// What has happened to scratch that is no file of this host; nil while it is there.
    ///
    /// `errno`: with what something there failed.
    func goneText(_ errno: Int32) -> String? {
        guard let upstream = scratch.remote as? UpstreamSource else { return nil }
        if errno == Errno.badMessage {
            return "scratch of disk '\(target)' does not hold what was written to it: its server"
                + " has lost it, or something else has written there"
        }
        // What it has answered itself says more than that it went afterwards.
        guard errno == Errno.io || errno == Errno.canceled else { return nil }
        switch upstream.scratchEnd {
        case nil: return nil
        case .connectionBroke:
            return "scratch of disk '\(target)' is gone: the connection to its NBD server broke"
        case .isSilent(let milliseconds):
            return "scratch of disk '\(target)' is gone: its NBD server has not answered for"
                + " \(milliseconds) ms"
        }
    }

    /// Why the next process cannot go on with it although everything is kept; nil where it can.
    var boundToProcess: String? {
        guard scratch.remote != nil else { return nil }
        return "scratch of disk '\(target)' is on an NBD server, and nobody could tell whether what"
            + " another process finds there is what this one has written"
    }
}
