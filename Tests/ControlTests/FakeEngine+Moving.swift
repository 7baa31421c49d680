import Control
import ServerInterface

/// Disks that go to another server or come from one.
extension FakeEngine {
    private func moved(
        _ configuration: DiskConfiguration, _ keeping: Set<String>? = nil
    ) -> MovedTracking {
        let directory = configuration.tracking?.directory ?? ""
        let chain = look { $0.chains[directory] ?? [] }.filter { keeping?.contains($0) ?? true }
        return MovedTracking(
            source: MovedSource(
                path: configuration.path, sizeBytes: 1 << 20, inode: 0, changedNanoseconds: 0,
                mark: look { $0.sourceMark }),
            granularityBytes: 65_536,
            layers: chain.isEmpty
                ? [MovedTracking.Layer(checkpoint: nil, bytes: [0])]
                : chain.map { MovedTracking.Layer(checkpoint: $0, bytes: [1]) })
    }

    func packTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        look { $0.onMove }?("pack")
        return moved(configuration, keeping)
    }

    func giveUpTracking(
        _ configuration: DiskConfiguration, move: String, keeping: Set<String>
    ) async throws(ServerFault) -> MovedTracking {
        look { $0.onMove }?("give up")
        return moved(configuration, keeping)
    }

    func movingStatus(
        _ disk: DiskID, move: String, nonce: String
    ) async throws(ServerFault) -> MovingStatus {
        guard let configuration = look({ $0.attached[disk] }) else { throw .unknownDisk }
        let directory = configuration.tracking?.directory ?? ""
        return MovingStatus(
            source: moved(configuration).source, note: look { $0.sourceNote },
            isFromTheBeginning: true,
            checkpoints: look { $0.chains[directory] ?? [] })
    }

    func checkTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration
    ) async throws(ServerFault) {
        if let fault = look({ $0.checkFault }) { throw fault }
    }

    func adoptTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration, _ terms: MoveTerms
    ) async throws(ServerFault) {
        look { $0.onMove }?("adopt")
        if let fault = look({ $0.adoptFault }) { throw fault }
        let directory = configuration.tracking?.directory ?? ""
        let chain = moved.layers.compactMap(\.checkpoint)
        change {
            $0.chains[directory] = chain
            $0.terms = terms
        }
    }
}
