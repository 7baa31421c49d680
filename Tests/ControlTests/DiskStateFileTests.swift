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
            checkpoints: ["c1", "c2"].map { name in
                CheckpointMetadata(
                    name: name, creationTime: 5,
                    disks: [CheckpointMetadata.Disk(target: "vda", bitmap: name)])
            })
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
        var changes: [DiskState] = Array(repeating: state, count: 26)
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
        changes[11].checkpoints.removeLast()
        changes[12].checkpoints[1].disks = []
        changes[13].checkpoints[1].disks[0].bitmap = nil
        changes[14].disks[0].layers[1].checkpoint = "c1"
        changes[15].disks[0].layers[1].checkpoint = nil
        changes[16].disks[0].generation = 1 << 32
        changes[17].id = state.id.uppercased()
        changes[18].id = " " + state.id
        changes[19].checkpoints[0].creationTime = CheckpointMetadata.creationTimeMax + 1
        changes[20].checkpoints[0].description = String(repeating: "x", count: 3 << 20)
        changes[21].checkpoints[0].domainXML = String(repeating: "x", count: 3 << 20)
        changes[22].checkpoints[0].disks[0].target = "../vda"
        changes[23].checkpoints[0].disks.append(state.checkpoints[0].disks[0])
        changes[24].checkpoints[0].parent = "../c0"
        changes[25].disks[0].layers = (0...CheckpointTree.countMax).map {
            DiskState.Layer(checkpoint: "c\($0)", bytes: 0)
        }
        for (index, changed) in changes.enumerated() {
            let bytes = try forged(changed, layers)
            #expect(throws: DiskStateFile.Damage.self, "\(index)") {
                try DiskStateFile.decode(bytes)
            }
            // Nor does a server write it; it does not write lengths of its own accord.
            guard index != 9, index != 10 else { continue }
            #expect(throws: DiskStateFile.Damage.self, "\(index)") {
                try DiskStateFile.encode(changed, layers)
            }
        }
        #expect(throws: Never.self) { try DiskStateFile.decode(try forged(state, layers)) }
    }

    @Test("P6: descriptions that no file has room for are neither written nor read")
    func tooLong() throws {
        let layers = self.state().1
        var state = self.state().0
        state.domain = String(repeating: "x", count: DiskStateFile.headBytesMax)
        #expect(throws: DiskStateFile.Damage.self) { try DiskStateFile.encode(state, layers) }
        let bytes = try forged(state, layers)
        #expect(throws: DiskStateFile.Damage.self) { try DiskStateFile.decode(bytes) }
    }

    /// A file whose checksum is right, whatever it says.
    private func forged(_ state: DiskState, _ layers: [[UInt8]]) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.dateEncodingStrategy = .millisecondsSince1970
        let head = Array(try encoder.encode(state))
        let body = head + layers.joined()
        var sum: UInt32 = 0xFFFF_FFFF
        for byte in body {
            sum ^= UInt32(byte)
            for _ in 0..<8 { sum = (sum >> 1) ^ (sum & 1 == 1 ? 0xEDB8_8320 : 0) }
        }
        let text = String(~sum, radix: 16)
        return Array("nbdpull-disk-state 1 \(text) \(head.count) \(body.count)\n".utf8) + body
    }
}
