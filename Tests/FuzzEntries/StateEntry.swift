import Control
import ServerInterface
import Tracking

/// Files of the state directory: damaged ones are told apart from whole ones, and none is trusted
/// with more memory than its length can stand for.
///
/// Checksums would keep a fuzzer out, so every input is also read with its checksums put right.
enum StateEntry {
    /// The first byte chooses the kind of file, the rest is its content.
    static func run(_ bytes: [UInt8]) {
        guard let kind = bytes.first else { return }
        let content = Array(bytes.dropFirst())
        switch kind % 4 {
        case 0:
            layer(content)
            layer(layerWithChecksums(content))
        case 1:
            intentLog(content)
            intentLog(logWithChecksums(content))
        case 2:
            tracking(content)
            tracking(content + Array("crc \(Zlib.crc32(content.span))\n".utf8))
        default:
            record(content)
        }
    }

    private static func layer(_ bytes: [UInt8]) {
        do throws(LayerFault) {
            let (bitmap, identity) = try LayerCodec.decode(bytes)
            precondition(UInt64(bitmap.blockCount) == identity.blockCount)
            let again = LayerCodec.encode(bitmap, identity: identity)
            guard let read = try? LayerCodec.decode(again) else {
                preconditionFailure("a layer that was read cannot be written")
            }
            precondition(read.0 == bitmap && read.1 == identity)
        } catch {
            precondition(!error.description.isEmpty)
        }
    }

    private static func intentLog(_ bytes: [UInt8]) {
        do throws(IntentLogFault) {
            let log = try IntentLogCodec.decode(bytes)
            precondition(log.words.count == (log.shape.regionCount + 63) / 64)
        } catch {
            precondition(!error.description.isEmpty)
        }
    }

    private static func tracking(_ bytes: [UInt8]) {
        guard let record = TrackingRecord.decode(bytes) else { return }
        precondition(TrackingRecord.decode(record.encode()) == record, "a record changes")
    }

    private static func record(_ bytes: [UInt8]) {
        check(StoredDomain.self, "domain", bytes)
        check(StoredJob.self, "job", bytes)
        check(CheckpointMetadata.self, "checkpoint", bytes)
        check(StoredMoves.self, "moves", bytes)
        diskState(bytes)
        let header =
            "nbdpull-disk-state 1 \(String(Zlib.crc32(bytes.span), radix: 16)) \(bytes.count)"
            + " \(bytes.count)\n"
        diskState(Array(header.utf8) + bytes)
    }

    private static func diskState(_ bytes: [UInt8]) {
        guard let found = try? DiskStateFile.decode(bytes) else { return }
        let layers = found.tracking.flatMap(\.layers).map(\.bytes)
        guard let again = try? DiskStateFile.encode(found.state, layers),
            (try? DiskStateFile.decode(again)) != nil
        else { preconditionFailure("a state of disks that was read cannot be written") }
    }

    private static func check<Value: Codable & Equatable>(
        _ type: Value.Type, _ kind: String, _ bytes: [UInt8]
    ) {
        for file in [bytes, StateRecord.wrap(kind: kind, body: bytes)] {
            guard let value = try? StateRecord.decode(kind: kind, type, from: file) else {
                continue
            }
            guard let again = try? StateRecord.encode(kind: kind, value),
                let read = try? StateRecord.decode(kind: kind, type, from: again)
            else { preconditionFailure("a record that was read cannot be written") }
            precondition(read == value, "a record changes")
        }
    }

    private static func layerWithChecksums(_ bytes: [UInt8]) -> [UInt8] {
        guard bytes.count >= LayerCodec.headerBytes else { return bytes }
        var bytes = bytes
        let body = Array(bytes[LayerCodec.headerBytes...])
        store(UInt64(body.count), in: &bytes, at: 48)
        store(Zlib.crc32(body.span), in: &bytes, at: 56)
        let header = Array(bytes[..<60])
        store(Zlib.crc32(header.span), in: &bytes, at: 60)
        return bytes
    }

    private static func logWithChecksums(_ bytes: [UInt8]) -> [UInt8] {
        // Filled up with zeros to two slots of one page, as most disks have.
        let size = IntentLogCodec.slotAlignmentBytes
        var slots: [UInt8] = []
        for start in [0, bytes.count / 2] {
            var slot = Array(bytes[start...].prefix(size))
            slot.append(contentsOf: repeatElement(0, count: size - slot.count))
            store(UInt32(0), in: &slot, at: 12)
            let sum = Zlib.crc32(slot.span)
            store(sum, in: &slot, at: 12)
            slots += slot
        }
        return slots
    }

    private static func store(_ value: some FixedWidthInteger, in bytes: inout [UInt8], at: Int) {
        for index in 0..<(value.bitWidth / 8) {
            bytes[at + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
        }
    }
}
