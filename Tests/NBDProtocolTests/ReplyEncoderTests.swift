import NBDProtocol
import Testing

/// One reply in each of the three forms, byte by byte.
private struct Forms: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let encode: @Sendable (ReplyEncoder, inout MutableRawSpan, Int) -> Int
    /// What each form is; nil where the form has no such reply.
    let expected: @Sendable (ReplyMode) -> ByteBuilder?

    static let cookie: UInt64 = 0x0102_0304_0506_0708
    static let offset: UInt64 = 0x1122_3344_5566_7788
    static let echo = RequestEcho(cookie: cookie, offset: offset)

    static func simple(_ error: UInt32) -> ByteBuilder {
        bytes.u32(0x6744_6698).u32(error).u64(cookie)
    }

    static func structured(_ flags: UInt16, _ type: UInt16, _ body: ByteBuilder) -> ByteBuilder {
        bytes.u32(0x668e_33ef).u16(flags).u16(type).u64(cookie).u32(UInt32(body.bytes.count))
            .then(body)
    }

    static func extended(_ flags: UInt16, _ type: UInt16, _ body: ByteBuilder) -> ByteBuilder {
        bytes.u32(0x6e8a_278c).u16(flags).u16(type).u64(cookie).u64(offset)
            .u64(UInt64(body.bytes.count)).then(body)
    }

    /// A row whose chunk is the same but for its header.
    init(
        _ name: String, simple: ByteBuilder?, _ flags: UInt16, _ type: UInt16,
        _ body: ByteBuilder,
        _ encode: @escaping @Sendable (ReplyEncoder, inout MutableRawSpan, Int) -> Int
    ) {
        self.init(
            name, simple: simple, structured: Self.structured(flags, type, body),
            extended: Self.extended(flags, type, body), encode)
    }

    init(
        _ name: String, simple: ByteBuilder?, structured: ByteBuilder, extended: ByteBuilder,
        _ encode: @escaping @Sendable (ReplyEncoder, inout MutableRawSpan, Int) -> Int
    ) {
        testDescription = name
        self.encode = encode
        expected = { mode in
            switch mode {
            case .simple: simple
            case .structured: structured
            case .extended: extended
            }
        }
    }

    static let all: [Forms] = [
        Forms(
            "success without data", simple: simple(0), structured: simple(0),
            extended: extended(1, 0, bytes)
        ) { $0.success(echo, into: &$1, at: $2) },
        Forms("success of a READ of nothing", simple: simple(0), 1, 0, bytes) {
            $0.success(echo, isRead: true, into: &$1, at: $2)
        },
        Forms("the end of a reply", simple: nil, 1, 0, bytes) { $0.none(echo, into: &$1, at: $2) },
        Forms(
            "an error with a text", simple: simple(5), 1, 0x8001,
            bytes.u32(5).u16(12).text("scratch full")
        ) { $0.error(.ioError, echo, text: "scratch full", into: &$1, at: $2) },
        Forms("an error without a text", simple: simple(28), 1, 0x8001, bytes.u32(28).u16(0)) {
            $0.error(.noSpace, echo, text: "", into: &$1, at: $2)
        },
        Forms(
            "an error and its place", simple: simple(5), 1, 0x8002,
            bytes.u32(5).u16(5).text("later").u64(4096)
        ) { $0.error(.ioError, echo, text: "later", place: 4096, into: &$1, at: $2) },
        Forms("an error before the end", simple: nil, 0, 0x8001, bytes.u32(5).u16(0)) {
            $0.error(.ioError, echo, text: "", done: false, into: &$1, at: $2)
        },
        Forms("zeros", simple: nil, 0, 2, bytes.u64(77).u32(.max)) {
            $0.hole(echo, place: 77, length: .max, done: false, into: &$1, at: $2)
        },
    ]
}

@Suite("Reply encoder")
struct ReplyEncoderTests {
    private let echo = Forms.echo

    /// What `encode` writes at offset 3, after checking that it touches nothing else.
    private func written(_ encode: (inout MutableRawSpan, Int) -> Int) -> [UInt8] {
        var memory = [UInt8](repeating: 0xaa, count: 400)
        var span = memory.mutableSpan
        // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
        var raw = unsafe span.mutableBytes
        let count = encode(&raw, 3)
        #expect(memory[..<3].allSatisfy { $0 == 0xaa })
        #expect(memory[(3 + count)...].allSatisfy { $0 == 0xaa })
        return Array(memory[3..<(3 + count)])
    }

    @Test("one encoder writes all three forms", arguments: Forms.all, ReplyMode.allCases)
    fileprivate func forms(_ row: Forms, mode: ReplyMode) {
        guard let expected = row.expected(mode) else { return }
        let encoder = ReplyEncoder(mode)
        #expect(written { row.encode(encoder, &$0, $1) } == expected.bytes)
        #expect(expected.bytes.count <= ReplyEncoder.errorBytesMax)
    }

    @Test("error numbers are the protocol's")
    func errors() {
        let all: [WireError] = [
            .none, .notPermitted, .ioError, .noMemory, .invalidArgument, .noSpace, .overflow,
            .notSupported, .shutdown,
        ]
        #expect(all.map(\.rawValue) == [0, 1, 5, 12, 22, 28, 75, 95, 108])
    }

