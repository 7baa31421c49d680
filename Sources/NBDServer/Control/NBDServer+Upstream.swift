import Disk
import NBDProtocol
import ServerInterface
import Synchronization
import SystemLayer
import Upstream

/// Disks whose bytes are reached by NBD.
extension NBDServer {
    /// On a thread that may wait: connects to an upstream and looks at what it offers.
    ///
    /// The place is taken before a program is started: nobody gets it as scratch while that program
    /// comes up.
    func openUpstream(
        _ configuration: DiskConfiguration, home: Int
    ) -> Result<RawSource, ServerFault> {
        let path = configuration.path
        var address: UpstreamAddress?
        if configuration.image == nil {
            do throws(UpstreamAddressFault) {
                address = try UpstreamAddress(uri: path)
            } catch {
                return .failure(.sourceUnusable(path: path, detail: error.detail))
            }
        }
        let registry = shared.upstreams
        let number: Int32
        switch registry.reserve(
            place: address?.placeText ?? path, images: configuration.image?.allPlaces ?? [],
            name: configuration.exportName, for: configuration.readOnly ? .reading : .writing)
        {
        case .success(let free): number = free
        case .failure(let taken): return .failure(Self.fault(path, takenBy: taken.by))
        }
        let opened = openReserved(number, configuration, address, home: home)
        if case .failure = opened { registry.remove(number) }
        return opened
    }

    private func openReserved(
        _ number: Int32, _ configuration: DiskConfiguration, _ address: UpstreamAddress?, home: Int
    ) -> Result<RawSource, ServerFault> {
        if let address { return connectDisk(number, configuration, address, nil, home: home) }
        guard let image = configuration.image else {
            return .failure(
                .sourceUnusable(path: configuration.path, detail: "it has no address"))
        }
        let adapter: any Adapter
        switch startAdapter(image, configuration) {
        case .success(let started): adapter = started
        case .failure(let fault): return .failure(fault)
        }
        let opened = connectDisk(number, configuration, adapter.address, adapter, home: home)
        if case .failure = opened { adapter.stop() }
        return opened
    }

    private func startAdapter(
        _ image: ImageConfiguration, _ configuration: DiskConfiguration
    ) -> Result<any Adapter, ServerFault> {
        let registry = shared.upstreams
        let name = state.withLock { state in
            state.disks.values.first { live in
                guard live.source.path == configuration.path else { return false }
                guard let upstream = live.source.remote as? UpstreamSource else { return true }
                return !registry.isElsewhere(upstream.number, image.allPlaces)
            }?.description.name
        }
        if let name, !configuration.readOnly {
            return .failure(.sourceServed(path: configuration.path, export: name))
        }
        guard let adapters = shared.configuration.adapters else {
            return .failure(
                .sourceUnusable(
                    path: configuration.path, detail: "images of its kind are not opened here"))
        }
        do throws(AdapterFault) {
            return .success(
                try adapters.start(
                    image, for: configuration,
                    milliseconds: shared.configuration.storageMilliseconds))
        } catch {
            return .failure(.sourceUnusable(path: configuration.path, detail: error.detail))
        }
    }

    private func connectDisk(
        _ number: Int32, _ configuration: DiskConfiguration, _ address: UpstreamAddress,
        _ adapter: (any Adapter)?, home: Int
    ) -> Result<RawSource, ServerFault> {
        let path = configuration.path
        let registry = shared.upstreams
        let mailbox = shared.mailboxes[home]
        do throws(UpstreamFault) {
            let upstream = try UpstreamSource(
                number: number, address, readOnly: configuration.readOnly,
                UpstreamTerms(
                    patienceMilliseconds: UInt64(
                        configuration.upstreamPatienceSeconds
                            ?? shared.configuration.upstreamPatienceSeconds) * 1_000,
                    attemptMilliseconds: UInt64(shared.configuration.storageMilliseconds),
                    descriptorsEnd: shared.spareDescriptorsEnd),
                adapter: adapter, name: adapter == nil ? nil : path,
                post: { mailbox.post(.upstream($0)) },
                onClose: { registry.letGo(number) }, onEnd: { registry.remove(number) })
            if let other = registry.note(number, found: upstream.place) {
                return .failure(Self.fault(path, takenBy: other))
            }
            registry.add(upstream, home: home)
            let source = upstream.rawSource()
            refuseJobs(on: source, servedAs: configuration.exportName)
            return .success(source)
        } catch {
            return .failure(.sourceUnusable(path: path, detail: error.detail))
        }
    }

    private static func fault(
        _ path: String, takenBy other: UpstreamRegistry.Entry
    ) -> ServerFault {
        if case .scratch(let job) = other.use {
            return .sourceLocked(path: path, detail: "it is scratch of backup job \(job)")
        }
        return .sourceServed(path: path, export: other.name)
    }
}
