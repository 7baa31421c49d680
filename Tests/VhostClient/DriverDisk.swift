/// A request of a driver: what stands in its header, and its data.
package struct DriverRequest: Sendable, Equatable {
    package var type: UInt32
    package var sector: UInt64
    /// What the device reads.
    package var output: [UInt8]
    /// How much it may write.
    package var inputBytes: Int

    package init(_ type: UInt32, sector: UInt64 = 0, output: [UInt8] = [], inputBytes: Int = 0) {
        self.type = type
        self.sector = sector
        self.output = output
        self.inputBytes = inputBytes
    }

    package static func read(_ sector: UInt64, sectors: Int) -> DriverRequest {
        DriverRequest(0, sector: sector, inputBytes: 512 * sectors)
    }
    package static func write(_ sector: UInt64, _ bytes: [UInt8]) -> DriverRequest {
        DriverRequest(1, sector: sector, output: bytes)
    }
    package static let flush = DriverRequest(4)
    package static let getID = DriverRequest(8, inputBytes: 20)
    package static func discard(
        _ sector: UInt64, sectors: UInt32, flags: UInt32 = 0
    ) -> DriverRequest {
        DriverRequest(11, output: little(sector) + little(sectors) + little(flags))
    }
    package static func writeZeroes(
        _ sector: UInt64, sectors: UInt32, flags: UInt32 = 0
    ) -> DriverRequest {
        DriverRequest(13, output: little(sector) + little(sectors) + little(flags))
    }

    /// What the device reads: header and data.
    package var readable: [UInt8] {
        little(type) + little(UInt32(0)) + little(sector) + output
    }
    /// How much the device may write: data and status.
    package var writableBytes: Int { inputBytes + 1 }

    /// Puts the request into memory at `address`, cut into buffers of these sizes, the last of
    /// which takes the rest, and says where its answer will be.
    package func place(
        _ memory: any DriverMemory, at address: UInt64, readableCuts: [Int] = [],
        writableCuts: [Int] = []
    ) -> DriverPlacement {
        memory.write(readable, address)
        let answer = address + UInt64(readable.count)
        // A status that no device writes.
        memory.write([UInt8](repeating: 0xee, count: writableBytes), answer)
        return DriverPlacement(
            buffers: Self.cut(address, readable.count, readableCuts, isWritable: false)
                + Self.cut(answer, writableBytes, writableCuts, isWritable: true),
            answer: answer, inputBytes: inputBytes)
    }

    private static func cut(
        _ address: UInt64, _ count: Int, _ cuts: [Int], isWritable: Bool
    ) -> [DriverBuffer] {
        var buffers: [DriverBuffer] = []
        var done = 0
        for cut in cuts where done + cut < count && cut > 0 {
            buffers.append(
                DriverBuffer(address + UInt64(done), UInt32(cut), isWritable: isWritable))
            done += cut
        }
        return buffers
            + [DriverBuffer(address + UInt64(done), UInt32(count - done), isWritable: isWritable)]
    }
}

/// A request in memory.
package struct DriverPlacement: Sendable, Equatable {
    /// Its chain.
    package let buffers: [DriverBuffer]
    /// Where its data and its status will be.
    package let answer: UInt64
    package let inputBytes: Int

    /// The last byte: 0 done, 1 failed, 2 unknown, 0xee not answered.
    package func status(_ memory: any DriverMemory) -> UInt8 {
        memory.read(answer + UInt64(inputBytes), 1)[0]
    }
    /// What was read.
    package func input(_ memory: any DriverMemory) -> [UInt8] { memory.read(answer, inputBytes) }
}
