import Disk
import Foundation
import SystemLayer
import Testing
import UnitSupport

@Suite("Byte range locks and the source's lock")
struct SourceLockTests {
    private func isInUse(_ body: () throws(SourceFault) -> Void) -> Bool {
        do throws(SourceFault) {
            try body()
            return false
        } catch {
            if case .inUse = error { return true }
            return false
        }
    }

    private func open(_ path: String, readOnly: Bool) throws(SourceFault) -> RawSource {
        try RawSource(path: path, expected: .regular, readOnly: readOnly, direct: false)
    }

    @Test("a lock is seen by another open file only, and goes with its own")
    func byteRange() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("file", [1])
        let second = try FileCalls.open(path, [.write])
        do {
            let first = try FileCalls.open(path, [.write])
            try ByteRangeLock.share(first.raw, byte: 200)
            let own = try ByteRangeLock.isHeldByOther(first.raw, byte: 200)
            let other = try ByteRangeLock.isHeldByOther(second.raw, byte: 200)
            let beside = try ByteRangeLock.isHeldByOther(second.raw, byte: 201)
            #expect(!own && other && !beside)
            try ByteRangeLock.share(second.raw, byte: 200)
            let mutual = try ByteRangeLock.isHeldByOther(first.raw, byte: 200)
            #expect(mutual)
        }
        let after = try ByteRangeLock.isHeldByOther(second.raw, byte: 200)
        #expect(!after)
    }

    @Test("one writer, or many readers")
    func twoOpens() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", [UInt8](repeating: 0, count: 4096))
        do {
            let writer = try open(path, readOnly: false)
            #expect(isInUse { () throws(SourceFault) in _ = try open(path, readOnly: false) })
            #expect(isInUse { () throws(SourceFault) in _ = try open(path, readOnly: true) })
            #expect(!writer.isReadOnly)
        }
        let reader = try open(path, readOnly: true)
        let another = try open(path, readOnly: true)
        #expect(isInUse { () throws(SourceFault) in _ = try open(path, readOnly: false) })
        #expect(reader.raw != another.raw)
    }

    @Test(
        "we hold the source: qemu cannot write it",
        .enabled(if: hasQEMU, "qemu-io is missing (qemu-utils)"))
    func qemuIsRefused() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", [UInt8](repeating: 0, count: 1 << 20))
        for readOnly in [false, true] {
            let source = try open(path, readOnly: readOnly)
            let result = try run(Self.qemuIO, ["-f", "raw", "-c", "write -P 7 0 512", path])
            #expect(result.code != 0)
            #expect(result.output.contains("lock"), "\(result.output)")
            #expect(source.isReadOnly == readOnly)
        }
        let content = try Data(contentsOf: URL(filePath: path))
        #expect(content.allSatisfy { $0 == 0 })
        let free = try run(Self.qemuIO, ["-f", "raw", "-c", "write -P 7 0 512", path])
        #expect(free.code == 0, "\(free.output)")
    }

    @Test(
        "we only read: qemu may read as well",
        .enabled(if: hasQEMU, "qemu-io is missing (qemu-utils)"))
    func qemuReads() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", [UInt8](repeating: 0, count: 1 << 20))
        let source = try open(path, readOnly: true)
        let result = try run(Self.qemuIO, ["-r", "-f", "raw", "-c", "read 0 512", path])
        #expect(result.code == 0, "\(result.output)")
        #expect(source.isReadOnly)
    }

    @Test(
        "qemu holds the source: we refuse it until qemu is gone",
        .enabled(if: hasQEMU, "qemu-io is missing (qemu-utils)"))
    func qemuHolds() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", [UInt8](repeating: 0, count: 1 << 20))
        let qemu = Process()
        qemu.executableURL = URL(filePath: Self.qemuIO)
        qemu.arguments = ["-f", "raw", "-c", "write -P 7 0 512", "-c", "sleep 60000", path]
        qemu.standardInput = FileHandle.nullDevice
        qemu.standardOutput = FileHandle.nullDevice
        try qemu.run()
        // Its write shows that the image is open and locked.
        while try Data(contentsOf: URL(filePath: path)).first != 7 {
            try #require(qemu.isRunning, "qemu-io ended early")
        }
        #expect(isInUse { () throws(SourceFault) in _ = try open(path, readOnly: false) })
        #expect(isInUse { () throws(SourceFault) in _ = try open(path, readOnly: true) })
        qemu.killAndWait()
        let source = try open(path, readOnly: false)
        #expect(source.sizeBytes == 1 << 20)
    }

    private static let qemuIO = "/usr/bin/qemu-io"
    private static let hasQEMU = FileManager.default.isExecutableFile(atPath: qemuIO)
}
