import Foundation
import Testing
import UnitSupport

@testable import Tracking
@testable import TrackingFiles

/// A layer that records no more gives its memory and its file back.
@Suite("Recording layers come and go")
struct LayerLifetimeTests {
    @Test("a sealed layer is unmapped when nobody refers to it any more")
    func sealedLayersGo() throws {
        let folder = NSTemporaryDirectory() + "nbdpull-layers-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let source = SourceIdentity(
            path: "/disk", sizeBytes: 1 << 30, inode: 1, changedNanoseconds: 0)
        var store = try TrackingStore.open(
            TrackingPlaces(
                files: DiskDirectory(folder), memory: nil, isInMemory: false, mark: nil),
            source: source, granularityBytes: 65_536)
        for round in 0..<3 {
            weak let sealed = store.recording
            #expect(sealed != nil)
            try store.seal(checkpoint: "c\(round)", next: try store.prepareNext())
            store.compressSealed()
            #expect(sealed == nil, "round \(round)")
        }
    }
}
