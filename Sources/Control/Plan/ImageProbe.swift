import ServerInterface

/// What the first bytes of an image say of other files that it needs.
///
/// An image that names other files would have them opened, whoever wrote those names: nothing is
/// opened that the disk's definition does not name.
struct ImageProbe {
    /// So many bytes of the image are looked at.
    static let byteCount = 64 << 10

    private let bytes: [UInt8]
    private let layer: ImageLayer

    /// `bytes`: the image's first ones, fewer where it is shorter.
    init(_ bytes: [UInt8], of layer: ImageLayer) {
        self.bytes = bytes
        self.layer = layer
    }

    /// Why the image cannot be opened as its definition says; nil: nothing is known against it.
    ///
    /// `hasBacking`: the definition names an image that it builds on.
    func fault(hasBacking: Bool) -> String? {
        let name = layer.place.path.map { "image '\($0)'" } ?? "its image"
        switch layer.format {
        case .qcow2: return qcow2Fault(name, hasBacking)
        case .vmdk: return vmdkFault(name) ?? backingFault(name, hasBacking)
        case .raw, .vdi, .vhdx, .vpc, .luks: return backingFault(name, hasBacking)
        }
    }

    /// What `RemoteSource.zeroingUnit` is for the image, in bytes: the cluster of a qcow2 image.
    ///
    /// `qemu` makes a cluster one of zeros when a part of it is zeroed and the rest reads as zeros,
    /// although a write to another part is under way.
    var zeroingUnit: UInt64 {
        layer.format == .qcow2 ? 1 << (clusterBits ?? 21) : 1
    }

    /// At most 21, as `qemu` has it.
    private var clusterBits: UInt64? {
        number(20, 4).flatMap { 9...21 ~= $0 ? $0 : nil }
    }

    private func backingFault(_ name: String, _ hasBacking: Bool) -> String? {
        hasBacking
            ? "\(name) builds on no other image, as '\(layer.format.rawValue)' cannot:"
                + " <backingStore> must be empty" : nil
    }

    // MARK: qcow2 (its specification, "Header")

    private func qcow2Fault(_ name: String, _ hasBacking: Bool) -> String? {
        guard number(0, 4) == 0x5146_49FB else { return "\(name) is not a qcow2 image" }
        guard let version = number(4, 4), version == 2 || version == 3 else {
            return "\(name) has a version of qcow2 that is not known"
        }
        guard let place = number(8, 8), let length = number(16, 4) else {
            return "\(name) ends within its header"
        }
        guard clusterBits != nil else { return "\(name) has clusters of a size that is not known" }
        if (place != 0) != hasBacking {
            return place == 0
                ? "\(name) builds on no other image: <backingStore> must be empty"
                : "\(name) builds on \(text(place, length)): name that by <backingStore>, if it is"
                    + " to be read"
        }
        let features = version == 3 ? number(72, 8) ?? 0 : 0
        if (features & 4 != 0) != (layer.dataPlace != nil) {
            return layer.dataPlace == nil
                ? "\(name) has its data in another file: name that by <dataStore>, if it is to be"
                    + " used"
                : "\(name) has its data in itself: it takes no <dataStore>"
        }
        let isEncrypted = number(32, 4) != 0
        if isEncrypted, layer.passphraseFile == nil {
            return "\(name) is encrypted: name a file with its passphrase"
        }
        return nil
    }

    // MARK: vmdk (its specification, "Hosted Sparse Extent Header")

    private func vmdkFault(_ name: String) -> String? {
        guard bytes.starts(with: Array("KDMV".utf8)), number(12, 8, isBig: false) ?? 0 != 0 else {
            return "\(name) is no VMDK image in one file: one that names others is not opened;"
                + " convert it by 'qemu-img convert'"
        }
        guard !hasText("parentFileNameHint") else {
            return "\(name) builds on another image, which a VMDK image cannot here: convert it by"
                + " 'qemu-img convert'"
        }
        return nil
    }

    // MARK: Parts

    private func hasText(_ text: String) -> Bool {
        let wanted = Array(text.utf8)
        guard bytes.count >= wanted.count else { return false }
        return (0...(bytes.count - wanted.count)).contains { place in
            bytes[place] == wanted[0] && bytes[place..<place + wanted.count].elementsEqual(wanted)
        }
    }

    private func number(_ place: Int, _ count: Int, isBig: Bool = true) -> UInt64? {
        guard bytes.count >= place + count else { return nil }
        let part = bytes[place..<place + count]
        return (isBig ? Array(part) : part.reversed()).reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// A name for people: a file may hold anything.
    private func text(_ place: UInt64, _ length: UInt64) -> String {
        guard length <= 1023, place <= UInt64(bytes.count), place + length <= UInt64(bytes.count)
        else {
            return "another image"
        }
        let text = String(decoding: bytes[Int(place)..<Int(place + length)], as: UTF8.self)
        return "'" + String(text.unicodeScalars.map { $0.value < 0x20 ? "?" : Character($0) }) + "'"
    }
}
