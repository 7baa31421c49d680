import Control
import Foundation
import ServerInterface
import Testing

/// The file by which disks go from one server to another.
@Suite struct DiskStateFileTests {
    private func state() -> (DiskState, [[UInt8]]) {
        let source = MovedSource(
            path: "/disk.img", sizeBytes: 1 << 20, inode: 7, changedNanoseconds: 9, mark: "")
        let disk = DiskState.Disk(
            disk: "vda", generation: 3, source: source, granularityBytes: 65_536,
            layers: [
                DiskState.Layer(checkpoint: "c1", bytes: 3),
                DiskState.Layer(checkpoint: "c2", bytes: 2),
            ])
        let state = DiskState(
            id: "0d8e5a52-0a3a-4e19-9d0f-2f6f6f6f0001",
            exported: Date(timeIntervalSince1970: 1000), domain: "vm1",
            uuid: "6f0e6ad7-9f5c-4fd0-8a53-27b4f4f4a001", disks: [disk],
            checkpoints: [CheckpointMetadata(name: "c1", creationTime: 5)])
        return (state, [[1, 2, 3], [4, 5]])
    }

    @Test("P3: what was written is read again")
    func whole() throws {
        let (state, layers) = state()
        let found = try DiskStateFile.decode(try DiskStateFile.encode(state, layers))
        #expect(found.state == state)
        #expect(found.tracking.count == 1)
        #expect(found.tracking[0].layers.map(\.bytes) == layers)
        #expect(found.tracking[0].layers.map(\.checkpoint) == ["c1", "c2"])
    }

    @Test("P3: a file that is cut off at any byte, or has any byte altered, is refused")
    func damaged() throws {
        let (state, layers) = state()
        let whole = try DiskStateFile.encode(state, layers)
        for length in 0..<whole.count {
            #expect(throws: DiskStateFile.Damage.self, "\(length) bytes") {
                try DiskStateFile.decode(Array(whole.prefix(length)))
            }
        }
        for index in whole.indices {
            var altered = whole
            altered[index] ^= 1
            #expect(throws: DiskStateFile.Damage.self, "byte \(index)") {
                try DiskStateFile.decode(altered)
            }
        }
        #expect(throws: DiskStateFile.Damage.self) { try DiskStateFile.decode(whole + [0]) }
        let newer = Array("nbdpull-disk-state 2 0 0 0\n".utf8)
        do {
            _ = try DiskStateFile.decode(newer)
        } catch {
            #expect(error.detail.contains("a newer version of nbdpull wrote it (format 2"))
        }
    }

    @Test("P6: what no server writes is refused, although its checksum is right")
    func implausible() throws {
        let (state, layers) = state()
        var changes: [DiskState] = Array(repeating: state, count: 11)
        changes[0].disks = []
        changes[1].disks.append(state.disks[0])
        changes[2].id = "../../etc"
        changes[3].disks[0].generation = 0
        changes[4].disks[0].generation = .max
        changes[5].disks[0].layers = []
        changes[6].checkpoints[0].name = "a b"
        changes[7].checkpoints.append(state.checkpoints[0])
        changes[8].disks[0].layers[0].checkpoint = "../c1"
        changes[9].disks[0].layers[0].bytes = -1
        changes[10].disks[0].layers[0].bytes = .max
        for (index, changed) in changes.enumerated() {
            let bytes = try DiskStateFile.encode(changed, layers)
            #expect(throws: DiskStateFile.Damage.self, "\(index)") {
                try DiskStateFile.decode(bytes)
            }
        }
    }
}
