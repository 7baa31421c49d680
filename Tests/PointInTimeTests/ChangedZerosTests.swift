import Foundation
import TestSupport
import Testing

extension PointInTimeSuite {
    /// What tools that look at allocation and changes together are told.
    @Suite struct ChangedZerosTests {
        private static let allocation = "base:allocation"
        private static let blockBytes = 4096

        /// A server whose disk `vda` has this content, with blocks of 4 KiB and a checkpoint.
        private func server(
            _ directory: TemporaryDirectory, bytes: Int, fill: (FileHandle) throws -> Void
        ) throws -> ServerUnderTest {
            let path = directory.file("vda")
            try Images.sparse(path, bytes: bytes)
            if let file = FileHandle(forWritingAtPath: path) {
                try fill(file)
                try file.close()
            }
            let server = try ServerUnderTest(
                [DomainDescription("vm1", [DiskDescription("vda", path)])],
                options: ["--granularity", "\(Self.blockBytes)"])
            try server.cli(["checkpoint-create-as", "vm1", "--name", "c1"]).output()
            return server
        }

        private func client(_ job: BegunJob) throws -> (NBDClient, bitmap: String) {
            let export = try job.export("vda")
            let bitmap = "qemu:dirty-bitmap:" + (export.bitmap ?? "")
            return (try NBDClient(export.uri, .contexts(Self.allocation, bitmap)), bitmap)
        }

        @Test("P3: zeros that are a change are no hole, zeros that are none stay one")
        func zeros() throws {
            let directory = try TemporaryDirectory()
            let mebibyte = 1 << 20
            let server = try server(directory, bytes: 8 * mebibyte) {
                try $0.write(contentsOf: [UInt8](repeating: 7, count: 4 * mebibyte))
            }
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            try guest.trim(mebibyte, mebibyte)
            try guest.zero(2 * mebibyte, 8192)
            let job = try server.begin("vm1", disks: ["vda"], tag: "inc", incremental: "c1")
            // What is overwritten now lies in scratch, zeros included.
            try guest.write([1], at: mebibyte + 65536)
            let (client, bitmap) = try client(job)
            #expect(
                try client.map(bitmap).filter(\.isDirty).map { [$0.offset, $0.count] }
                    == [[mebibyte, mebibyte + 8192]])
            for extent in try client.map(Self.allocation) where extent.readsAsZero {
                let isChange = extent.offset < 4 * mebibyte
                #expect(extent.isHole == !isChange, "\(extent)")
                #expect(
                    try client.read(extent.offset, extent.count).allSatisfy { $0 == 0 })
            }
            let zeros = try client.map(Self.allocation).filter(\.readsAsZero)
            #expect(zeros.reduce(0) { $0 + $1.count } >= 5 * mebibyte)
            // A full backup of the same instant has holes where there are some.
            try server.end("vm1", job)
            let full = try server.begin("vm1", disks: ["vda"], tag: "full")
            let whole = try NBDClient(try full.uri("vda"), .contexts(Self.allocation))
            for extent in try whole.map(Self.allocation) {
                #expect(extent.isHole == extent.readsAsZero)
            }
            try server.end("vm1", full)
            try server.stop()
        }

        @Test(
            "P3: all contexts of a reply cover the same bytes, whichever of them is full first",
            arguments: [true, false])
        func coverage(allocationIsFull: Bool) throws {
            // In memory: a file of so many pieces takes minutes to delete where the kernel discards
            // each.
            let directory = try TemporaryDirectory(under: allocationIsFull ? "/dev/shm" : "/tmp")
            let bytes = 576 << 20
            let half = bytes / 2
            let block = [UInt8](repeating: 7, count: Self.blockBytes)
            let server = try server(directory, bytes: bytes) { file in
                // Data and holes in turn, or data only, which has no extents to speak of.
                guard allocationIsFull else {
                    let piece = [UInt8](repeating: 7, count: 16 << 20)
                    for _ in 0..<(bytes / piece.count) { try file.write(contentsOf: piece) }
                    return
                }
                for offset in stride(from: 0, to: bytes, by: 2 * Self.blockBytes) {
                    try file.seek(toOffset: UInt64(offset))
                    try file.write(contentsOf: block)
                }
            }
            let guest = try NBDClient(server.liveURI("vm1", "vda"))
            for offset in stride(
                from: allocationIsFull ? half : 0, to: bytes, by: 2 * Self.blockBytes)
            {
                try guest.write([8], at: offset)
            }
            let job = try server.begin("vm1", disks: ["vda"], tag: "inc", incremental: "c1")
            let (client, bitmap) = try client(job)
            var position = 0
            var replies = 0
            while position < bytes {
                let reply = try client.blockStatus(position, bytes - position)
                let ends = [Self.allocation, bitmap].map { reply[$0]?.last?.end }
                #expect(ends[0] == ends[1])
                position = try #require(ends[0])
                replies += 1
            }
            #expect(replies > 1)
            // One alone goes as far as it can.
            let alone = try NBDClient(
                try job.uri("vda"), .contexts(allocationIsFull ? bitmap : Self.allocation))
            let whole = try alone.blockStatus(0, bytes)
            #expect(whole.values.first?.last?.end == bytes)
            try server.end("vm1", job)
            try server.stop()
        }
    }
}
