import LibvirtProtocol
import Testing

/// Values to bytes and back, and what is refused.
@Suite struct XDRTests {
    private func bytes(_ write: (inout XDRWriter) -> Void) -> [UInt8] {
        var writer = XDRWriter()
        write(&writer)
        return writer.bytes
    }

    @Test("numbers come back", arguments: [0, 1, 0x7F, 0x80, 0x7FFF_FFFF, 0x8000_0000, .max])
    func numbers(value: UInt32) throws {
        let wide = UInt64(value) << 32 | UInt64(~value)
        var reader = XDRReader(
            bytes {
                $0.uint(value)
                $0.int(Int32(bitPattern: value))
                $0.uhyper(wide)
                $0.hyper(Int64(bitPattern: wide))
                $0.double(Double(bitPattern: wide))
                $0.bool(value & 1 == 1)
            })
        #expect(try reader.uint() == value)
        #expect(try reader.int() == Int32(bitPattern: value))
        #expect(try reader.uhyper() == wide)
        #expect(try reader.hyper() == Int64(bitPattern: wide))
        #expect(try reader.double().bitPattern == wide)
        #expect(try reader.bool() == (value & 1 == 1))
        try reader.finish()
    }

    @Test("numbers are written with their highest byte first")
    func order() {
        #expect(bytes { $0.uint(0x0102_0304) } == [1, 2, 3, 4])
        #expect(bytes { $0.uhyper(0x0102_0304_0506_0708) } == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(bytes { $0.int(-1) } == [255, 255, 255, 255])
    }

    @Test("texts come back, filled up to a multiple of four", arguments: 0...9)
    func texts(count: Int) throws {
        let text = String(repeating: "x", count: count)
        let written = bytes {
            $0.string(text)
            $0.optionalString(nil)
            $0.optionalString(text)
            $0.strings([text, "é"])
        }
        #expect(written.count % 4 == 0)
        var reader = XDRReader(written)
        #expect(try reader.string() == text)
        #expect(try reader.optionalString() == nil)
        #expect(try reader.optionalString() == text)
        #expect(try reader.strings(limit: 2) == [text, "é"])
        try reader.finish()
    }

    @Test("every kind of parameter comes back")
    func parameters() throws {
        let list = [
            TypedParameter("a", .int(-5)), TypedParameter("b", .uint(.max)),
            TypedParameter("c", .hyper(.min)), TypedParameter("d", .uhyper(.max)),
            TypedParameter("e", .double(0.5)), TypedParameter("f", .bool(true)),
            TypedParameter("", .string("ä")),
        ]
        var reader = XDRReader(bytes { $0.parameters(list) })
        #expect(try reader.parameters() == list)
        try reader.finish()
    }

    @Test("P6: a length that promises more than there is takes no memory and is refused")
    func lengths() {
        for count in [5, 0x7FFF_FFFF, UInt32.max] {
            let head = bytes { $0.uint(count) } + [1, 2, 3, 4]
            #expect(throws: XDRError.self) {
                var reader = XDRReader(head)
                _ = try reader.string()
            }
            #expect(throws: XDRError.self) {
                var reader = XDRReader(head)
                _ = try reader.parameters()
            }
            #expect(throws: XDRError.self) {
                var reader = XDRReader(head)
                _ = try reader.strings(limit: .max)
            }
            #expect(throws: XDRError.self) {
                var reader = XDRReader(head)
                _ = try reader.count(limit: .max, elementBytes: .max)
            }
        }
    }

    @Test("P6: what exceeds a limit is refused before it is read")
    func limits() {
        var reader = XDRReader(bytes { $0.string("12345") })
        #expect(throws: XDRError.tooLong(count: 5, limit: 4)) { _ = try reader.string(limit: 4) }
        reader = XDRReader(bytes { $0.strings(["a", "b"]) })
        #expect(throws: XDRError.tooLong(count: 2, limit: 1)) { _ = try reader.strings(limit: 1) }
    }

    @Test("what is no value of its type is refused")
    func forms() {
        var reader = XDRReader(bytes { $0.uint(2) })
        #expect(throws: XDRError.notABoolean(2)) { _ = try reader.bool() }
        reader = XDRReader([0, 0, 0, 2, 0xFF, 0xFE, 0, 0])
        #expect(throws: XDRError.notText) { _ = try reader.string() }
        reader = XDRReader([0, 0, 0, 3, 65, 0, 66, 0])
        #expect(throws: XDRError.notText) { _ = try reader.string() }
        reader = XDRReader(
            bytes {
                $0.string("field")
                $0.int(8)
            })
        #expect(throws: XDRError.unknownType(8)) { _ = try reader.parameter() }
        reader = XDRReader([0, 0, 0, 1, 65, 66])
        #expect(throws: XDRError.truncated(needed: 3, left: 1)) { _ = try reader.string() }
        #expect(throws: XDRError.trailing(1)) { try XDRReader([0]).finish() }
    }
}
