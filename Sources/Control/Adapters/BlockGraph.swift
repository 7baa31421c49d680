import Foundation
import ServerInterface

/// An image as `qemu-storage-daemon` is told to open it: the nodes of its block layer, named from
/// the image down, and secrets by the files that hold them.
struct BlockGraph {
    /// A value of an option.
    private typealias Node = [String: any Sendable]

    private let image: ImageConfiguration
    private let disk: DiskConfiguration
    private var secrets: [Node] = []
    private var nodes: [Node] = []

    /// The name of the export.
    static let exportName = "disk"

    init(_ image: ImageConfiguration, for disk: DiskConfiguration) {
        self.image = image
        self.disk = disk
    }

    /// The program's arguments: it serves the image on a socket, and writes a file when it does.
    static func arguments(
        _ image: ImageConfiguration, for disk: DiskConfiguration, socket: String, readyFile: String
    ) -> [String] {
        var graph = BlockGraph(image, for: disk)
        for index in image.layers.indices.reversed() { graph.add(index) }
        let server: Node = ["addr": ["type": "unix", "path": socket]]
        let export: Node = [
            "type": "nbd", "id": "export", "node-name": "image0", "name": exportName,
            "writable": !disk.readOnly,
        ]
        return graph.secrets.flatMap { ["--object", text($0)] }
            + graph.nodes.flatMap { ["--blockdev", text($0)] }
            + ["--nbd-server", text(server), "--export", text(export), "--pidfile", readyFile]
    }

    /// More arguments: it shares memory with whoever asks for that at another socket.
    static func sharing(for disk: DiskConfiguration, socket: String) -> [String] {
        let export: Node = [
            "type": sharingType, "id": "shared", "node-name": "image0",
            "addr": ["type": "unix", "path": socket], "writable": !disk.readOnly,
        ]
        return ["--export", text(export)]
    }

    /// Programs that were built without it name it when they refuse it.
    static let sharingType = "vhost-user-blk"

    /// The command by which `qemu-img` frees what a killed program had taken in an image and not
    /// used; nil where there is no such thing.
    static func repair(_ image: ImageConfiguration, by program: String) -> [String]? {
        guard let layer = image.layers.first, layer.format == .qcow2, layer.passphraseFile == nil,
            layer.dataPlace == nil, let path = layer.place.path
        else { return nil }
        var driver = "file"
        if case .block = layer.place { driver = "host_device" }
        let node: Node = [
            "driver": "qcow2", "backing": NSNull(), "file": ["driver": driver, "filename": path],
        ]
        return [program, "check", "-q", "-r", "leaks", "json:" + text(node)]
    }

    private static func text(_ node: Node) -> String {
        let data = try? JSONSerialization.data(
            withJSONObject: node, options: [.sortedKeys, .withoutEscapingSlashes])
        return String(decoding: data ?? Data(), as: UTF8.self)
    }

    // MARK: Nodes

    private mutating func add(_ index: Int) {
        let layer = image.layers[index]
        let isWritten = index == 0 && !disk.readOnly
        nodes.append(place(layer.place, "file\(index)", isWritten: isWritten))
        var node: Node = ["driver": layer.format.rawValue, "file": "file\(index)"]
        if let data = layer.dataPlace {
            nodes.append(place(data, "data\(index)", isWritten: isWritten))
            node["data-file"] = "data\(index)"
        }
        if layer.format == .qcow2 || layer.format == .vmdk {
            // Nothing is opened because an image names it.
            node["backing"] =
                index + 1 < image.layers.count ? "image\(index + 1)" as any Sendable : NSNull()
        }
        if let file = layer.passphraseFile {
            let secret = secret("passphrase\(index)", file)
            switch layer.format {
            case .qcow2:
                node["encrypt"] = ["format": "luks", "key-secret": secret]
            case .luks: node["key-secret"] = secret
            case .raw, .vmdk, .vdi, .vhdx, .vpc: break
            }
        }
        nodes.append(finished(node, "image\(index)", isWritten: isWritten))
    }

    /// What all nodes have in common.
    private func finished(_ node: Node, _ name: String, isWritten: Bool) -> Node {
        var node = node
        node["node-name"] = name
        node["read-only"] = !isWritten
        node["cache"] = ["direct": disk.cacheMode == .none, "no-flush": false]
        node["discard"] = disk.discardMode == .unmap ? "unmap" : "ignore"
        return node
    }

    private mutating func secret(_ name: String, _ file: String, isEncoded: Bool = false) -> String
    {
        var secret: Node = ["qom-type": "secret", "id": name, "file": file]
        if isEncoded { secret["format"] = "base64" }
        secrets.append(secret)
        return name
    }

    private mutating func place(_ place: ImagePlace, _ name: String, isWritten: Bool) -> Node {
        let node: Node =
            switch place {
            case .file(let path): ["driver": "file", "filename": path, "aio": "io_uring"]
            case .block(let path): ["driver": "host_device", "filename": path, "aio": "io_uring"]
            case .rbd(let rbd): self.rbd(rbd, name)
            case .iscsi(let unit): iscsi(unit, name)
            case .gluster(let file):
                [
                    "driver": "gluster", "volume": file.volume, "path": file.path,
                    "server": file.hosts.map { host in
                        ["type": "inet", "host": host.name, "port": String(host.port)]
                    },
                ]
            }
        return finished(node, name, isWritten: isWritten)
    }

    private mutating func rbd(_ rbd: RBDImage, _ name: String) -> Node {
        var node: Node = ["driver": "rbd", "pool": rbd.pool, "image": rbd.image]
        node["namespace"] = rbd.namespace
        node["snapshot"] = rbd.snapshot
        node["conf"] = rbd.configuration
        node["user"] = rbd.user
        if !rbd.hosts.isEmpty {
            node["server"] = rbd.hosts.map { ["host": $0.name, "port": String($0.port)] }
        }
        if let file = rbd.keyFile {
            node["key-secret"] = secret("key-\(name)", file, isEncoded: true)
        }
        return node
    }

    private mutating func iscsi(_ unit: ISCSIUnit, _ name: String) -> Node {
        var node: Node = [
            "driver": "iscsi", "transport": "tcp",
            "portal": "\(unit.portal.name):\(unit.portal.port)", "target": unit.target,
            "lun": Int(unit.unit),
        ]
        node["user"] = unit.user
        if let file = unit.passwordFile {
            node["password-secret"] = secret("password-\(name)", file)
        }
        return node
    }
}
