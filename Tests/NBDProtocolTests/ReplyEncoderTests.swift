import NBDProtocol
import Testing

@Suite("Reply encoder")
struct ReplyEncoderTests {
    private let cookie: UInt64 = 0x0102_0304_0506_0708

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

    private func chunk(_ flags: UInt16, _ type: UInt16, _ body: ByteBuilder) -> [UInt8] {
        bytes.u32(0x668e_33ef).u16(flags).u16(type).u64(cookie)
            .u32(UInt32(body.bytes.count)).then(body).bytes
    }

    @Test("simple replies", arguments: [(WireError.none, UInt32(0)), (.shutdown, 108)])
    func simple(error: WireError, number: UInt32) {
        let reply = written {
            ReplyEncoder.simple(error: error, cookie: cookie, into: &$0, at: $1)
        }
        #expect(reply == bytes.u32(0x6744_6698).u32(number).u64(cookie).bytes)
        #expect(reply.count == ReplyEncoder.simpleBytes)
    }

    @Test("error numbers are the protocol's")
    func errors() {
        let all: [WireError] = [
            .none, .notPermitted, .ioError, .noMemory, .invalidArgument, .noSpace, .overflow,
            .notSupported, .shutdown,
        ]
        #expect(all.map(\.rawValue) == [0, 1, 5, 12, 22, 28, 75, 95, 108])
    }

    @Test("data header counts its offset and the data to come", arguments: [false, true])
    func offsetData(done: Bool) {
        let reply = written {
            ReplyEncoder.offsetData(
                cookie: cookie, offset: 0x1000_0000_0000, dataBytes: 4096, done: done, into: &$0,
                at: $1)
        }
        let expected = bytes.u32(0x668e_33ef).u16(done ? 1 : 0).u16(1).u64(cookie).u32(4104)
            .u64(0x1000_0000_0000)
        #expect(reply == expected.bytes)
        #expect(reply.count == ReplyEncoder.offsetDataHeaderBytes)
    }

    @Test("hole, empty and status chunks")
    func otherChunks() {
        let hole = written {
            ReplyEncoder.offsetHole(
                cookie: cookie, offset: 77, length: .max, done: false, into: &$0, at: $1)
        }
        #expect(hole == chunk(0, 2, bytes.u64(77).u32(.max)))
        #expect(hole.count == ReplyEncoder.offsetHoleBytes)

        let none = written { ReplyEncoder.none(cookie: cookie, into: &$0, at: $1) }
        #expect(none == chunk(1, 0, bytes))
        #expect(none.count == ReplyEncoder.chunkHeaderBytes)

        let status = written { memory, offset in
            var end = offset
            end += ReplyEncoder.blockStatus(
                cookie: cookie, contextID: 9, extentCount: 2, done: true, into: &memory, at: end)
            end += ReplyEncoder.extent(length: 65536, flags: 3, into: &memory, at: end)
            end += ReplyEncoder.extent(length: 1, flags: 0, into: &memory, at: end)
            return end - offset
        }
        #expect(status == chunk(1, 5, bytes.u32(9).u32(65536).u32(3).u32(1).u32(0)))
        #expect(
            status.count == ReplyEncoder.blockStatusHeaderBytes + 2 * ReplyEncoder.extentBytes)
    }

    @Test("error chunks carry number and text, and the place behind the text")
    func errorChunks() {
        let error = written {
            ReplyEncoder.error(
                .ioError, cookie: cookie, text: "scratch full", done: true, into: &$0, at: $1)
        }
        #expect(error == chunk(1, 0x8001, bytes.u32(5).u16(12).text("scratch full")))

        let empty = written {
            ReplyEncoder.error(.noSpace, cookie: cookie, text: "", done: false, into: &$0, at: $1)
        }
        #expect(empty == chunk(0, 0x8001, bytes.u32(28).u16(0)))

        let runTime = Array("later".utf8)
        let placed = written {
            ReplyEncoder.errorAtOffset(
                .ioError, cookie: cookie, offset: 4096, text: runTime.span, done: true, into: &$0,
                at: $1)
        }
        #expect(placed == chunk(1, 0x8002, bytes.u32(5).u16(5).text("later").u64(4096)))
        let sameText = written {
            ReplyEncoder.errorAtOffset(
                .ioError, cookie: cookie, offset: 4096, text: "later", done: true, into: &$0,
                at: $1)
        }
        #expect(sameText == placed)
    }

    @Test("long texts are cut between characters", arguments: [255, 256, 257, 300])
    func longTexts(count: Int) {
        let ascii = String(repeating: "x", count: count)
        let plain = written {
            ReplyEncoder.error(.ioError, cookie: cookie, text: ascii, done: true, into: &$0, at: $1)
        }
        let kept = min(count, 256)
        let cut = String(repeating: "x", count: kept)
        #expect(plain == chunk(1, 0x8001, bytes.u32(5).u16(UInt16(kept)).text(cut)))
        #expect(plain.count <= ReplyEncoder.errorBytesMax)

        // 255 bytes, then characters of three: the one that would straddle the limit goes whole.
        let wide = String(repeating: "x", count: 255) + "€€"
        let whole = written {
            ReplyEncoder.errorAtOffset(
                .ioError, cookie: cookie, offset: 1, text: wide, done: true, into: &$0, at: $1)
        }
        let narrow = String(repeating: "x", count: 255)
        #expect(whole == chunk(1, 0x8002, bytes.u32(5).u16(255).text(narrow).u64(1)))
    }

    @Test("memory that is too short is not written beyond")
    func tooShort() async {
        await #expect(processExitsWith: .failure) {
            var memory = [UInt8](repeating: 0, count: 15)
            var span = memory.mutableSpan
            // SAFETY: the array owns the bytes for the whole scope; every bit pattern is a byte.
            var raw = unsafe span.mutableBytes
            _ = ReplyEncoder.simple(error: .none, cookie: 1, into: &raw, at: 0)
        }
    }
}
