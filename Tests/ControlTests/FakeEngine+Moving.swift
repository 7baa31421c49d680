import Control
import ServerInterface

/// Disks that go to another server or come from one.
extension FakeEngine {
    private func moved(_ configuration: DiskConfiguration) -> MovedTracking {
        let directory = configuration.tracking?.directory ?? ""
        let chain = look { $0.chains[directory] ?? [] }
        return MovedTracking(
            source: MovedSource(
                path: configuration.path, sizeBytes: 1 << 20, inode: 0, changedNanoseconds: 0,
                mark: ""),
            granularityBytes: 65_536,
            layers: chain.isEmpty
                ? [MovedTracking.Layer(checkpoint: nil, bytes: [0])]
                : chain.map { MovedTracking.Layer(checkpoint: $0, bytes: [1]) })
    }

    func packTracking(
        _ configuration: DiskConfiguration, move: String
    ) async throws(ServerFault) -> MovedTracking {
        look { $0.onMove }?("pack")
        return moved(configuration)
    }

    func giveUpTracking(
        _ configuration: DiskConfiguration, move: String
    ) async throws(ServerFault) -> MovedTracking {
        look { $0.onMove }?("give up")
        return moved(configuration)
    }

    func movingStatus(
        _ disk: DiskID, move: String, nonce: String
    ) async throws(ServerFault) -> MovingStatus {
        guard let configuration = look({ $0.attached[disk] }) else { throw .unknownDisk }
        let directory = configuration.tracking?.directory ?? ""
        return MovingStatus(
            source: moved(configuration).source, note: .none, isFromTheBeginning: true,
            checkpoints: look { $0.chains[directory] ?? [] })
    }

    func adoptTracking(
        _ moved: MovedTracking, _ configuration: DiskConfiguration, _ terms: MoveTerms
    ) async throws(ServerFault) {
        look { $0.onMove }?("adopt")
        let directory = configuration.tracking?.directory ?? ""
        let chain = moved.layers.compactMap(\.checkpoint)
        change { $0.chains[directory] = chain }
    }
}
