import NBDProtocol
import Testing

@Suite("Request decoder")
struct RequestDecoderTests {
    private func wire(_ header: RequestHeader) -> [UInt8] {
        let start = bytes.u32(header == .compact ? 0x2560_9513 : 0x21e4_1c71).u16(0x0102)
            .u16(0x0304).u64(0x0506_0708_090a_0b0c).u64(0x0d0e_0f10_1112_1314)
        return header == .compact
            ? start.u32(0xfffe_fdfc).bytes : start.u64(0xfffe_fdfc_fbfa_f9f8).bytes
    }

    private func request(_ header: RequestHeader) -> RawRequest {
        RawRequest(
            flags: 0x0102, type: 0x0304, cookie: 0x0506_0708_090a_0b0c,
            offset: 0x0d0e_0f10_1112_1314,
            length: header == .compact ? 0xfffe_fdfc : 0xfffe_fdfc_fbfa_f9f8)
    }

    @Test(
        "a header is decoded field by field, wherever it stands", arguments: RequestHeader.allCases)
    func decodes(header: RequestHeader) {
        let wire = wire(header)
        let size = header == .compact ? 28 : 32
        let expected = RequestDecode.request(request(header), consumed: size)
        #expect(wire.count == size)
        #expect(RequestDecoder.decode(wire.span, at: 0, header) == expected)
        let later = [9, 9, 9] + wire + wire
        #expect(RequestDecoder.decode(later.span, at: 3, header) == expected)
        #expect(RequestDecoder.decode(later.span, at: 3 + size, header) == expected)
    }

    @Test("a part of a header asks for the whole", arguments: RequestHeader.allCases)
    func partial(header: RequestHeader) {
        let wire = wire(header)
        for count in 0..<wire.count {
            let part = Array(wire.prefix(count))
            #expect(
                RequestDecoder.decode(part.span, at: 0, header)
                    == .needBytes(atLeast: wire.count))
        }
    }

    @Test(
        "any other magic is told at its fourth byte, the other form's too",
        arguments: [
            0, 0x2560_9513, 0x2560_9514, 0x21e4_1c71, 0x1256_0953, 0x9674_4668, UInt32.max,
        ], RequestHeader.allCases)
    func badMagic(magic: UInt32, header: RequestHeader) {
        guard magic != (header == .compact ? 0x2560_9513 : 0x21e4_1c71) else { return }
        let four = bytes.u32(magic).bytes
        #expect(RequestDecoder.decode(four.span, at: 0, header) == .badMagic)
        let whole = bytes.u32(magic).zeros(28).bytes
        #expect(RequestDecoder.decode(whole.span, at: 0, header) == .badMagic)
    }
}
