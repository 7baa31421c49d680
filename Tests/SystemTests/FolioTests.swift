import Foundation
import SystemLayer
import Testing
import UnitSupport

@Suite("Splitting folios of the page cache")
struct FolioTests {
    private static let bytes = 8 << 20

    @Test("P1: no byte changes, and what was in memory stays there")
    func split() throws {
        let directory = try TemporaryDirectory()
        let content = (0..<Self.bytes).map { UInt8(truncatingIfNeeded: $0 / 4096 &* 7 &+ $0) }
        let path = try directory.file("disk", content)
        let file = try FileCalls.open(path, [.write])
        for isDirty in [true, false] {
            if !isDirty { try FileCalls.sync(file.raw) }
            for position in stride(from: 0, to: UInt64(Self.bytes), by: 512 << 10) {
                #expect(FileCalls.splitFolio(file.raw, at: position + 5000))
            }
            #expect(FileCalls.isResident(file.raw, position: 0, count: Self.bytes))
            #expect(try Data(contentsOf: URL(fileURLWithPath: path)).elementsEqual(content))
        }
    }

    @Test("what is not in memory, or behind the end, is left alone")
    func absent() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.file("disk", [])
        let file = try FileCalls.open(path, [.write])
        try FileCalls.setSize(file.raw, bytes: 1 << 20)
        #expect(FileCalls.splitFolio(file.raw, at: 4096))
        #expect(FileCalls.isAbsent(file.raw, 0..<(1 << 20)))
        #expect(FileCalls.splitFolio(file.raw, at: 1 << 61))
    }

    @Test("files of the kernel's own have no folios to split")
    func impossible() throws {
        let file = try FileCalls.open("/proc/self/status", [])
        #expect(!FileCalls.paysForLargeFolios(file.raw, type: .regular))
    }
}
