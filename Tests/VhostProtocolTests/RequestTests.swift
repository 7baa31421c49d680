import Testing
import UnitSupport
import VhostClient
import VhostProtocol

@Suite("Requests from a driver to a disk")
struct RequestTests {
    private static let sectors = 64
    /// Where the driver has its data: behind the rings.
    private static let data: UInt64 = 0x8000

    /// Sends one request, cut up as wanted, and returns its status, its data, and what the device
    /// counted.
    private func send(
        _ request: DriverRequest, to disk: inout ModelDisk, readableCuts: [Int] = [],
        writableCuts: [Int] = []
    ) throws -> (status: UInt8, input: [UInt8], written: UInt32) {
        let memory = GuestArray(0x20000)
        let driver = DriverQueue(memory, size: 64, at: 0, hasEventIndex: false)
        let rig = try Rig(memory, driver)
        let placed = request.place(
            memory, at: Self.data, readableCuts: readableCuts, writableCuts: writableCuts)
        let head = try #require(driver.stage(placed.buffers))
        driver.publish()
        try rig.run(&disk)
        let used = try driver.collect()
        #expect(used.map(\.id) == [UInt32(head)])
        #expect(memory.strays == 0)
        return (placed.status(memory), placed.input(memory), used.first?.written ?? 0)
    }

    @Test("every request has its effect, its status and its count, however it is cut into buffers")
    func cuts() throws {
        let bytes = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let cuts: [[Int]] =
            (1..<16).map { [$0] }
            + [[16], [17], [1, 1, 1], [8, 8], [15, 2], [16, 1], [4, 4, 8, 100], [527]]
        for cut in cuts {
            var disk = ModelDisk(sectors: Self.sectors)
            let written = try send(.write(3, bytes), to: &disk, readableCuts: cut)
            #expect(written.status == 0 && written.written == 1)
            #expect(disk.content[3 * 512..<4 * 512] == bytes[...])
            let read = try send(
                .read(3, sectors: 1), to: &disk, readableCuts: cut, writableCuts: cut)
            #expect(read.status == 0 && read.input == bytes && read.written == 513, "\(cut)")
            let zeroed = try send(
                .writeZeroes(2, sectors: 2, flags: 1), to: &disk, readableCuts: cut)
            #expect(zeroed.status == 0 && zeroed.written == 1)
            #expect(disk.content[2 * 512..<4 * 512].allSatisfy { $0 == 0 })
            let name = try send(.getID, to: &disk, writableCuts: cut)
            #expect(name.input == Array("model".utf8) + [UInt8](repeating: 0, count: 15))
            #expect(name.status == 0 && name.written == 21)
        }
    }

