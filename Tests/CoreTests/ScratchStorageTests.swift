import Disk
import Foundation
import PointInTime
import ScratchFiles
import SystemLayer
import Testing
import UnitSupport

@Suite("Scratch storage")
struct ScratchStorageTests {
    private let geometry = ClusterGeometry(sizeBytes: 10 << ClusterGeometry.shift)

    private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test("a new file has mode 0600 and is deleted by remove, once")
    func create() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("scratch")
        let storage = try ScratchStorage.create(path: path, geometry: geometry)
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions]
        #expect(mode as? Int == 0o600)
        #expect(storage.slotLimit == 10)
        #expect(storage.roomBytes(leaving: 0) <= 10 << ClusterGeometry.shift)
        storage.remove()
        #expect(!exists(path))
        storage.remove()
    }

    @Test("a file that exists is not taken for a new one, and stays as it is")
    func createExisting() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("scratch", bytes: 123)
        #expect(throws: ScratchFault.exists) {
            try ScratchStorage.create(path: path, geometry: geometry)
        }
        #expect(exists(path))
    }

    @Test("a directory that does not exist is named by its errno")
    func createNowhere() throws {
        let directory = try TemporaryDirectory()
        let fault = ScratchFault.cannotCreate(SystemFault(call: "open", errno: Errno.notFound))
        #expect(throws: fault) {
            try ScratchStorage.create(path: directory.path("no/where"), geometry: geometry)
        }
    }

    @Test("an existing file is reused and never deleted")
    func reuse() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("scratch", bytes: 5)
        let storage = try ScratchStorage.reuse(path: path, geometry: geometry)
        #expect(storage.slotLimit == 10)
        storage.remove()
        #expect(exists(path))
    }

    @Test("a missing file and a wrong type are refused")
    func reuseWrong() throws {
        let directory = try TemporaryDirectory()
        #expect(throws: ScratchFault.self) {
            try ScratchStorage.reuse(path: directory.path("none"), geometry: geometry)
        }
        let path = try directory.file("regular", bytes: 1 << 20)
        let wrong = SourceFault.wrongType(expected: .blockDevice, found: .regular)
        #expect(throws: ScratchFault.unusable(wrong)) {
            try ScratchStorage.device(path: path, geometry: geometry)
        }
    }

    @Test("a file that is somebody's source or scratch is refused until it is closed")
    func locked() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", bytes: 1 << 20)
        do {
            let source = try RawSource(
                path: path, expected: .regular, readOnly: false, direct: false)
            #expect(throws: ScratchFault.self) {
                try ScratchStorage.reuse(path: path, geometry: geometry)
            }
            #expect(source.sizeBytes == 1 << 20)
        }
        let first = try ScratchStorage.reuse(path: path, geometry: geometry)
        #expect(throws: ScratchFault.self) {
            try ScratchStorage.reuse(path: path, geometry: geometry)
        }
        #expect(first.path == path)
    }

    @Test("what is left to others is taken from the file system's room, not from the disk's size")
    func room() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("scratch")
        let storage = try ScratchStorage.create(path: path, geometry: geometry)
        defer { storage.remove() }
        let whole = UInt64(geometry.clusterCount) * UInt64(ClusterGeometry.clusterBytes)
        let free = try #require(FileCalls.space(storage.raw)).freeBytes
        try #require(free > 8 * whole)
        // A reserve that is larger than the disk leaves room for all of it.
        #expect(storage.roomBytes(leaving: 2 * whole) == whole)
        #expect(storage.roomBytes(leaving: .max) == 0)
    }

    @Test("a disk beyond 64 TiB has as many slots as a ledger can name")
    func hugeDisk() throws {
        let directory = try TemporaryDirectory()
        let huge = ClusterGeometry(sizeBytes: 1 << 60)
        let storage = try ScratchStorage.create(path: directory.path("s"), geometry: huge)
        #expect(storage.slotLimit == LedgerView.slotsMax)
        storage.remove()
    }

    @Test(
        "a device may be smaller than the disk, but holds one cluster at least",
        .enabled(if: hasLoop, "there are no loop devices"))
    func device() throws {
        let directory = try TemporaryDirectory()
        let cluster = UInt64(ClusterGeometry.clusterBytes)
        for (bytes, slots) in [
            (5 * cluster + 512, UInt32(5)), (cluster / 2, 0), (64 * cluster, 10),
        ] {
            let file = try directory.file("backing-\(bytes)", bytes: bytes)
            let made = try run("/usr/sbin/losetup", ["--find", "--show", file])
            try #require(made.code == 0, "\(made.output)")
            let device = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
            defer { _ = try? run("/usr/sbin/losetup", ["--detach", device]) }
            guard slots > 0 else {
                #expect(throws: ScratchFault.tooSmall(sizeBytes: bytes)) {
                    try ScratchStorage.device(path: device, geometry: geometry)
                }
                continue
            }
            let storage = try ScratchStorage.device(path: device, geometry: geometry)
            #expect(storage.slotLimit == slots)
            #expect(storage.roomBytes(leaving: 0) == UInt64(slots) * cluster)
            #expect(throws: ScratchFault.self) {
                try ScratchStorage.device(path: device, geometry: geometry)
            }
        }
    }

    /// Whether loop devices can be had here.
    private static let hasLoop = (try? run("/usr/sbin/losetup", ["--find"]).code) == 0
}
