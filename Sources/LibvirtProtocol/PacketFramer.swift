/// Why a stream of bytes is unreadable: it is no longer known where the next packet begins.
package enum FramingError: Error, Sendable, Hashable {
    /// The length is smaller than a header.
    case tooShort(UInt32)
    /// The length is beyond the limit.
    case tooLong(UInt32, limit: Int)
}

/// Cuts a stream of bytes into packets.
///
/// It holds what was received of one packet, never more: memory is taken as bytes come, not as a
/// length promises them.
package struct PacketFramer: Sendable {
    /// The longest packet, in bytes; may be changed between two packets.
    package var bytesMax: Int
    private var input: [UInt8] = []
    private var start = 0

    package init(bytesMax: Int = LibvirtLimits.greetingBytesMax) { self.bytesMax = bytesMax }

    /// Whether a packet has begun and is not complete.
    package var isInsidePacket: Bool { start < input.count }

    /// Adds bytes as they come.
    package mutating func append(_ bytes: some Sequence<UInt8>) {
        if start > 0 {
            input.removeFirst(start)
            start = 0
        }
        input.append(contentsOf: bytes)
    }

    /// The next complete packet, or nil until more has come.
    package mutating func next() throws(FramingError) -> Packet? {
        guard let length = try peekLength(), input.count - start >= Int(length) else { return nil }
        let end = start + Int(length)
        var reader = XDRReader(Array(input[start + 4..<start + PacketHeader.byteCount]))
        // Cannot fail: the header's bytes are all there.
        guard let header = try? PacketHeader(&reader) else { throw .tooShort(length) }
        let packet = Packet(header, body: Array(input[start + PacketHeader.byteCount..<end]))
        start = end
        if start == input.count {
            input.removeAll(keepingCapacity: input.capacity <= LibvirtLimits.greetingBytesMax)
            start = 0
        }
        return packet
    }

    /// The length of the packet that has begun; refused as soon as it is known.
    private func peekLength() throws(FramingError) -> UInt32? {
        guard input.count - start >= 4 else { return nil }
        let length = input[start..<start + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        guard length >= UInt32(PacketHeader.byteCount) else { throw .tooShort(length) }
        guard length <= UInt32(clamping: bytesMax) else {
            throw .tooLong(length, limit: bytesMax)
        }
        return length
    }
}