    @Test("P5: of more buffers than an operation takes each must end at a sector")
    func sectors() throws {
        // One buffer more than an operation takes, each of one sector, then two that share one.
        for (count, isOdd) in [(128, true), (129, false), (129, true), (300, true)] {
            let sizes =
                [Int](repeating: 512, count: count - (isOdd ? 2 : 0)) + (isOdd ? [200, 312] : [])
            let bytes = sizes.reduce(0, +)
            let memory = GuestArray(0x60000)
            let driver = DriverQueue(memory, size: 1024, at: 0, hasEventIndex: false)
            var disk = ModelDisk(sectors: 1024, segments: 1040)
            let rig = try Rig(memory, driver, segments: 1040)
            let isServed = count <= 128 || !isOdd
            for request: DriverRequest in [
                .write(1, [UInt8](repeating: 5, count: bytes)), .read(1, sectors: bytes / 512),
            ] {
                let cuts = request.inputBytes > 0 ? [16] : [16] + sizes.dropLast()
                let placed = request.place(
                    memory, at: 0x10000, readableCuts: cuts, writableCuts: sizes)
                _ = try #require(driver.stage(placed.buffers))
                driver.publish()
                try rig.run(&disk)
                _ = try driver.collect()
                #expect(
                    placed.status(memory) == (isServed ? 0 : 1), "\(count) \(isOdd) \(request.type)"
                )
            }
            #expect(disk.content[512] == (isServed ? 5 : 1))
        }
    }

    /// A request, and the status that a writable disk of 64 sectors and a read-only one give it.
    struct Row: Sendable, CustomTestStringConvertible {
        let name: String
        let request: DriverRequest
        let writable: UInt8
        let readOnly: UInt8
        var testDescription: String { name }

        init(_ name: String, _ request: DriverRequest, _ writable: UInt8, _ readOnly: UInt8) {
            self.name = name
            self.request = request
            self.writable = writable
            self.readOnly = readOnly
        }
    }

    private static let sector = [UInt8](repeating: 1, count: 512)
    private static let rows: [Row] = [
        Row("read", .read(0, sectors: 64), 0, 0),
        Row("read nothing", .read(64, sectors: 0), 0, 0),
        Row("read nothing past the end", .read(65, sectors: 0), 1, 1),
        Row("read past the end", .read(1, sectors: 64), 1, 1),
        Row("read at the last sector of all", .read(.max, sectors: 1), 1, 1),
        Row("read so that the sum overflows", .read(.max - 63, sectors: 64), 1, 1),
        Row("read half a sector", DriverRequest(0, inputBytes: 256), 1, 1),
        Row("read with data", DriverRequest(0, output: sector, inputBytes: 512), 1, 1),
        Row("write", .write(63, sector), 0, 1),
        Row("write past the end", .write(64, sector), 1, 1),
        Row("write at 2^55", .write(1 << 55, sector), 1, 1),
        Row("write half a sector", .write(0, Array(sector[..<256])), 1, 1),
        Row("write nothing", .write(0, []), 0, 1),
        Row("write that wants data", DriverRequest(1, output: sector, inputBytes: 512), 1, 1),
        Row("flush", .flush, 0, 0),
        Row("flush with a sector", DriverRequest(4, sector: 7), 0, 0),
        Row("discard", .discard(1, sectors: 63), 0, 2),
        Row("discard past the end", .discard(1, sectors: 64), 1, 2),
        Row("discard with a flag", .discard(1, sectors: 1, flags: 1), 2, 2),
        Row("discard nothing", .discard(64, sectors: 0), 0, 2),
        Row("discard half a range", DriverRequest(11, output: [0, 0, 0, 0, 0, 0, 0, 0]), 1, 2),
        Row(
            "discard two ranges",
            DriverRequest(11, output: [UInt8](repeating: 0, count: 32)), 1, 2),
        Row("discard without end", .discard(0, sectors: .max), 1, 2),
        Row("zeroes", .writeZeroes(0, sectors: 64), 0, 2),
        Row("zeroes that unmap", .writeZeroes(0, sectors: 64, flags: 1), 0, 2),
        Row("zeroes with a reserved flag", .writeZeroes(0, sectors: 1, flags: 2), 2, 2),
        Row("zeroes past the end", .writeZeroes(64, sectors: 1), 1, 2),
        Row("zeroes at the last sector of all", .writeZeroes(.max, sectors: 1), 1, 2),
        Row("zeroes that want data", DriverRequest(13, output: sector, inputBytes: 1), 1, 2),
        Row("id", .getID, 0, 0),
        Row("id in little room", DriverRequest(8, inputBytes: 3), 0, 0),
        Row("id in much room", DriverRequest(8, inputBytes: 600), 0, 0),
        Row("id with data", DriverRequest(8, output: [1], inputBytes: 20), 1, 1),
        Row("get lifetime", DriverRequest(10, inputBytes: 24), 2, 2),
        Row("secure erase", DriverRequest(14, output: [UInt8](repeating: 0, count: 16)), 2, 2),
        Row("a barrier of old", DriverRequest(0x8000_0000), 2, 2),
        Row("the last type of all", DriverRequest(.max), 2, 2),
    ]

    @Test("each request gets its status, and a refused one changes nothing", arguments: rows)
    func table(row: Row) throws {
        for isReadOnly in [false, true] {
            let features =
                isReadOnly
                ? ModelDisk.features.subtracting([.discard, .writeZeroes]) : ModelDisk.features
            var disk = ModelDisk(
                sectors: Self.sectors, isReadOnly: isReadOnly, features: features)
            let before = disk.content
            let answer = try send(row.request, to: &disk)
            let expected = isReadOnly ? row.readOnly : row.writable
            #expect(answer.status == expected, "read-only: \(isReadOnly)")
            if expected != 0 || isReadOnly { #expect(disk.content == before) }
            if expected != 0 { #expect(disk.done.isEmpty) }
            #expect(answer.written <= UInt32(row.request.writableBytes))
        }
    }

    @Test("what a guest has not agreed to is unknown to it")
    func notNegotiated() throws {
        var disk = ModelDisk(sectors: 8, features: [.version1, .flush])
        #expect(try send(.discard(0, sectors: 1), to: &disk).status == 2)
        #expect(try send(.writeZeroes(0, sectors: 1), to: &disk).status == 2)
        #expect(try send(.write(0, Self.sector), to: &disk).status == 0)
        #expect(disk.done.map(\.isDurable) == [false])
    }

    @Test("a guest that sends no flushes has its changes durable before they are answered")
    func writeThrough() throws {
        var disk = ModelDisk(
            sectors: 8, features: ModelDisk.features.subtracting(.flush))
        _ = try send(.write(0, Self.sector), to: &disk)
        _ = try send(.writeZeroes(0, sectors: 1), to: &disk)
        _ = try send(.discard(0, sectors: 1), to: &disk)
        _ = try send(.read(0, sectors: 1), to: &disk)
        #expect(disk.done.map(\.isDurable) == [true, true, true, false])
    }

    @Test("data outside memory, or in too many segments, is an error of that request alone")
    func refusedData() throws {
        var disk = ModelDisk(sectors: 8, segments: 4)
        let memory = GuestArray([(0, 0x10000), (0x20000, 0x1000)])
        let driver = DriverQueue(memory, size: 64, at: 0, hasEventIndex: false)
        let rig = try Rig(memory, driver)
        let many = DriverRequest.read(0, sectors: 1).place(
            memory, at: Self.data, writableCuts: [100, 100, 100, 100])
        let header = DriverBuffer(Self.data, 16)
        let status = DriverBuffer(0x9800, 1, isWritable: true)
        let chains: [[DriverBuffer]] = [
            many.buffers,
            [header, DriverBuffer(0x1_8000, 512, isWritable: true), status],
            [header, DriverBuffer(0xff00, 512, isWritable: true), status],
            [header, DriverBuffer(0x20f00, 512, isWritable: true), status],
            [header, DriverBuffer(.max, 512, isWritable: true), status],
            [DriverBuffer(0x1_8000, 16), status],
            [DriverBuffer(Self.data, 15), status],
        ]
        for chain in chains {
            memory.write([0xee], 0x9800)
            #expect(driver.stage(chain) != nil)
            driver.publish()
            try rig.run(&disk)
            #expect(try driver.collect().count == 1)
            let answer = chain == many.buffers ? many.status(memory) : memory.read(0x9800, 1)[0]
            #expect(answer == 1)
            #expect(disk.done.isEmpty && memory.strays == 0)
        }
    }

    @Test("data that lies in two regions which touch each other is one request")
    func acrossRegions() throws {
        var disk = ModelDisk(sectors: 8)
        let memory = GuestArray([(0, 0x10000), (0x10000, 0x1000)])
        let driver = DriverQueue(memory, size: 64, at: 0, hasEventIndex: false)
        let rig = try Rig(memory, driver)
        let placed = DriverRequest.read(1, sectors: 2).place(memory, at: Self.data)
        var buffers = placed.buffers
        buffers[1] = DriverBuffer(0x10000 - 512, 1024, isWritable: true)
        buffers.append(DriverBuffer(placed.answer + 1024, 1, isWritable: true))
        _ = driver.stage(buffers)
        driver.publish()
        try rig.run(&disk)
        #expect(placed.status(memory) == 0)
        let first = memory.read(0x10000 - 512, 512)
        #expect(first + memory.read(0x10000, 512) == Array(disk.content[512..<1536]))
    }

    @Test("a storm of requests, out of order and over many turns of the rings", arguments: 1...8)
    func storm(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        let memory = GuestArray(0x40000)
        let size: UInt16 = [1, 2, 8, 32][seed % 4] * 4
        let driver = DriverQueue(memory, size: size, at: 0, hasEventIndex: seed.isMultiple(of: 2))
        let start = UInt16(truncatingIfNeeded: 65_530 * seed)
        driver.begin(at: start)
        let rig = try Rig(memory, driver, base: start)
        var disk = ModelDisk(sectors: Self.sectors)
        var model = disk.content
        var waiting: [UInt16: (DriverRequest, DriverPlacement)] = [:]
        var places = (0..<32).map { UInt64(0x4000 + 0x1000 * $0) }
        var answered = 0
        for _ in 0..<2000 {
            switch random.below(4) {
            case 0:
                guard let place = places.popLast() else { continue }
                let request = Self.request(&random, taken: waiting.values.map(\.0))
                let placed = request.place(
                    memory, at: place, readableCuts: [random.below(20)],
                    writableCuts: [random.below(600)])
                let head =
                    random.below(2) == 0
                    ? driver.stage(placed.buffers)
                    : driver.stage(placed.buffers, table: place + 0xf00)
                if let head { waiting[head] = (request, placed) } else { places.append(place) }
            case 1:
                driver.publish()
                _ = driver.wantsKick()
            case 2: _ = try rig.take(&disk)
            default:
                if !disk.inFlight.isEmpty {
                    rig.finish(random.below(disk.inFlight.count), &disk)
                }
                if random.below(2) == 0 { _ = rig.publish() }
            }
            for used in try driver.collect() {
                guard let (request, placed) = waiting.removeValue(forKey: UInt16(used.id)) else {
                    Issue.record("chain \(used.id) was not sent")
                    return
                }
                Self.judge(request, placed, memory, &model)
                places.append(placed.buffers[0].address)
                answered += 1
            }
        }
        #expect(answered > 50 && memory.strays == 0)
    }

    /// A request for sectors that no other request in flight is for.
    private static func request(
        _ random: inout SplitMix64, taken: [DriverRequest]
    ) -> DriverRequest {
        let sector = UInt64(random.below(sectors))
        guard !taken.contains(where: { $0.sector == sector && $0.type < 2 }) else { return .flush }
        guard random.below(2) == 0 else { return .read(sector, sectors: 1) }
        return .write(sector, (0..<512).map { _ in UInt8(truncatingIfNeeded: random.next()) })
    }

    private static func judge(
        _ request: DriverRequest, _ placed: DriverPlacement, _ memory: GuestArray,
        _ model: inout [UInt8]
    ) {
        #expect(placed.status(memory) == 0)
        let start = Int(request.sector) * 512
        if request.type == 1 { model.replaceSubrange(start..<start + 512, with: request.output) }
        if request.type == 0 {
            #expect(placed.input(memory) == Array(model[start..<start + 512]))
        }
    }
}
