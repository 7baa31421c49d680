import IORing
import Simulation

/// Content as bytes: a sector is its stamp again and again.
enum Sectors {
    static let bytes = 512
    private static let words = bytes / 4

    static func bytes(of stamps: some Collection<Stamp>) -> [UInt8] {
        let count = stamps.count * bytes
        // SAFETY: every word of the array is stored to before it is used.
        return unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            var place = 0
            for stamp in stamps {
                for _ in 0..<words {
                    unsafe UnsafeMutableRawBufferPointer(buffer).storeBytes(
                        of: stamp.littleEndian, toByteOffset: place, as: UInt32.self)
                    place += 4
                }
            }
            filled = count
        }
    }

    /// The sectors' stamps; a sector that is not one stamp throughout is garbage.
    static func stamps(_ all: [UInt8]) -> [Stamp] {
        // SAFETY: the reads below stay within the array.
        unsafe all.withUnsafeBytes { buffer in
            stride(from: 0, to: all.count / bytes * bytes, by: bytes).map { start in
                let first = unsafe buffer.loadUnaligned(fromByteOffset: start, as: UInt32.self)
                for word in 1..<words {
                    let next = unsafe buffer.loadUnaligned(
                        fromByteOffset: start + word * 4, as: UInt32.self)
                    if next != first { return .garbage }
                }
                return Stamp(littleEndian: first)
            }
        }
    }

    static func store(_ bytes: [UInt8], in arena: inout BufferArena, at offset: Int) {
        guard !bytes.isEmpty else { return }
        var span = arena.mutableBytes(offset, count: bytes.count)
        for index in bytes.indices {
            span.storeBytes(of: bytes[index], toByteOffset: index, as: UInt8.self)
        }
    }

    static func copy(_ arena: borrowing BufferArena, _ offset: Int, _ count: Int) -> [UInt8] {
        arena.lend(offset, count: count).copy()
    }
}
