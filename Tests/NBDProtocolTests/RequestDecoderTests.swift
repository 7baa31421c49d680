import NBDProtocol
import Testing

@Suite("Request decoder")
struct RequestDecoderTests {
    private let wire = bytes.u32(0x2560_9513).u16(0x0102).u16(0x0304)
        .u64(0x0506_0708_090a_0b0c).u64(0x0d0e_0f10_1112_1314).u32(0xfffe_fdfc).bytes
    private let request = RawRequest(
        flags: 0x0102, type: 0x0304, cookie: 0x0506_0708_090a_0b0c,
        offset: 0x0d0e_0f10_1112_1314, length: 0xfffe_fdfc)

    @Test("a header is decoded field by field, wherever it stands")
    func decodes() {
        #expect(RequestDecoder.decode(wire.span, at: 0) == .request(request, consumed: 28))
        let later = [9, 9, 9] + wire + wire
        #expect(RequestDecoder.decode(later.span, at: 3) == .request(request, consumed: 28))
        #expect(RequestDecoder.decode(later.span, at: 31) == .request(request, consumed: 28))
    }

    @Test("a part of a header asks for the whole", arguments: 0..<28)
    func partial(count: Int) {
        let part = Array(wire.prefix(count))
        #expect(RequestDecoder.decode(part.span, at: 0) == .needBytes(atLeast: 28))
    }

    @Test(
        "any other magic is told at its fourth byte",
        arguments: [0, 0x2560_9514, 0x21e4_1c71, 0x1256_0953, 0x9674_4668, UInt32.max])
    func badMagic(magic: UInt32) {
        let four = bytes.u32(magic).bytes
        #expect(RequestDecoder.decode(four.span, at: 0) == .badMagic)
        let whole = bytes.u32(magic).zeros(24).bytes
        #expect(RequestDecoder.decode(whole.span, at: 0) == .badMagic)
    }
}