    @Test(
        "a data header counts the place and the data to come", arguments: ReplyMode.allCases,
        [false, true])
    func data(mode: ReplyMode, done: Bool) {
        let encoder = ReplyEncoder(mode)
        let reply = written {
            encoder.data(
                echo, place: 0x1000_0000_0000, dataBytes: 4096, done: done, into: &$0, at: $1)
        }
        let expected =
            switch mode {
            case .simple: Forms.simple(0)
            case .structured:
                bytes.u32(0x668e_33ef).u16(done ? 1 : 0).u16(1).u64(Forms.cookie).u32(4104)
                    .u64(0x1000_0000_0000)
            case .extended:
                bytes.u32(0x6e8a_278c).u16(done ? 1 : 0).u16(1).u64(Forms.cookie)
                    .u64(Forms.offset).u64(4104).u64(0x1000_0000_0000)
            }
        #expect(reply == expected.bytes)
        #expect(reply.count == encoder.dataHeaderBytes)
        #expect(reply.count <= ReplyEncoder.headerBytesMax)
    }

    @Test("the longest data keeps its length in both kinds of chunk")
    func longestData() {
        let structured = written {
            ReplyEncoder(.structured).data(
                echo, place: 0, dataBytes: .max - 8, done: true, into: &$0, at: $1)
        }
        #expect(Array(structured[16..<20]) == bytes.u32(.max).bytes)
        let extended = written {
            ReplyEncoder(.extended).data(
                echo, place: 0, dataBytes: .max, done: true, into: &$0, at: $1)
        }
        #expect(Array(extended[24..<32]) == bytes.u64(1 << 32 + 7).bytes)
    }

    private func status(_ mode: ReplyMode, _ lengths: [UInt64]) -> [UInt8] {
        let encoder = ReplyEncoder(mode)
        return written { memory, offset in
            var end = offset
            end += encoder.status(
                echo, contextID: 9, extentCount: lengths.count, done: true, into: &memory, at: end)
            #expect(end - offset == encoder.statusHeaderBytes)
            for length in lengths {
                let flags: UInt32 = length == 1 ? .max : 3
                end += encoder.extent(length: length, flags: flags, into: &memory, at: end)
            }
            #expect(
                end - offset
                    == encoder.statusHeaderBytes + lengths.count * encoder.extentBytes)
            return end - offset
        }
    }

    @Test("a status chunk has 32-bit extents, an extended one 64-bit extents and their count")
    func status() {
        #expect(
            status(.structured, [65536, 1])
                == Forms.structured(1, 5, bytes.u32(9).u32(65536).u32(3).u32(1).u32(.max)).bytes)
        let body = bytes.u32(9).u32(2).u64(1 << 40).u64(3).u64(1).u64(0xffff_ffff)
        #expect(status(.extended, [1 << 40, 1]) == Forms.extended(1, 6, body).bytes)
        #expect(ReplyEncoder(.extended).hasLongExtents)
        #expect(!ReplyEncoder(.structured).hasLongExtents)
    }

    @Test("long texts are cut between characters", arguments: [255, 256, 257, 300])
    func longTexts(count: Int) {
        let ascii = String(repeating: "x", count: count)
        let plain = written {
            ReplyEncoder(.extended).error(.ioError, echo, text: ascii, into: &$0, at: $1)
        }
        let kept = min(count, 256)
        let cut = String(repeating: "x", count: kept)
        #expect(
            plain
                == Forms.extended(1, 0x8001, bytes.u32(5).u16(UInt16(kept)).text(cut)).bytes)

        // 255 bytes, then characters of three: the one that would straddle the limit goes whole.
        let wide = String(repeating: "x", count: 255) + "€€"
        let whole = written {
            ReplyEncoder(.structured).error(
                .ioError, echo, text: wide, place: 1, into: &$0, at: $1)
        }
        let narrow = String(repeating: "x", count: 255)
        let body = bytes.u32(5).u16(255).text(narrow).u64(1)
        #expect(whole == Forms.structured(1, 0x8002, body).bytes)
    }

    @Test("the longest error fits what is set aside for it", arguments: ReplyMode.allCases)
    func longestError(mode: ReplyMode) {
        let longest = written {
            ReplyEncoder(mode).error(
                .ioError, echo, text: String(repeating: "x", count: 300), place: 7, into: &$0,
                at: $1)
        }
        #expect(longest.count <= ReplyEncoder.errorBytesMax)
        if mode == .extended { #expect(longest.count == ReplyEncoder.errorBytesMax) }
    }

    @Test("memory that is too short is not written beyond")
    func tooShort() async {
        await #expect(processExitsWith: .failure) {
            var memory = [UInt8](repeating: 0, count: 31)
            var span = memory.mutableSpan
            // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            _ = ReplyEncoder(.extended).success(
                RequestEcho(cookie: 1, offset: 2), into: &raw, at: 0)
        }
    }

    @Test("a simple connection gets no chunk")
    func noChunks() async {
        await #expect(processExitsWith: .failure) {
            var memory = [UInt8](repeating: 0, count: 100)
            var span = memory.mutableSpan
            // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            _ = ReplyEncoder(.simple).none(RequestEcho(cookie: 1, offset: 2), into: &raw, at: 0)
        }
    }

    @Test("an extent that does not fit a structured chunk is not cut")
    func noCutExtent() async {
        await #expect(processExitsWith: .failure) {
            var memory = [UInt8](repeating: 0, count: 100)
            var span = memory.mutableSpan
            // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            _ = ReplyEncoder(.structured).extent(
                length: 1 << 32, flags: 0, into: &raw, at: 0)
        }
    }
}
