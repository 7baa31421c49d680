import Disk
import NBDProtocol
import ServerInterface
import Synchronization
import SystemLayer
import Upstream

/// Disks whose bytes are reached by NBD.
extension NBDServer {
    /// On a thread that may wait: connects to an upstream and looks at what it offers.
    func openUpstream(
        _ configuration: DiskConfiguration, home: Int
    ) -> Result<RawSource, ServerFault> {
        let address: UpstreamAddress
        do throws(UpstreamAddressFault) {
            address = try UpstreamAddress(uri: configuration.path)
        } catch {
            return .failure(.sourceUnusable(path: configuration.path, detail: error.detail))
        }
        let isWritten = !configuration.readOnly
        let registry = shared.upstreams
        guard let number = registry.reserve(address, forWriting: isWritten) else {
            let name = state.withLock { state in
                state.disks.values.first { $0.source.path == configuration.path }?.description.name
            }
            return .failure(.sourceServed(path: configuration.path, export: name ?? ""))
        }
        let mailbox = shared.mailboxes[home]
        do throws(UpstreamFault) {
            let upstream = try UpstreamSource(
                number: number, address, readOnly: configuration.readOnly,
                UpstreamTerms(
                    patienceMilliseconds: UInt64(
                        configuration.upstreamPatienceSeconds
                            ?? shared.configuration.upstreamPatienceSeconds) * 1_000,
                    attemptMilliseconds: UInt64(shared.configuration.storageMilliseconds)),
                post: { mailbox.post(.upstream($0)) },
                onClose: { registry.remove(number, address, wasForWriting: isWritten) })
            registry.add(upstream, home: home)
            let source = upstream.rawSource()
            refuseJobs(on: source, servedAs: configuration.exportName)
            return .success(source)
        } catch {
            registry.remove(number, address, wasForWriting: isWritten)
            return .failure(.sourceUnusable(path: configuration.path, detail: error.detail))
        }
    }
}
