/// A disk whose bytes another program finds: an image in a format of its own, or storage that is
/// reached by a protocol of its own.
///
/// That program, the disk's *adapter*, serves the bytes by NBD.
package struct ImageConfiguration: Sendable, Hashable, Codable {
    /// The image itself, then the images that it builds on, each on the next.
    package var layers: [ImageLayer]

    package init(layers: [ImageLayer]) { self.layers = layers }

    /// Most images of a chain.
    package static let layersMax = 64

    /// Where its images lie, of all layers, and their data.
    package var allPlaces: [ImagePlace] { layers.flatMap(\.places) }
}

/// One image of a chain.
package struct ImageLayer: Sendable, Hashable, Codable {
    package var format: ImageFormat
    package var place: ImagePlace
    /// Where a qcow2 image has its data, raw, if not in itself.
    package var dataPlace: ImagePlace?
    /// A file with the passphrase of an encrypted image.
    package var passphraseFile: String?

    package init(_ format: ImageFormat, _ place: ImagePlace) {
        self.format = format
        self.place = place
    }

    /// Where it lies, and its data.
    package var places: [ImagePlace] { [place] + (dataPlace.map { [$0] } ?? []) }
}

/// Formats that an adapter opens.
package enum ImageFormat: String, Sendable, Hashable, CaseIterable, Codable {
    case raw, qcow2, vmdk, vdi, vhdx, vpc, luks
}

/// Where an image lies.
package enum ImagePlace: Sendable, Hashable, Codable {
    case file(path: String)
    case block(path: String)
    case rbd(RBDImage)
    case iscsi(ISCSIUnit)
    case gluster(GlusterFile)

    /// The absolute path of what lies on this host.
    package var path: String? {
        switch self {
        case .file(let path), .block(let path): path
        case .rbd, .iscsi, .gluster: nil
        }
    }

    /// Whether both may be one place; an image and its snapshots are.
    package func mayBe(_ other: ImagePlace) -> Bool {
        guard text == other.text else { return false }
        return Self.mayBeOneCluster(monitors, other.monitors)
    }

    /// Whether what these monitors are of may be one Ceph cluster.
    ///
    /// Unless both are named nobody can tell: a configuration may name any. Two lists of one cluster
    /// have a monitor in common.
    package static func mayBeOneCluster(_ some: Set<String>, _ others: Set<String>) -> Bool {
        some.isEmpty || others.isEmpty || !some.isDisjoint(with: others)
    }

    /// The hosts of a Ceph cluster's monitors, as they are written; empty: they are not named.
    ///
    /// Their ports do not count: a monitor has several.
    package var monitors: Set<String> {
        guard case .rbd(let rbd) = self else { return [] }
        return Set(rbd.hosts.map { $0.name.lowercased() })
    }

    /// The same text for the same place, but for images of two Ceph clusters.
    package var text: String {
        switch self {
        case .file(let path), .block(let path): path
        case .rbd(let rbd): "rbd:" + rbd.name
        case .iscsi(let unit): "iscsi:\(unit.target)/\(unit.unit)"
        case .gluster(let file): "gluster:\(file.volume)/\(file.path)"
        }
    }
}

/// A host and a port.
package struct StorageHost: Sendable, Hashable, Codable {
    package var name: String
    package var port: UInt16

    package init(name: String, port: UInt16) {
        self.name = name
        self.port = port
    }
}

/// An image of a Ceph cluster.
package struct RBDImage: Sendable, Hashable, Codable {
    package var pool: String
    package var namespace: String?
    package var image: String
    package var snapshot: String?
    /// Monitors; empty: those of the configuration.
    package var hosts: [StorageHost] = []
    /// Absolute path of the cluster's configuration; nil: the library's default.
    package var configuration: String?
    package var user: String?
    /// A file with the user's key, as Ceph prints it; nil: the configuration's keyring.
    package var keyFile: String?

    /// `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`; nil for anything else.
    package init?(name: String) {
        let parts = name.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2 || parts.count == 3, !parts.contains("") else { return nil }
        pool = parts[0]
        namespace = parts.count == 3 ? parts[1] : nil
        image = parts[parts.count - 1]
    }

    /// The same as text.
    package var name: String {
        [pool, namespace, image].compactMap { $0 }.joined(separator: "/")
    }
}

/// A logical unit of an iSCSI target.
package struct ISCSIUnit: Sendable, Hashable, Codable {
    package var portal: StorageHost
    package var target: String
    package var unit: UInt16
    package var user: String?
    package var passwordFile: String?

    package init(portal: StorageHost, target: String, unit: UInt16) {
        self.portal = portal
        self.target = target
        self.unit = unit
    }
}

/// A file of a Gluster volume.
package struct GlusterFile: Sendable, Hashable, Codable {
    package var hosts: [StorageHost]
    package var volume: String
    package var path: String

    package init(hosts: [StorageHost], volume: String, path: String) {
        self.hosts = hosts
        self.volume = volume
        self.path = path
    }
}
